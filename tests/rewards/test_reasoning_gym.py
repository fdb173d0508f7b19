"""rewards/reasoning_gym.py: the tasks' own scorers on answers of every kind, in workers."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from rewards.contract import GroupScore, RewardError
from rewards.loading import load
from rewards.reasoning_gym import score, solved
from rewards.scoring import GroupInput, RewardSpec, RewardSum
from rl.questions.generated import task_rows
from tests.reference.generated import generate_in_a_fork

reasoning_gym = pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (extra reasoning-gym)")

pytestmark = pytest.mark.slow  # every test starts a process with reasoning-gym


@functools.cache
def rows(task: str, size: int = 4, **parameters: Any) -> list[dict[str, Any]]:
    """Of a task whose questions do not depend on Python's hash seed."""
    with patch("subprocess.run", generate_in_a_fork):
        return list(task_rows(f"reasoning_gym:{task}", {"size": size, **parameters}, None))


def scored(row: dict[str, Any], *completions: str) -> GroupScore:
    return score(
        question=row["question"], completions=list(completions), reasoning_gym=row["reasoning_gym"],
        answer=row["answer"])


def test_the_score_is_the_tasks_own() -> None:
    row = rows("chain_sum", min_terms=2, max_terms=2, min_digits=2, max_digits=2)[1]
    right = int(row["answer"])
    result = scored(
        row,
        f"\\boxed{{{right}}}",
        f"\\boxed{{{right}.0}}",
        f"<answer> {right} </answer>",
        f"\\boxed{{{right + 1}}}",
        "no idea")
    task = reasoning_gym.create_dataset("chain_sum", **row["reasoning_gym"]["config"])
    entry = task[1]
    assert entry["question"] == row["question"]
    expected = [
        float(task.score_answer(text, entry)) for text in (str(right), f"{right}.0", str(right), str(right + 1))]
    assert list(result.scores) == [*expected, 0.0] and expected[0] == 1.0 and expected[3] < 0.1
    assert result.answers == [str(right), f"{right}.0", str(right), str(right + 1), None]
    assert result.metrics == {"timed_out_share": 0.0, "failed_share": 0.0}


def test_several_right_answers_are_right_and_solved_pays_the_full_mark_alone() -> None:
    row = next(row for row in rows("number_sorting", 6))
    numbers = row["answer"]
    result = scored(
        row,
        f"<answer>{numbers}</answer>",
        f"####  not this\n<answer>{numbers.replace(', ', ',')}</answer>",
        "<answer>[]</answer>")
    assert result.scores[0] == 1.0 and result.answers is not None and result.answers[0] == numbers
    assert result.scores[2] is not None and result.scores[2] < 1.0
    whole = solved(question=row["question"], completions=[f"<answer>{numbers}</answer>", "<answer>[]</answer>"],
                   reasoning_gym=row["reasoning_gym"])
    assert list(whole.scores) == [1.0, 0.0]


@pytest.mark.parametrize(("completion", "answer"), [
    ("<answer>7</answer>", "7"), ("#### 3\n<answer>7</answer>", "7"), (r"<answer>so \boxed{7}</answer>", "7"),
    ("<answer>1</answer><answer>2\n3</answer>", "2\n3"), (r"\boxed{7}", "7"), ("<answer></answer>", None), ("hm", None),
    ("<answer>7", None)])
def test_the_last_answer_tag_is_the_answer_and_else_the_usual_rules(completion: str, answer: str | None) -> None:
    result = scored(rows("chain_sum", 1)[0], completion)
    assert result.answers == [answer]


# Tasks whose questions follow the order of a set, and so Python's hash seed; and tasks whose questions depend on the
# size, or on Python's global random numbers.
@pytest.mark.parametrize(
    "task", ["ransom_note", "isomorphic_strings", "polynomial_multiplication", "list_functions", "word_ladder", "gcd"]
)
def test_the_entry_is_made_again_from_its_reference_in_another_process(task: str) -> None:
    made = list(task_rows(f"reasoning_gym:{task}", {"size": 3}, None))
    for row in made[::-1]:
        assert scored(row, f"<answer>{row['answer']}</answer>").scores == [1.0], row["question"]


def test_a_reference_that_leads_to_another_question_is_an_error_and_no_score() -> None:
    first, second = rows("chain_sum", 2)
    with pytest.raises(RewardError, match=r"makes another question of .*chain_sum.*Install that one"):
        score(question=first["question"], completions=[r"\boxed{1}"], reasoning_gym=second["reasoning_gym"])


def test_answers_that_are_programs_do_nothing(tmp_path: Path) -> None:
    """countdown's scorer evaluates the answer: files, processes and sockets are refused, a failed answer is counted and
    worth 0."""
    row = rows("countdown", 1)[0]
    target, kept = tmp_path / "made", tmp_path / "kept"
    kept.touch()
    attacks = [
        f"open('{target}', 'w')",
        f"__import__('os').system('touch {target}')",
        f"__import__('subprocess').call(['touch', '{target}'])",
        f"__import__('os').open('{target}', 65)",
        f"__import__('pathlib').Path('{target}').mkdir()",
        "__import__('socket').create_connection(('127.0.0.1', 9))",
        f"__import__('os').remove('{kept}')",
        "__import__('os').execv('/bin/true', ['true'])"]
    result = scored(row, *(f"<answer>{attack}</answer>" for attack in attacks), f"<answer>{row['answer']}</answer>")
    assert not target.exists() and kept.exists()
    assert all(value is not None and value < 1.0 for value in result.scores[:-1]) and result.scores[-1] == 1.0
    assert result.metrics["timed_out_share"] == 0.0


def test_a_scorer_that_hangs_is_ended_and_counted() -> None:
    row = rows("countdown", 1)[0]
    started = time.monotonic()
    result = scored(row, "<answer>9**9**9**9</answer>", f"<answer>{row['answer']}</answer>")
    assert list(result.scores) == [0.0, 1.0] and time.monotonic() - started < 30
    assert result.metrics["timed_out_share"] + result.metrics["failed_share"] == 0.5


@pytest.mark.parametrize("task", ["chain_sum", "number_sorting", "binary_matrix"])
def test_any_text_gets_a_score(task: str) -> None:
    row = rows(task, 1)[0]
    texts = ["", "\x00", "\u202e7", "{" * 100_000, "9" * 1_000_000, "\ud800", r"\def\a{\a\a}\a", "[[[[", "None"]
    result = scored(row, *(f"<answer>{text}</answer>" for text in texts), *texts)
    assert len(result.scores) == 2 * len(texts) and all(
        value is not None and 0.0 <= value < 1.0 for value in result.scores)


@pytest.mark.parametrize("name", ["score", "solved"])
def test_questions_without_a_reference_are_refused_before_anything_is_sampled(name: str) -> None:
    rewards = RewardSum([RewardSpec(f"rewards.reasoning_gym:{name}")])
    with pytest.raises(RewardError, match="needs the column 'reasoning_gym', and question 'q1' has 'level'"):
        rewards.check_columns("q1", {"level": 3})
    row = rows("chain_sum", 1)[0]
    rewards.check_columns("q1", {"reasoning_gym": row["reasoning_gym"]})
    group = GroupInput(
        "q1", row["question"], [f"\\boxed{{{row['answer']}}}"], None, {"reasoning_gym": row["reasoning_gym"]})
    (result,) = rewards.score([group])
    assert result.rewards == (1.0,)


def test_without_the_library_the_message_is_the_line_to_type() -> None:
    """In a process where it cannot be found, as on a machine without it."""
    code = (
        "import sys, importlib.util\nfind = importlib.util.find_spec\nimportlib.util.find_spec = lambda name, *rest: "
        "None if name == 'reasoning_gym' else find(name, *rest)\nfrom rewards.reasoning_gym import "
        "score\nscore(question='q', completions=['<answer>1</answer>'], reasoning_gym={})")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert (
        "RewardError: reasoning-gym is not installed. Remedy: pip install -c constraints.txt -e '.[reasoning-gym]'"
        in done.stderr)


def test_importing_the_reward_does_not_import_the_library() -> None:
    code = (
        "import sys, rewards.reasoning_gym; print([m for m in ('reasoning_gym', 'sympy', 'torch') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]")
    assert load("rewards.reasoning_gym:score") is score
