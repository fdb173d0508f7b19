"""Graded samples -> avg@k, pass@k, maj@k and best@k with intervals over questions, and how often there was no answer.

The expectations over draws of k out of n samples are exact, in integers and fractions: no sampling noise comes on top
of that of the n samples, and maj@k for one k is consistent with that for the next. One more number of an evaluation: a
field of `Scores`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from eval.records import GradedQuestion
from rewards.clustering import entropy_of
from rl.runs.intervals import Interval, mean_with_interval


@dataclass(frozen=True, slots=True)
class Scores:
    """avg: mean accuracy over all n samples, the avg@k of every k. pass_at, maj_at, best_at: {k: interval}; best_at is
    empty where a sample has no value to be chosen by. num_samples: the least n of a question.

    truncated_share: of all completions; unparsable_share: without an answer although not truncated.
    mean_completion_tokens: None where not every sample's are known. semantic_entropy in nats, the normalised one in [0,
    1]: means over questions.
    """

    num_questions: int
    num_samples: int
    avg: Interval
    pass_at: Mapping[int, Interval]
    maj_at: Mapping[int, Interval]
    best_at: Mapping[int, Interval]
    truncated_share: float
    unparsable_share: float
    mean_completion_tokens: float | None
    semantic_entropy: float
    normalised_semantic_entropy: float


def score_questions(questions: Sequence[GradedQuestion], ks: Sequence[int]) -> Scores:
    """The numbers of one benchmark, for each k of `ks`.

    Raises: ValueError where there is no question, for a question without samples, and for a k outside 1..n of any
    question."""
    if not questions:
        raise ValueError("there is no graded question to score; expected at least one")
    for question in questions:
        _check_k(question, ks)
    samples = [sample for question in questions for sample in question.samples]
    tokens = [sample.num_tokens for sample in samples if sample.num_tokens is not None]
    has_values = all(sample.ranks_by is not None for sample in samples)
    return Scores(
        num_questions=len(questions), num_samples=min(len(question.samples) for question in questions),
        avg=mean_with_interval([question.accuracy for question in questions]),
        pass_at=_intervals([_pass(question, ks) for question in questions], ks),
        maj_at=_intervals([question_majority(question, ks) for question in questions], ks),
        best_at=_intervals([_best(question, ks) for question in questions], ks) if has_values else {},
        truncated_share=sum(sample.truncated for sample in samples) / len(samples),
        unparsable_share=sum(sample.answer is None and not sample.truncated for sample in samples) / len(samples),
        mean_completion_tokens=sum(tokens) / len(tokens) if len(tokens) == len(samples) else None,
        semantic_entropy=math.fsum(_entropy(question) for question in questions) / len(questions),
        normalised_semantic_entropy=math.fsum(normalised_entropy(question) for question in questions) / len(questions))


def curve_points(n: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to n, and n itself: the k at which curves are drawn; n >= 1."""
    return tuple(sorted({*(2 ** exponent for exponent in range(n.bit_length())), n}))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """1 - C(n-c, k) / C(n, k): the probability that k of the n samples, drawn without replacement, hold a right one
    (arXiv:2107.03374).

    Raises: ValueError unless 1 <= k <= n and 0 <= c <= n."""
    _check_draw(num_samples, k)
    if not 0 <= num_correct <= num_samples:
        raise ValueError(
            f"{num_correct} of {num_samples} samples are said to be right; expected a number from 0 to {num_samples}")
    return float(1 - Fraction(math.comb(num_samples - num_correct, k), math.comb(num_samples, k)))


def best_at_k(values: Sequence[float], correct: Sequence[float], k: int) -> float:
    """E[verdict of the sample with the highest value among k of the n, drawn without replacement]; of tied ones, their
    mean verdict.

    Args: values, correct: [n]. With the verdicts as values it is the expected best verdict: pass@k for verdicts of 0
    and 1.
    Raises: ValueError unless 1 <= k <= n."""
    _check_draw(len(values), k)
    tied: dict[float, list[float]] = defaultdict(list)
    for value, verdict in zip(values, correct, strict=True):
        tied[value].append(verdict)
    total, num_below = Fraction(0), 0
    for value in sorted(tied):
        # The highest is in this group when all k are from it or below, and not all from below; which of its members, is
        # symmetric.
        num_draws = math.comb(num_below + len(tied[value]), k) - math.comb(num_below, k)
        total += num_draws * _mean(tied[value])
        num_below += len(tied[value])
    return float(total / math.comb(len(values), k))


def majority_at_k(labels: Sequence[int], answered: Sequence[bool], correct: Sequence[float], k: int) -> float:
    """E[accuracy of the largest answered cluster among k of the n samples, drawn without replacement]; ties: the mean
    over the tied ones.

    A draw without an answer counts 0. A cluster's accuracy is the mean verdict of its members (they need not agree:
    equivalence is not quite transitive); the mean over those drawn alone has the same expectation. maj@1 is the mean
    over samples of answered * correct.

    Args: labels, answered, correct: [n]; a label names a cluster, its value does not matter; members are all answered
    or none is.
    Raises: ValueError unless 1 <= k <= n."""
    return majority_curve(labels, answered, correct, (k,))[0]


def majority_curve(
    labels: Sequence[int], answered: Sequence[bool], correct: Sequence[float], ks: Sequence[int]
) -> tuple[float, ...]:
    """`majority_at_k` for each k of `ks`, in much less time than one after the other."""
    for k in ks:
        _check_draw(len(labels), k)
    verdicts: dict[int, list[float]] = defaultdict(list)
    for label, is_answered, verdict in zip(labels, answered, correct, strict=True):
        if is_answered:
            verdicts[label].append(verdict)
    sizes = sorted(len(members) for members in verdicts.values())
    totals = [Fraction(0)] * len(ks)
    # A cluster of wrong answers adds nothing: of most questions one cluster is left.
    for members in verdicts.values():
        if accuracy := _mean(members):
            rivals = tuple(sizes[:(place := sizes.index(len(members)))] + sizes[place + 1:])
            weights = _majority_weights(len(members), rivals, len(labels) - sum(sizes), tuple(ks))
            totals = [total + weight * accuracy for total, weight in zip(totals, weights, strict=True)]
    return tuple(float(total) for total in totals)


def question_majority(question: GradedQuestion, ks: Sequence[int]) -> tuple[float, ...]:
    """maj@k of one question for each k of `ks`, in [0, 1]."""
    samples = question.samples
    return majority_curve([sample.cluster for sample in samples], [sample.answer is not None for sample in samples],
                          [sample.correct for sample in samples], ks)


def normalised_entropy(question: GradedQuestion) -> float:
    """Semantic entropy / ln n, in [0, 1]; 0 for one sample."""
    return _entropy(question) / math.log(len(question.samples)) if len(question.samples) > 1 else 0.0


# Questions share their weights, which depend on the sizes of the clusters alone: most questions have one of a few
# patterns.
@lru_cache(maxsize=16384)
def _majority_weights(
    own: int, others: tuple[int, ...], num_unanswered: int, ks: tuple[int, ...]
) -> tuple[Fraction, ...]:
    """Probability that a cluster of size `own` is the majority of a draw, for each k; a tie among t clusters gives each
    1/t of it.

    others: sizes of the other answered clusters. Draws are counted by generating functions. The cluster gives j
    members, C(own, j) ways; each other one gives fewer (x counts those members), or j too and then ties (z counts those
    clusters); samples without an answer, and clusters smaller than j, give any number: (1 + x)^all of them. The
    coefficient of z^t x^(k - j - t j) is the number of draws with t others tied, and they count 1 / (t + 1).

    Polynomials are integers with `width` bits per coefficient, x = 2^width, z = x^z_place: Python multiplies those
    fast, and nothing carries over, because all coefficients together are at most 2^n and the degree in x is less than
    z_place.
    """
    n = own + sum(others) + num_unanswered
    width = n + 1
    totals = [Fraction(0)] * len(ks)
    for j in range(1, min(own, max(ks, default=0)) + 1):
        rivals = Counter(size for size in others if size >= j)
        num_free = num_unanswered + sum(size for size in others if size < j)
        z_place = num_free + (j - 1) * rivals.total() + 1
        product = (1 + (1 << width)) ** num_free
        for size, count in rivals.items():
            fewer = sum(math.comb(size, i) << width * i for i in range(j))
            product *= (fewer + (math.comb(size, j) << width * z_place)) ** count
        for index, k in enumerate(ks):
            for num_tied in range(min(k // j, rivals.total() + 1)):
                x_place = k - j - num_tied * j
                if x_place < z_place:
                    coefficient = product >> width * (num_tied * z_place + x_place) & (1 << width) - 1
                    totals[index] += Fraction(math.comb(own, j) * coefficient, num_tied + 1)
    return tuple(total / math.comb(n, k) for total, k in zip(totals, ks, strict=True))


def _pass(question: GradedQuestion, ks: Sequence[int]) -> list[float]:
    """pass@k; for graders that also give parts of a point, the expected best verdict."""
    verdicts = [sample.correct for sample in question.samples]
    if all(verdict in (0.0, 1.0) for verdict in verdicts):
        return [pass_at_k(len(verdicts), round(sum(verdicts)), k) for k in ks]
    return [best_at_k(verdicts, verdicts, k) for k in ks]


def _best(question: GradedQuestion, ks: Sequence[int]) -> list[float]:
    values = [sample.ranks_by for sample in question.samples if sample.ranks_by is not None]
    return [best_at_k(values, [sample.correct for sample in question.samples], k) for k in ks]


def _intervals(scores: Sequence[Sequence[float]], ks: Sequence[int]) -> dict[int, Interval]:
    """scores: [questions, ks]."""
    return {k: mean_with_interval([row[place] for row in scores]) for place, k in enumerate(ks)}


def _entropy(question: GradedQuestion) -> float:
    return entropy_of([sample.cluster for sample in question.samples])


def _mean(verdicts: Sequence[float]) -> Fraction:
    return sum((Fraction(verdict) for verdict in verdicts), Fraction(0)) / len(verdicts)


def _check_draw(n: int, k: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(
            f"k is {k} with {n} samples; expected 1 <= k <= {n}, because k samples are drawn without replacement")


def _check_k(question: GradedQuestion, ks: Sequence[int]) -> None:
    n = len(question.samples)
    if n == 0:
        raise ValueError(f"question {question.id!r} of {question.benchmark} has no samples; expected at least one")
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(
                f"k is {k}, and question {question.id!r} of {question.benchmark} has {n} samples; expected 1 <= k <= "
                f"{n}. Remedy: "
                + ("a k of at least 1" if k < 1 else "a smaller k, or sample each question more often"))
