"""Into which clusters G answers fall, and what entropy thresholds do with each split: which groups a run's bounds
refuse.

A split of 8 answers is written 5+2+1: five agree, two others agree, one stands alone. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rewards.clustering import entropy_of
from rl.selection import ROUNDING

Split = tuple[int, ...]
"""Sizes of the clusters, largest first."""
LARGEST_TABLE = 32  # answers; they split in 8,349 ways


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the bounds do with each split of G answers, by rising entropy. penalised: without consensus, whatever the
    bounds say."""

    too_low: tuple[Split, ...]
    trained: tuple[Split, ...]
    too_high: tuple[Split, ...]
    penalised: tuple[Split, ...] = ()


def thresholds(
    num_answers: int, low: float | None, high: float | None, min_votes: int | None = None
) -> Thresholds:
    """low, high: exclusive bounds on H / ln G; min_votes: of the largest cluster; as in selection."""
    everything = sorted(splits(num_answers), key=lambda split: (normalised_entropy(split), split))
    penalised = tuple(split for split in everything if min_votes is not None and split[0] < min_votes)
    ordered = [split for split in everything if split not in penalised]
    values = {split: normalised_entropy(split) for split in ordered}
    too_low = tuple(split for split in ordered if low is not None and values[split] <= low + ROUNDING)
    too_high = tuple(split for split in ordered if high is not None and values[split] >= high - ROUNDING)
    refused = {*too_low, *too_high}
    return Thresholds(too_low, tuple(split for split in ordered if split not in refused), too_high, penalised)


def acting(num_answers: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """((lowest, next), (next, highest)): the entropies between which a low and a high bound refuse exactly one split
    whose answers agree unequally: all but one agree, all but two differ. At least 5 answers."""
    ones = (1,) * (num_answers - 4)
    (lowest, above), (below, highest) = (
        (normalised_entropy(first), normalised_entropy(second)) for first, second in (
            ((num_answers - 1, 1), (num_answers - 2, 2)), ((2, 2, *ones), (2, 1, 1, *ones))))
    return (lowest, above), (below, highest)


def splits(num_answers: int, largest: int | None = None) -> Iterator[Split]:
    """All partitions of the number, each with its largest part first."""
    if num_answers == 0:
        yield ()
    for first in range(min(num_answers, largest or num_answers), 0, -1):
        for rest in splits(num_answers - first, first):
            yield (first, *rest)


def normalised_entropy(split: Split) -> float:
    """H / ln G, in [0, 1]; 0 for a group of one."""
    labels = [number for number, size in enumerate(split) for _ in range(size)]
    return entropy_of(labels) / math.log(len(labels)) if len(labels) > 1 else 0.0


def has_equal_shares(split: Split) -> bool:
    """Whether each answer has as many that agree as any other: a reward of agreement is then equal for all."""
    return len(set(split)) == 1


def describe(num_answers: int, low: float | None, high: float | None, min_votes: int | None = None) -> str:
    """For people: which splits each bound refuses, and which train. min_votes: as in selection; what has fewer trains
    too."""
    if num_answers > LARGEST_TABLE:
        return f"groups of {num_answers} split in too many ways to list: low={low}, high={high}, min_votes={min_votes}"
    found = thresholds(num_answers, low, high, min_votes)
    equal = [in_words(split) for split in found.trained if has_equal_shares(split)]
    lines = {
        f"low={low} refuses": _listed(found.too_low), "train": _listed(found.trained),
        f"high={high} refuses": _listed(found.too_high),
        **({} if min_votes is None else {f"min_votes={min_votes} penalises": _listed(found.penalised)}),
        "equal rewards": f"among those that train: {', '.join(equal)}, if agreement is rewarded" if equal else "none"}
    return "\n".join(f"{name:<23} {fact}" for name, fact in lines.items())


def _listed(found: tuple[Split, ...]) -> str:
    """All of them, or the ends of a long list."""
    words = [f"{in_words(split)} ({normalised_entropy(split):.3f})" for split in found]
    if len(words) > 4:
        return f"{words[0]}, {words[1]} ... {words[-2]}, {words[-1]}: {len(words)} splits"
    return ", ".join(words) or "nothing"


def in_words(split: Split) -> str:
    """7+1, all 8 agree, all 8 differ."""
    if len(split) == 1:
        return f"all {split[0]} agree"
    return f"all {len(split)} differ" if max(split) == 1 else "+".join(map(str, split))
