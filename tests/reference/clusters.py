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


def both_directions(yes: set[tuple[str, str]]) -> Callable[[str, str], bool]:
    """Equality from the ordered pairs that a judge said yes to; a text equals itself, unasked."""
    return lambda first, second: first == second or ((first, second) in yes and (second, first) in yes)


def non_transitive_share(texts: Sequence[str], equal: Callable[[str, str], bool]) -> float | None:
    """Over the triples with a centre that equals both others, each triple counted once: how often the others differ."""
    linked, broken = set(), set()
    for centre in texts:
        for one in texts:
            for other in texts:
                if len({centre, one, other}) == 3 and equal(centre, one) and equal(centre, other):
                    linked.add(frozenset((centre, one, other)))
                    if not equal(one, other):
                        broken.add(frozenset((centre, one, other)))
    return len(broken) / len(linked) if linked else None
