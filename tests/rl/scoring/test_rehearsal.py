"""Each reward called once before anything is sampled."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.contract import RewardError
from rl.config import RewardSection
from rl.records import Prompt, Question
from rl.scoring.rehearsal import made_up_group, rehearse
from rl.scoring.rewarding import build_rewards

REWARDS = """
seen = []
def watch(*, question, completions, answer, level=None):
    seen.append((question, level))
    return [float(len(text) > 0) for text in completions]
"""


def prompt(name: str, answer: str | None = None, **columns: str) -> Prompt:
    return Prompt(Question(name, f"{name}?", answer, columns), f"{name}?", (1, 2))


@pytest.mark.parametrize("use", [
    "rewards.accuracy:accuracy", "rewards.semantic_entropy:semantic_entropy", "rewards.confidence:self_certainty",
    "rewards.reference_likelihood:reference_likelihood", "rewards.overlong:overlong_penalty"])
def test_the_projects_rewards_take_what_is_made_up(use: str) -> None:
    rewards = build_rewards([RewardSection(use=use)], 100)
    (line,) = rehearse(rewards, [prompt("a", "42")], 8)
    assert line.startswith(rewards.names[0]) and line.count(",") == 7


def test_the_gold_answer_is_among_the_completions_and_right() -> None:
    assert made_up_group(prompt("a", "42"), 8).rollouts[3].text == "So it is \\boxed{42}"
    (line,) = rehearse(build_rewards([RewardSection(use="rewards.accuracy:accuracy")], 100), [prompt("a", "42")], 4)
    assert line.split(None, 1)[1] == "0, 0, 0, 1"


def test_one_question_of_each_set_of_columns_is_tried(tmp_path: Path) -> None:
    (tmp_path / "watching.py").write_text(REWARDS)
    rewards = build_rewards([RewardSection(use=f"{tmp_path}/watching.py:watch")], 100)
    prompts = [prompt("a", level="1"), prompt("b", level="2"), prompt("c"), prompt("d", other="x")]
    with pytest.raises(RewardError, match="question 'd': cannot be called: got an unexpected keyword argument 'other'"):
        rehearse(rewards, prompts, 2)
    assert rehearse(rewards, prompts[:3], 2) == ["watch                   0, 1"]
    assert rewards.functions[0].__globals__["seen"] == [("a?", "1"), ("c?", None)]


def test_what_is_shown_is_the_first_questions(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(
        "def which(*, question, completions, **columns):\n    return [float(question[0])] * len(completions)\n")
    rewards = build_rewards([RewardSection(use=f"{tmp_path}/counting.py:which")], 100)
    prompts = [prompt("1", level="x"), prompt("2"), prompt("3", level="y")]
    assert rehearse(rewards, prompts, 2) == ["which                   1, 1"]
