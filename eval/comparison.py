"""Two evaluations of one benchmark -> the difference, what chance alone would give, and which questions changed.

Paired question by question: that some questions are harder than others is in both evaluations and cancels, so that far
smaller differences show than by comparing two intervals. The test flips signs (a randomisation test): if A and B were
the same, each question's difference would be as likely the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.records import GradedQuestion
from eval.scoring import question_majority
from rewards.errors import UserError
from rl.runs.intervals import Interval, mean_with_interval

SIGNIFICANCE = 0.05
MOST_ENUMERATED = 16
"""With so many differences that are not 0, all 2^16 assignments of signs are looked at; with more, drawn ones."""
NUM_DRAWN = 20_000
# 2 / 2^5 is more than 0.05: five questions that all changed the same way are not beyond chance.
_FEWEST_CHANGED = 6
# The two-sided test at 0.05, and a power of 80%: (1.960 + 0.842)^2.
_POWER_FACTOR = 7.849
_MAX_SIGNS_AT_ONCE = 4_000_000


class ComparisonError(UserError):
    """Two evaluations that cannot be compared; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Flip:
    """A question whose majority answer (for one sample: whose answer) is right in one evaluation alone. accuracy_a,
    accuracy_b: avg@n."""

    id: str
    question: str
    accuracy_a: float
    accuracy_b: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """accuracy_a, accuracy_b: avg@n over the num_questions that both have. difference: B - A in points (0 to 100), with
    a paired 95% interval.

    p_value: two-sided, is_exact where all signs were enumerated. gained: right in B alone, lost: right in A alone.
    only_a, only_b: ids.
    num_needed: how many questions would show a difference like this one in 80% of such comparisons, roughly; None where
    there is none.
    """

    benchmark: str
    num_questions: int
    num_samples_a: int
    num_samples_b: int
    accuracy_a: float
    accuracy_b: float
    difference: Interval
    p_value: float
    is_exact: bool
    gained: tuple[Flip, ...]
    lost: tuple[Flip, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    num_needed: int | None

    @property
    def points_per_question(self) -> float:
        """What one question more is worth."""
        return 100.0 / self.num_questions

    @property
    def half_width(self) -> float:
        """Of the difference's interval, in points: differences below it drown in the choice of questions."""
        return (self.difference.high - self.difference.low) / 2

    @property
    def is_shown(self) -> bool:
        return self.p_value < SIGNIFICANCE

    @property
    def is_too_small(self) -> bool:
        """There is a difference, chance would often give one like it, and more questions than these are needed to
        tell."""
        return not self.is_shown and self.num_needed is not None and self.num_needed > self.num_questions

    @property
    def verdict(self) -> str:
        if self.is_shown:
            return "B is better" if self.difference.value > 0 else "B is worse"
        return "too few questions" if self.is_too_small else "no difference shown"


def compare_questions(a: Sequence[GradedQuestion], b: Sequence[GradedQuestion], *, seed: int = 0) -> Comparison:
    """Pair by question id. Args: a, b: all questions of one benchmark. seed: of the resampled questions and the drawn
    signs.

    Raises: ComparisonError where no question is in both, an id stands twice on one side, or names different questions
    on the two."""
    of_a, of_b = _by_id(a, "A"), _by_id(b, "B")
    pairs = [(question, of_b[question.id]) for question in a if question.id in of_b]
    if not pairs:
        raise ComparisonError(
            f"no question is in both: A has {len(a)} ({_some(of_a)}), B has {len(b)} ({_some(of_b)})",
            where=_benchmark(a, b), remedy="evaluate both on the same questions")
    for left, right in pairs:
        if (left.question, left.gold) != (right.question, right.gold):
            raise ComparisonError(
                f"question {left.id!r} is {left.question[:60]!r} with the answer {left.gold!r} in A, and "
                f"{right.question[:60]!r} with the answer {right.gold!r} in B", where=left.benchmark,
                remedy="evaluate both on the same data")
    points = [100.0 * (right.accuracy - left.accuracy) for left, right in pairs]
    p_value, is_exact = sign_flip_test(points, seed=seed)
    flips = [
        (Flip(left.id, left.question, left.accuracy, right.accuracy), _is_right(left), _is_right(right))
        for left, right in pairs]
    return Comparison(
        benchmark=pairs[0][0].benchmark, num_questions=len(pairs),
        num_samples_a=min(len(left.samples) for left, _ in pairs),
        num_samples_b=min(len(right.samples) for _, right in pairs),
        accuracy_a=math.fsum(left.accuracy for left, _ in pairs) / len(pairs),
        accuracy_b=math.fsum(right.accuracy for _, right in pairs) / len(pairs),
        difference=mean_with_interval(points, seed=seed), p_value=p_value, is_exact=is_exact,
        gained=tuple(flip for flip, was_right, is_right in flips if is_right and not was_right),
        lost=tuple(flip for flip, was_right, is_right in flips if was_right and not is_right),
        only_a=tuple(name for name in of_a if name not in of_b),
        only_b=tuple(name for name in of_b if name not in of_a), num_needed=questions_needed(points))


def sign_flip_test(differences: Sequence[float], *, seed: int = 0) -> tuple[float, bool]:
    """Probability that random signs put the mean at least as far from 0 as it is: (p, whether all signs were
    enumerated).

    With more than MOST_ENUMERATED differences that are not 0, NUM_DRAWN assignments are drawn, and p = (hits + 1) /
    (draws + 1): the seen assignment is one of them. No difference at all gives 1."""
    values = np.asarray([difference for difference in differences if difference != 0.0], dtype=np.float64)
    seen = abs(math.fsum(values))
    # Sums of the same numbers in another order differ by rounding, and equal ones count as at least as far.
    bound = seen - 1e-9 * float(np.abs(values).sum())
    if values.size <= MOST_ENUMERATED:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= bound)), True
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, _MAX_SIGNS_AT_ONCE // values.size)
    hits = 0
    for start in range(0, NUM_DRAWN, rows_at_once):
        signs = (
            generator.integers(0, 2, size=(min(rows_at_once, NUM_DRAWN - start), values.size), dtype=np.int8) * 2 - 1)
        hits += int(np.count_nonzero(np.abs(signs @ values) >= bound))
    return (hits + 1) / (NUM_DRAWN + 1), False


def questions_needed(differences: Sequence[float]) -> int | None:
    """(z_0.975 + z_0.8)^2 var(d) / mean(d)^2: how many such questions show such a difference with a power of 80%, by
    the normal approximation; at least as many as a sign-flip test needs to reach 0.05 at all. None without a
    difference, or with one question."""
    # Accuracies that add up to the same leave a rest of rounding, which is no difference.
    rounding = 1e-9 * math.fsum(map(abs, differences))
    if len(differences) < 2 or abs(total := math.fsum(differences)) <= rounding:
        return None
    mean = total / len(differences)
    variance = math.fsum((difference - mean) ** 2 for difference in differences) / (len(differences) - 1)
    share_changed = sum(difference != 0.0 for difference in differences) / len(differences)
    return math.ceil(max(_POWER_FACTOR * variance / mean ** 2, _FEWEST_CHANGED / share_changed))


def _is_right(question: GradedQuestion) -> bool:
    """A tie of right and wrong is not right. A single sample has no majority: its verdict counts, whether or not an
    answer was read."""
    num_samples = len(question.samples)
    return (question.accuracy if num_samples == 1 else question_majority(question, (num_samples,))[0]) > 0.5


def _by_id(questions: Sequence[GradedQuestion], side: str) -> dict[str, GradedQuestion]:
    found = {question.id: question for question in questions}
    if len(found) < len(questions):
        twice = next(
            question
            for index, question in enumerate(questions)
            if question.id in {other.id for other in questions[:index]})
        raise ComparisonError(
            f"question {twice.id!r} stands twice in {side}", where=twice.benchmark, expected="each id once")
    return found


def _benchmark(a: Sequence[GradedQuestion], b: Sequence[GradedQuestion]) -> str:
    return next((question.benchmark for question in (*a, *b)), "this benchmark")


def _some(ids: dict[str, GradedQuestion]) -> str:
    return ", ".join(list(ids)[:3]) + (", ..." if len(ids) > 3 else "") or "none"
