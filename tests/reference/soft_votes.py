"""RESTRAIN's pseudo-label weighting (arXiv:2510.02172), letter by letter: one GRPO problem per candidate answer."""

from __future__ import annotations

import math
from collections.abc import Sequence


def reference_soft_votes(answers: Sequence[str | None], sharpness: float) -> list[float]:
    """[G] advantages without division by a deviation: the weighted sum, over the candidates, of what each gives as the
    only label. The shaping is a Gaussian around 1, where all agree."""
    size = len(answers)
    candidates = sorted({answer for answer in answers if answer is not None})
    shaped = {}
    for candidate in candidates:
        frequency = sum(answer == candidate for answer in answers) / size
        shaped[candidate] = math.exp(-((1 - frequency) ** 2) / (2 * sharpness**2))
    advantages = [0.0] * size
    for candidate in candidates:
        weight = shaped[candidate] / sum(shaped.values())
        rewards = [1.0 if answer == candidate else 0.0 for answer in answers]
        for i in range(size):
            advantages[i] += weight * (rewards[i] - sum(rewards) / size)
    return advantages
