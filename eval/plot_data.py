"""Graded questions -> the numbers that eval/plots.py draws; kept apart so that they can be checked without looking at
pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.records import GradedQuestion, Sample
from eval.scoring import curve_points, normalised_entropy, question_majority, score_questions
from rl.runs.intervals import Interval, mean_with_interval

RIGHT, WRONG, TRUNCATED, NO_ANSWER = VERDICTS = ("right", "wrong", "truncated", "no answer")
NUM_ENTROPY_BINS = 5
NUM_LENGTH_BINS = 40


@dataclass(frozen=True, slots=True)
class EntropyBin:
    """Questions with low <= H / ln n < high (the last bin holds 1 too). accuracy: avg@n, majority: maj@n, with 95%
    intervals."""

    low: float
    high: float
    num_questions: int
    accuracy: Interval
    majority: Interval


@dataclass(frozen=True, slots=True)
class LengthHistogram:
    """edges: [bins + 1], from 0 to the longest completion. counts: {verdict: [bins]}, of completions."""

    unit: Literal["tokens", "characters"]
    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]


def sample_curves(questions: Sequence[GradedQuestion]) -> dict[str, dict[int, Interval]]:
    """{"pass@k", "maj@k", and "best@k" where there is a reward to choose by: {k: interval}}; k up to the fewest samples
    of a question."""
    scores = score_questions(questions, curve_points(min(len(question.samples) for question in questions)))
    curves = {"pass@k": scores.pass_at, "maj@k": scores.maj_at, "best@k": scores.best_at}
    return {name: dict(curve) for name, curve in curves.items() if curve}


def entropy_bins(questions: Sequence[GradedQuestion]) -> list[EntropyBin]:
    """Equally wide bins of the normalised entropy, those without a question left out."""
    members: list[list[GradedQuestion]] = [[] for _ in range(NUM_ENTROPY_BINS)]
    for question in questions:
        members[min(int(normalised_entropy(question) * NUM_ENTROPY_BINS), NUM_ENTROPY_BINS - 1)].append(question)
    return [
        EntropyBin(
            index / NUM_ENTROPY_BINS, (index + 1) / NUM_ENTROPY_BINS, len(group),
            mean_with_interval([question.accuracy for question in group]),
            mean_with_interval([question_majority(question, (len(question.samples),))[0] for question in group]))
        for index, group in enumerate(members) if group
    ]


def length_histogram(questions: Sequence[GradedQuestion]) -> LengthHistogram:
    """In tokens, or in characters where the tokens of some completion are not known."""
    samples = [sample for question in questions for sample in question.samples]
    tokens = [sample.num_tokens for sample in samples if sample.num_tokens is not None]
    is_counted = len(tokens) == len(samples)
    lengths = tokens if is_counted else [len(sample.text) for sample in samples]
    edges = np.linspace(0.0, max(1, max(lengths)), NUM_LENGTH_BINS + 1)
    of_verdict: dict[str, list[int]] = {verdict: [] for verdict in VERDICTS}
    for sample, length in zip(samples, lengths, strict=True):
        of_verdict[verdict_of(sample)].append(length)
    return LengthHistogram(
        "tokens" if is_counted else "characters", tuple(edges.tolist()),
        {verdict: tuple(np.histogram(own, bins=edges)[0].tolist()) for verdict, own in of_verdict.items()})


def verdict_of(sample: Sample) -> str:
    """Each completion has one: right (from half a point on), however it ended; else truncated, else without an answer,
    else wrong."""
    if sample.correct >= 0.5:
        return RIGHT
    if sample.truncated:
        return TRUNCATED
    return NO_ANSWER if sample.answer is None else WRONG
