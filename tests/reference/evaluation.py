"""The numbers of an evaluation by their definitions: every draw of k out of n is looked at, every assignment of signs
is tried."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, product


def literal_pass_at_k(correct: Sequence[int], k: int) -> Fraction:
    """Share of the draws of k samples that hold a right one."""
    draws = list(combinations(range(len(correct)), k))
    return Fraction(sum(any(correct[index] for index in draw) for draw in draws), len(draws))


def literal_majority_at_k(
    labels: Sequence[int], answered: Sequence[bool], correct: Sequence[Fraction], k: int
) -> Fraction:
    """Mean over the draws of the accuracy of the largest answered cluster of the draw; of several, the mean of their
    accuracies.

    A cluster's accuracy is that of its members in the draw."""
    draws = list(combinations(range(len(labels)), k))
    total = Fraction(0)
    for draw in draws:
        members: dict[int, list[int]] = {}
        for index in draw:
            if answered[index]:
                members.setdefault(labels[index], []).append(index)
        if not members:
            continue
        most = max(len(cluster) for cluster in members.values())
        tied = [cluster for cluster in members.values() if len(cluster) == most]
        for cluster in tied:
            total += Fraction(sum((correct[index] for index in cluster), Fraction(0)), most) / len(tied)
    return total / len(draws)


def literal_best_at_k(values: Sequence[float], correct: Sequence[Fraction], k: int) -> Fraction:
    """Mean over the draws of the verdict of the sample with the highest value; of several, the mean of their
    verdicts."""
    draws = list(combinations(range(len(values)), k))
    total = Fraction(0)
    for draw in draws:
        highest = max(values[index] for index in draw)
        tied = [index for index in draw if values[index] == highest]
        total += Fraction(sum((correct[index] for index in tied), Fraction(0)), len(tied))
    return total / len(draws)


def literal_sign_flip_p(differences: Sequence[Fraction]) -> Fraction:
    """Share of all assignments of signs whose mean is at least as far from 0 as the seen one."""
    seen = abs(sum(differences, Fraction(0)))
    assignments = list(product((1, -1), repeat=len(differences)))
    at_least = sum(abs(sum((sign * value for sign, value in zip(signs, differences, strict=True)), Fraction(0))) >= seen
                   for signs in assignments)
    return Fraction(at_least, len(assignments))
