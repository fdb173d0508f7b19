"""One number per question -> their mean with a bootstrap interval over questions.

The resampled unit is the question, not the completion: completions of one question are not independent, and counting
them as if they were makes intervals too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Bounds the table of drawn indices to 16 MB, however many questions there are.
_MAX_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the two ends of its confidence interval; low <= value <= high."""

    value: float
    low: float
    high: float


def mean_with_interval(
    values_per_question: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """mean(v), and the (1 - confidence) / 2 and (1 + confidence) / 2 quantiles of the means of resampled questions
    (percentile bootstrap).

    Args: values_per_question: one finite value per question. resamples: how often as many questions are drawn,
        with replacement.
    Returns: the same interval for the same arguments. One question, or equal values, give an interval of width 0: that
        is what resampling them can say, not that there is no uncertainty.
    Raises: ValueError if there is no value, one is not finite, or confidence is outside (0, 1).
    """
    values = np.asarray(values_per_question, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(
            f"an interval needs a list of at least one value, one per question; the shape given is {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"the value of question {int(np.flatnonzero(~np.isfinite(values))[0])} is not finite")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; it must be at least 1")
    value = math.fsum(values) / values.size
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, _MAX_DRAWS_AT_ONCE // values.size)
    means = np.concatenate(
        [
            values[generator.integers(0, values.size, size=(min(rows_at_once, resamples - start), values.size))].mean(
                axis=1)
            for start in range(0, resamples, rows_at_once)])
    tail = (1.0 - confidence) / 2.0
    low, high = (float(end) for end in np.quantile(means, [tail, 1.0 - tail]))
    # Rounding in the resampled means must not put the ends on the wrong side of the value when all values are equal.
    return Interval(value=value, low=min(low, value), high=max(high, value))
