"""The founder rule and the semantic entropy, literally as algorithms are written down: slow, for comparison only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


def founder_labels(answers: Sequence[str | None], equal: Callable[[str, str], bool]) -> list[int]:
    labels: list[int] = []
    founders: list[str | None] = []
    for answer in answers:
        for label, founder in enumerate(founders):
            if answer is not None and founder is not None and equal(founder, answer):
                labels.append(label)
                break
        else:
            labels.append(len(founders))
            founders.append(answer)
    return labels


def entropy(labels: Sequence[int]) -> float:
    total = 0.0
    for label in set(labels):
        p = list(labels).count(label) / len(labels)
        total -= p * math.log(p)
    return total
