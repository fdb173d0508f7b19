"""The bootstrap interval against a literal loop and against the normal approximation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from rl.runs.intervals import Interval, mean_with_interval


def literal_bootstrap(values: list[float], confidence: float, resamples: int) -> tuple[float, float]:
    generator = random.Random(11)
    means = sorted(sum(generator.choice(values) for _ in values) / len(values) for _ in range(resamples))
    tail = (1 - confidence) / 2
    return means[round(tail * (resamples - 1))], means[round((1 - tail) * (resamples - 1))]


def test_interval_equals_a_literal_bootstrap_up_to_sampling_noise() -> None:
    generator = random.Random(3)
    values = [generator.choice([0.0, 0.125, 0.5, 1.0]) for _ in range(40)]
    interval = mean_with_interval(values, confidence=0.9, resamples=8000)
    low, high = literal_bootstrap(values, 0.9, 8000)
    width = interval.high - interval.low
    assert interval.low == pytest.approx(low, abs=0.05 * width)
    assert interval.high == pytest.approx(high, abs=0.05 * width)


def test_interval_is_the_normal_one_for_many_questions() -> None:
    values = [float(index % 4 == 0) for index in range(1000)]
    interval = mean_with_interval(values, resamples=4000)
    half_width = 1.96 * math.sqrt(0.25 * 0.75 / 1000)
    assert interval.value == 0.25
    assert interval.low == pytest.approx(0.25 - half_width, abs=0.1 * half_width)
    assert interval.high == pytest.approx(0.25 + half_width, abs=0.1 * half_width)


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for seed in range(200):
        interval = mean_with_interval((generator.binomial(8, 0.4, size=100) / 8).tolist(), resamples=300, seed=seed)
        covered += interval.low <= 0.4 <= interval.high
    assert 180 <= covered <= 199


def test_same_seed_same_interval_and_another_seed_another() -> None:
    values = [0.0, 0.1, 0.4, 0.9, 1.0, 0.3]
    assert mean_with_interval(values, seed=1) == mean_with_interval(values, seed=1)
    assert mean_with_interval(values, seed=1) != mean_with_interval(values, seed=2)


def test_equal_values_and_one_question_give_width_zero() -> None:
    equal = mean_with_interval([0.1] * 7)
    assert equal.low <= equal.value == 0.1 <= equal.high
    assert equal.high - equal.low < 1e-15
    assert mean_with_interval([0.75]) == Interval(0.75, 0.75, 0.75)


def test_many_questions_are_drawn_in_blocks_without_changing_the_mean() -> None:
    values = np.arange(30_001) % 2 * 1.0
    before = values.copy()
    interval = mean_with_interval(values.tolist(), resamples=100)
    assert interval.low < interval.value < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(30_001), rel=0.4)
    assert (values == before).all()


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        mean_with_interval([])
    with pytest.raises(ValueError, match="question 1 is not finite"):
        mean_with_interval([0.0, math.nan])
    with pytest.raises(ValueError, match=r"confidence is 95"):
        mean_with_interval([0.0, 1.0], confidence=95)
    with pytest.raises(ValueError, match="resamples is 0"):
        mean_with_interval([0.0, 1.0], resamples=0)
