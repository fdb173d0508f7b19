"""Signs of reasoning, told from the text of completions."""

from __future__ import annotations

import pytest

from rl.runs.reasoning import reasoning_metrics
from tests.reference.scored_groups import scored_group


@pytest.mark.parametrize(("text", "reconsiders"), [
    ("So 3. Wait, that is 4.", 1.0), ("Hmm, 4?", 1.0), ("Let me check this again.", 1.0), ("I double-check: 4", 1.0),
    ("Actually 5", 1.0), ("That's wrong. 4", 1.0), ("The waiter was awaited; 4", 0.0), ("a fact: 4", 0.0),
    ("2+2=4", 0.0)])
def test_words_that_reconsider(text: str, reconsiders: float) -> None:
    assert reasoning_metrics([scored_group("q", ["4"], texts=[text])])["reconsidering_share"] == reconsiders


def test_steps_are_the_lines_before_the_answer_of_answered_completions() -> None:
    texts = ["1+2=3\n\n3+4=7\n\\boxed{7}", "\\boxed{7}\nand more\nlines", "no answer\nin many\nlines\nhere"]
    group = scored_group("q", ["7", "7", None], texts=texts)
    assert reasoning_metrics([group]) == {"steps": 1.0, "reconsidering_share": 0.0}
    assert "steps" not in reasoning_metrics([scored_group("q", [None])]) and reasoning_metrics([]) == {}
    prefixed = scored_group("q", ["7"], texts=["<think>\nhm\n</think>\\boxed{7}"], assistant_prefix="<think>\n")
    assert reasoning_metrics([prefixed])["steps"] == 1.0
