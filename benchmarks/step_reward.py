"""A reward under which every group trains, so that a timed step is the same work for a trainer that skips equal
rewards."""

from __future__ import annotations

from rewards.accuracy import accuracy
from rewards.contract import GroupScore

POSITION_BONUS = 0.001


def accuracy_and_position(*, completions: list[str], answer: str, **columns: object) -> GroupScore:
    """r_i = accuracy + 0.001 i: arbitrary, but no two rewards of a group are equal, whatever was sampled."""
    graded = accuracy(completions=completions, answer=answer)
    scores = [None if score is None else score + POSITION_BONUS * i for i, score in enumerate(graded.scores)]
    return GroupScore(scores=scores, answers=graded.answers)


accuracy_and_position.needs_answer = True  # type: ignore[attr-defined]
