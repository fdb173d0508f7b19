"""Judging recorded completions: no verdict is invented, and other people's files are read as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.evaluation import regrade
from eval.grade import read_samples
from eval.records import GradedQuestion, Sample
from eval.tasks import EvaluationError
from rewards.scoring import RewardSpec, RewardSum

REWARDS = """
from rewards.contract import GroupScore

def some(*, completions, **columns):
    return [None, *[1.0] * (len(completions) - 1)]

def none(*, completions, **columns):
    return [None] * len(completions)

def skips(*, completions, **columns):
    return GroupScore([1.0] * len(completions), skipped=True)

def two(*, completions, **columns):
    return [2.0] * len(completions)

def slow(*, completions, **columns):
    return GroupScore([0.0] * len(completions), metrics={"timed_out_share": 0.25})
"""


@pytest.fixture
def rewards(tmp_path: Path) -> Path:
    path = tmp_path / "rewards_of_a_test.py"
    path.write_text(REWARDS)
    return path


def question() -> GradedQuestion:
    return GradedQuestion(
        "sums", "1", "What is 1+1?", "2", {}, tuple(Sample(f"\\boxed{{{i}}}", None, 0.0, i, False) for i in range(4)))


def reward(rewards: Path, name: str) -> RewardSum:
    return RewardSum([RewardSpec(f"{rewards}:{name}")])


def test_verdicts_answers_and_clusters_are_the_graders() -> None:
    (judged,) = regrade([question()], RewardSum([RewardSpec("rewards.accuracy:accuracy")]))
    assert [(sample.answer, sample.correct) for sample in judged.samples] == [
        ("0", 0.0), ("1", 0.0), ("2", 1.0), ("3", 0.0)]
    assert judged.timed_out_share == 0.0


@pytest.mark.parametrize("name", ["some", "none", "skips"])
def test_a_completion_without_a_verdict_is_an_error_and_never_a_mean_of_the_others(rewards: Path, name: str) -> None:
    with pytest.raises(EvaluationError, match=r"--grader: sums: question '1' has a completion that it could not judge"):
        regrade([question()], reward(rewards, name))
    with pytest.raises(
        EvaluationError, match=r"--best-of: sums: question '1' has a completion that it could not judge"
    ):
        regrade([question()], RewardSum([RewardSpec("rewards.accuracy:accuracy")]), reward(rewards, name))


def test_a_grader_gives_shares_of_a_point(rewards: Path) -> None:
    with pytest.raises(EvaluationError, match=r"saw 2 for question '1'; expected values in \[0, 1\]"):
        regrade([question()], reward(rewards, "two"))


def test_time_outs_are_kept(rewards: Path) -> None:
    assert regrade([question()], reward(rewards, "slow"))[0].timed_out_share == 0.25


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "\n", encoding="utf-8")
    return path


def test_samples_are_texts_or_objects_and_line_separators_in_them_are_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "s.jsonl",
        {"question": "1+1?\u2028", "answer": 2, "samples": ["two\u2028", {"text": "2", "ok": True}]})
    (found,), recorded = read_samples(path, "ok")
    assert found.gold == "2" and [sample.text for sample in found.samples] == ["two\u2028", "2"]
    assert recorded == {"line-1": [None, True]}
    assert read_samples(path)[1] == {}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "answer": None, "samples": ["x"]}, ":1: TypeError: answer is None"),
        ({"question": "q", "answer": " ", "samples": ["x"]}, "answer is ' '"),
        ({"question": "q", "answer": "1", "samples": [{"text": None}]}, "must be text"),
        (
            {"question": "q", "answer": "1", "samples": [{"text": "x", "ok": "true"}]},
            "ok is 'true', expected true or false",
        ),
        ({"question": "q", "answer": "1", "samples": []}, "it has no samples"),
        ({"question": "q", "answer": "1", "samples": [{"text": "x", "good": True}]}, "no sample in"),
    ],
)
def test_what_is_no_sample_is_named_by_its_line(tmp_path: Path, row: dict[str, object], words: str) -> None:
    with pytest.raises(EvaluationError) as caught:
        read_samples(write(tmp_path / "s.jsonl", row), "ok")
    assert words in str(caught.value)
