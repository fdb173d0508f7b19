"""rl/questions/generated.py: reasoning-gym's tasks as questions, of which a seed gives the same each time, and what is
said of wrong ones."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import JsonValue

from rl.config import ColumnsSection, DataSection, HeldOutSection
from rl.errors import DataError
from rl.questions.files import load_questions
from rl.questions.inputs import load_held_out_questions
from rl.records import Question
from tests.reference.generated import generate_in_a_fork

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (extra reasoning-gym)")

pytestmark = pytest.mark.slow  # every test starts a process with reasoning-gym


def questions(
    path: str, *, limit: int | None = 8, task: dict[str, Any] | None = None, columns: ColumnsSection | None = None
) -> tuple[Question, ...]:
    data = DataSection(path=path, limit=limit, task=task or {}, columns=columns or ColumnsSection())
    return load_questions(data).questions


def refusal(path: str, task: dict[str, Any], *, held_out: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        if held_out:
            load_held_out_questions(HeldOutSection(path=path, task=task, num_questions=8), ())
        else:
            questions(path, task=task)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", generate_in_a_fork)


def test_a_task_becomes_questions_with_ids_answers_and_references() -> None:
    made = questions("reasoning_gym:chain_sum", task={"min_terms": 2, "max_terms": 2, "seed": 5})
    assert len(made) == 8 and [question.id for question in made] == [f"chain_sum-5-{i}" for i in range(8)]
    for index, question in enumerate(made):
        expression = question.text.partition(": ")[2].removesuffix(" =").split(" ")
        first, sign, second = int(expression[0]), expression[1], int(expression[2])
        assert question.answer == str(first + second if sign == "+" else first - second)
        config = {"seed": 5, "size": 8, "min_terms": 2, "max_terms": 2}
        assert question.columns == {"reasoning_gym": {"task": "chain_sum", "config": config, "index": index}}


# ransom_note's questions follow Python's hash seed, list_functions' Python's global random numbers.
TASKS = ("chain_sum", "ransom_note", "list_functions")


def test_the_same_seed_gives_the_same_questions_in_every_process() -> None:
    path = f"reasoning_gym:{'+'.join(TASKS)}"
    code = (
        "from rl.config import DataSection\nfrom rl.questions.files import load_questions\n"
        f"made = load_questions(DataSection(path={path!r}, limit=15)).questions\n"
        "print(hash('a'), [(q.id, q.text, q.answer) for q in made])")
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": other_seed}).stdout
    their_hash, _, theirs = shown.partition(" ")
    assert int(their_hash) != hash("a")
    assert theirs == f"{[(q.id, q.text, q.answer) for q in questions(path, limit=15)]}\n"


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("task", TASKS)
def test_another_seed_gives_other_questions(task: str) -> None:
    assert [q.text for q in questions(f"reasoning_gym:{task}", task={"seed": 77})] != [
        q.text for q in questions(f"reasoning_gym:{task}")]


@pytest.mark.usefixtures("forked")
def test_held_out_questions_have_a_seed_far_away_and_leave_out_those_of_training() -> None:
    # 200 different sums
    small: dict[str, JsonValue] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    path = "reasoning_gym:chain_sum"
    training = load_questions(DataSection(path=path, limit=150, task=small))
    texts = {question.text for question in training.questions}
    held_out = load_held_out_questions(HeldOutSection(path=path, num_questions=100, task=small), texts)
    assert training.counts.num_duplicates > 0 and held_out.counts.num_excluded > 0
    assert not texts & {question.text for question in held_out.questions}
    assert len(held_out.questions) == 100 - held_out.counts.num_excluded - held_out.counts.num_duplicates
    assert all(question.id.startswith("chain_sum-1000000000-") for question in held_out.questions)
    with pytest.raises(
        DataError, match=r"all of its 150 questions are training questions too; give evaluation\.task other"
    ):
        load_held_out_questions(HeldOutSection(path=path, num_questions=150, task={**small, "seed": 0}), texts)


@pytest.mark.usefixtures("forked")
def test_several_tasks_take_turns() -> None:
    made = questions("reasoning_gym:chain_sum+gcd", limit=7, task={"seed": 3, "gcd": {"max_numbers": 2}})
    assert [question.id for question in made] == [
        "chain_sum-3-0", "gcd-3-0", "chain_sum-3-1", "gcd-3-1", "chain_sum-3-2", "gcd-3-2", "chain_sum-3-3"]
    assert made[1].columns["reasoning_gym"] == {
        "task": "gcd", "config": {"seed": 3, "size": 3, "max_numbers": 2}, "index": 0}


@pytest.mark.usefixtures("forked")
def test_size_and_limit() -> None:
    path = "reasoning_gym:chain_sum"
    assert len(questions(path, limit=3, task={"size": 9})) == 3
    assert len(questions(path, limit=9, task={"size": 3})) == 3
    assert 400 < len(questions(path, limit=None)) <= 500


def test_without_an_answer_column_nothing_leads_to_an_answer() -> None:
    (question,) = questions("reasoning_gym:chain_sum", limit=1, columns=ColumnsSection(answer=None))
    assert question.answer is None and question.columns == {}


def test_a_task_without_a_single_answer_has_none() -> None:
    assert all(
        question.answer is None and question.columns for question in questions("reasoning_gym:graph_color", limit=3))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(
    ("path", "task", "message"),
    [
        ("chian_sum", {}, "data.path: reasoning-gym has no task 'chian_sum'; did you mean 'chain_sum'?"),
        ("", {}, "reasoning-gym has no task ''; there are: ab, acre,"),
        ("chain_sum+chain_sum", {}, "names a task twice"),
        (
            "chain_sum", {"max_term": 3},
            "data.task.max_term: saw 3; chain_sum has no such parameter, did you mean max_terms? It has: min_terms,"),
        (
            "chain_sum", {"min_terms": 3, "max_terms": 2},
            (
                "data.task.min_terms=3, data.task.max_terms=2: refused by chain_sum (AssertionError: max_terms must be "
                ">= min_terms)"
            )),
        ("chain_sum", {"max_terms": "two"}, "data.task.max_terms='two': refused by chain_sum (TypeError"),
        ("chain_sum", {"seed": -1}, "data.task.seed: saw -1; expected a whole number >= 0"),
        ("chain_sum", {"size": "many"}, "data.task.size: saw 'many'; expected a whole number >= 1"),
        (
            "chain_sum+gcd", {"max_terms": 2},
            "data.task.max_terms: saw 2; expected with several tasks seed, size, or a task's name (chain_sum, gcd)"),
        (
            "chain_sum+gcd", {"gcd": {"max_number": 2}},
            "data.task.gcd.max_number: saw 2; gcd has no such parameter, did you mean max_numbers?"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(path: str, task: dict[str, Any], message: str) -> None:
    assert message in refusal(f"reasoning_gym:{path}", task)
    assert message.replace("data.", "evaluation.") in refusal(f"reasoning_gym:{path}", task, held_out=True)


def test_a_file_has_no_task_parameters() -> None:
    message = refusal("models/tiny-arith/questions/train.jsonl", {"max_terms": 2})
    assert "data.task: saw {'max_terms': 2}" in message and "only reasoning_gym:TASK has task parameters" in message
