"""How far a group's vote is to be believed, by what its question's majority answer did at earlier visits: a weight for
its advantages (TTRL-Guard, arXiv:2605.19444, its flip-rate-aware reward scaling).

w = max(0.1, alpha * gamma * delta), from the last W visits of the question, this one included:
alpha = 1 - unstable * FR, with the flip rate FR = share of those visits whose majority answer is not that of the visit
before; gamma = 1 - contradiction where FR is above max_flip_rate although more than min_agreement of the group agree;
delta = 1 - contradiction / 2 for a question that has never flipped and whose last W groups agreed by more than
min_agreement on average: it may be locked on a wrong answer. delta acts from the W-th visit on, W times, so that a
question that is right all along is not held back for ever. The conditions of gamma and delta and the floor are those of
the paper's code; its other two mechanisms are left out.

Answers are equal where their stripped texts are, as for collapse/majority_flip_share. A tie is no majority: such a
visit leaves no trace, and its group gets what the question's past says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from rl.config import FlipsSection
from rl.records import ScoredGroup
from rl.runs.watchdog import majority_answer

LOWEST_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Visits:
    """Of one question. answers, shares: the majority answer of the last visits, at most W + 1, and the share of the
    group that gave it. count: of all visits. has_flipped: ever."""

    answers: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    count: int = 0
    has_flipped: bool = False

    def plus(self, answer: str, share: float, window: int) -> Visits:
        return Visits(
            (*self.answers, answer)[-(window + 1):], (*self.shares, share)[-(window + 1):], self.count + 1,
            self.has_flipped or (bool(self.answers) and self.answers[-1] != answer))

    def flip_rate(self) -> float:
        """In [0, 1], over the visits kept; 0 before the second."""
        flips = [earlier != later for earlier, later in pairwise(self.answers)]
        return sum(flips) / len(flips) if flips else 0.0

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Self:
        answers, shares, count, has_flipped = value
        return cls(tuple(answers), tuple(shares), count, has_flipped)


class FlipMemory:
    """What the run remembers of its questions' majorities; part of a checkpoint."""

    def __init__(self, settings: FlipsSection) -> None:
        self._settings = settings
        self._visits: dict[str, Visits] = {}

    def weights(self, groups: Sequence[ScoredGroup], fresh: Collection[int]) -> list[float]:
        """w of each group; 1 of anchors. fresh: ids (`id(group)`) of those whose visit is not noted yet."""
        return [self._weight(group, id(group) in fresh) for group in groups]

    def note(self, groups: Sequence[ScoredGroup]) -> None:
        """The visits of a step that is trained on; anchors and groups that nobody judged leave no trace."""
        for group in groups:
            self._visits[group.group.question.id] = self._with(group)

    def to_json(self) -> dict[str, Any]:
        return {question: [list(v.answers), list(v.shares), v.count, v.has_flipped]
                for question, v in self._visits.items() if v.count}

    def load(self, value: Mapping[str, Any]) -> None:
        """The inverse of to_json."""
        self._visits = {question: Visits.from_json(visits) for question, visits in value.items()}

    def _with(self, group: ScoredGroup) -> Visits:
        """The question's visits, the group's among them where it has a majority."""
        past = self._visits.get(group.group.question.id, Visits())
        answer = None if group.is_anchor or group.skipped else majority_answer(group)
        if answer is None:
            return past
        return past.plus(answer, group.largest_cluster / len(group.rewards), self._settings.window)

    def _weight(self, group: ScoredGroup, is_fresh: bool) -> float:
        settings = self._settings
        visits = self._with(group) if is_fresh else self._visits.get(group.group.question.id, Visits())
        if group.is_anchor or not visits.count:
            return 1.0
        rate, recent = visits.flip_rate(), visits.shares[-settings.window:]
        weight = 1 - settings.unstable * rate
        if rate > settings.max_flip_rate and visits.shares[-1] > settings.min_agreement:
            weight *= 1 - settings.contradiction
        is_locked = not visits.has_flipped and sum(recent) / len(recent) > settings.min_agreement
        if is_locked and settings.window <= visits.count < 2 * settings.window:
            weight *= 1 - settings.contradiction / 2
        return max(LOWEST_WEIGHT, weight)
