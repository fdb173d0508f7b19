"""Answers that only game agreement: the question copied, or text without end. They count as unanswered and agree with
nobody."""

from __future__ import annotations

import pytest

from rewards.accuracy import accuracy
from rewards.contract import GroupScore
from rewards.extraction import extract_all
from rewards.guards import Guarded, copies_question, refuse
from rewards.loading import load

QUESTION = "What is 17 + 25?"
COPY = r"\boxed{What is 17+25}"
COMPLETIONS = [COPY, COPY, COPY, r"\boxed{42}", r"\boxed{42}", r"\boxed{7}"]
USES = ["rewards.semantic_entropy:semantic_entropy", "rewards.majority:majority_vote"]
EVERY_USE = [*USES, "rewards.majority:soft_votes"]


def call(use: str, **arguments: object) -> GroupScore:
    score = load(use)(question=QUESTION, completions=list(COMPLETIONS), answer=None, **arguments)
    assert isinstance(score, GroupScore)
    return score


@pytest.mark.parametrize(
    ("answer", "question", "is_copy"),
    [
        ("What is 17 + 25?", QUESTION, True), ("what is\n17+25", QUESTION, True),
        ("so what is 17 + 25? I wonder", QUESTION, True), ("42", QUESTION, False), ("17 + 25", QUESTION, False),
        ("19+28=47", "19+28=?", True), ("47", "19+28=?", False), ("7", "7", False), ("7", "7?", False),
        ("x^2 + 1", "Simplify x^2 + 1", False), ("", "", False), ("anything", "", False),
        ("十七加二十五是多少", "十七加二十五是多少？", True),
    ],
)
def test_a_copy_holds_the_whole_question(answer: str, question: str, is_copy: bool) -> None:
    assert copies_question(answer, question) == is_copy


def guarded(completions: list[str], **settings: object) -> Guarded:
    return refuse(completions, extract_all(completions), QUESTION, **settings)  # type: ignore[arg-type]


def test_refused_answers_are_none_and_the_shares_say_how_many() -> None:
    completions = [r"\boxed{42}", COPY, r"\boxed{111111111}", "none"]
    both = guarded(completions, copied_question=True, max_answer_length=8)
    assert both.answers == ["42", None, None, None]
    assert both.metrics == {"copied_question_share": 0.25, "long_answer_share": 0.5}
    neither = guarded(completions)
    assert [answer is None for answer in neither.answers] == [False, False, False, True]
    assert neither.metrics == {"copied_question_share": 0.25, "long_answer_share": 0.0}
    with pytest.raises(ValueError, match="max_answer_length is 0"):
        guarded(completions, max_answer_length=0)


@pytest.mark.parametrize(
    "completion",
    [
        COPY,
        r"\boxed{\text{What is 17 + 25?}}",
        "#### What is 17+25?",
        "<answer>What is 17 + 25</answer>",
        "The answer is: what is 17 + 25?",
    ],
)
def test_a_copy_is_seen_whatever_extraction_makes_of_it(completion: str) -> None:
    """It cuts sentences down to the value that they state, and 17+25 would count as 42."""
    assert guarded([completion], copied_question=True).answers == [None]


@pytest.mark.parametrize("completion", [
    r"What is 17 + 25? \boxed{42}", "\\boxed{42}\n\nWhat is 17 + 25?", "What is 17 + 25?\n#### 42\nWhat is 17 + 25?",
])
def test_the_question_before_or_behind_the_answer_is_no_copy(completion: str) -> None:
    assert guarded([completion], copied_question=True).answers == ["42"]


@pytest.mark.parametrize("use", EVERY_USE)
def test_without_the_guard_the_copies_win(use: str) -> None:
    score = call(use)
    values = [value for value in score.scores if value is not None]
    assert values[0] == max(values) > values[5]
    assert score.metrics["copied_question_share"] == 0.5


def test_with_the_guard_copies_get_nothing_and_agree_with_nobody() -> None:
    empo, vote = (call(use, refuse_copied_question=True) for use in USES)
    assert empo.scores == pytest.approx([0, 0, 0, 2 / 6, 2 / 6, 1 / 6])
    assert vote.scores == [0, 0, 0, 1, 1, 0]
    for score in (empo, vote):
        assert score.labels is not None and score.answers == [None, None, None, "42", "42", "7"]
        assert len(set(score.labels)) == 5, "each copy is a cluster of its own"
        assert score.metrics["unparsable_share"] == 0.5
        assert score.metrics["copied_question_share"] == 0.5


@pytest.mark.parametrize("use", EVERY_USE)
def test_long_answers_are_refused_by_their_characters(use: str) -> None:
    score = call(use, max_answer_length=2)
    assert score.scores[:3] == [0, 0, 0] and score.scores[3] != 0
    assert score.metrics["long_answer_share"] == 0.5


def test_an_unevaluated_copy_of_the_question_is_right_unless_the_guard_refuses_it() -> None:
    completions = [r"\boxed{17+25}", r"\boxed{42}", r"\boxed{40+2}", r"\boxed{43}"]
    for refused, expected in ((False, [1, 1, 1, 0]), (True, [0, 1, 1, 0])):
        score = accuracy(completions=completions, answer="42", question="17 + 25 = ?", refuse_copied_question=refused)
        assert score.scores == expected
        assert score.metrics["copied_question_share"] == 0.25
