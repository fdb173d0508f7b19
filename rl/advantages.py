"""Rewards of one group -> advantages of one group: how much better was each completion than its siblings.

One pure function per estimator, [G] -> [G], collected in ADVANTAGES; `compute_advantages` applies one of them to a
whole batch of groups, `decoupled_advantages` to each of several rewards before they add up. To add an estimator: write
its function here, add it to ADVANTAGES and to the names in rl/config.py. Imports no torch.

Shape legend: G completions of one question; K rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Std = Literal["sample", "population"]


@dataclass(frozen=True, slots=True)
class Scale:
    """What estimators that normalise divide by.

    ddof: 1 for the sample standard deviation (TRL's), 0 for the population's. eps: added to the standard deviation.
    batch_std: standard deviation of the centred rewards over all completions of the batch.
    """

    ddof: int = 1
    eps: float = 1e-4
    batch_std: float = 1.0


AdvantageFunction = Callable[[Sequence[float], Scale], list[float]]


def centred(rewards_G: Sequence[float]) -> list[float]:
    """r_i - mean(r); exactly 0.0 everywhere when the rewards are equal.

    The mean of equal floats may differ from them in the last bit (three times 0.1), and dividing by a standard
    deviation of the same size would turn that bit into an advantage of 1: hence the case of its own.
    """
    if max(rewards_G) == min(rewards_G):
        return [0.0] * len(rewards_G)
    mean = math.fsum(rewards_G) / len(rewards_G)
    return [reward - mean for reward in rewards_G]


def standard_deviation(centred_values: Sequence[float], ddof: int) -> float:
    """sqrt(sum x_i^2 / (n - ddof)) of values whose mean is 0; 0.0 where n <= ddof."""
    degrees = len(centred_values) - ddof
    return math.hypot(*centred_values) / math.sqrt(degrees) if degrees > 0 else 0.0


def grpo(rewards_G: Sequence[float], scale: Scale) -> list[float]:
    """A_i = (r_i - mean(r)) / (std(r) + eps) within one group (arXiv:2402.03300).

    With r = p(cluster) and G = 16 it pushes weak agreement hardest: 3 that agree among 13 loners get +2.01 each, while
    the one that differs from 15 others gets -3.75 (sample standard deviation, eps 1e-4).
    """
    values = centred(rewards_G)
    return _divided(values, standard_deviation(values, scale.ddof), scale.eps)


def dr_grpo(rewards_G: Sequence[float], scale: Scale) -> list[float]:
    """A_i = r_i - mean(r): no bias towards questions that are nearly always or nearly never solved
    (arXiv:2503.20783)."""
    return centred(rewards_G)


def rloo(rewards_G: Sequence[float], scale: Scale) -> list[float]:
    """A_i = r_i - mean of the other G - 1 rewards (arXiv:2402.14740), which is G / (G - 1) * (r_i - mean(r))."""
    G = len(rewards_G)
    return [value * G / (G - 1) for value in centred(rewards_G)]


def reinforce_plus_plus(rewards_G: Sequence[float], scale: Scale) -> list[float]:
    """A_i = (r_i - mean(r)) / (batch std + eps), the variant with a group baseline (arXiv:2501.03262)."""
    return _divided(centred(rewards_G), scale.batch_std, scale.eps)


def _divided(values: list[float], std: float, eps: float) -> list[float]:
    # Only equal rewards (or differences that vanish in rounding) have no spread: there is nothing to prefer, whatever
    # eps is.
    return [0.0] * len(values) if std == 0.0 else [value / (std + eps) for value in values]


ADVANTAGES: dict[str, AdvantageFunction] = {
    "grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "reinforce++": reinforce_plus_plus}


def compute_advantages(
    rewards: Sequence[Sequence[float]], name: str, std: Std = "sample", eps: float = 1e-4, cap: float | None = None
) -> list[tuple[float, ...]]:
    """The advantages of a batch of groups by the estimator `name`, each bounded to [-cap, cap].

    Args:
        rewards: one sequence [G] per group; groups may differ in G. For reinforce++ these are all groups of the batch
            over all ranks, because their rewards decide the batch's standard deviation.
        std: sample divides by n - 1 (TRL's choice), population by n; read by grpo and reinforce++.
        eps: added to the standard deviation. cap: bound on |A_i|, None for none.
    Returns: one tuple [G] per group, in order. Equal rewards give exactly 0.0.
    Raises: ValueError for an unknown name, G < 2, or a reward that is not finite.
    """
    if name not in ADVANTAGES:
        raise ValueError(f"advantage.name is {name!r}; known are {', '.join(ADVANTAGES)}")
    for index, rewards_G in enumerate(rewards):
        _check(index, [rewards_G])
    ddof = 1 if std == "sample" else 0
    batch_std = standard_deviation([value for rewards_G in rewards for value in centred(rewards_G)], ddof)
    scale = Scale(ddof=ddof, eps=eps, batch_std=batch_std)
    return [_bounded(ADVANTAGES[name](rewards_G, scale), cap) for rewards_G in rewards]


def decoupled_advantages(
    scores: Sequence[Sequence[Sequence[float]]], weights: Sequence[Sequence[float]], std: Std = "sample",
    eps: float = 1e-4, cap: float | None = None,
) -> list[tuple[float, ...]]:
    """Each reward normalised by itself within its group, then added up (GDPO, arXiv:2601.05242): A_i = sum_k w_k
    grpo(r_k)_i, divided by the standard deviation of all A_i of the batch + eps.

    Two rewards keep their own scale so: normalised as a sum, (0, 1) and (0, 2) give the same advantages. The second
    division keeps the step's size from growing with K; the paper's mean over the batch is 0, as each group's is.

    Args: scores: [group][K][G], unweighted. weights: [group][K]; groups may differ in K and G. The others as in
    `compute_advantages`.
    Returns: one tuple [G] per group, in order; exactly 0.0 where each reward is equal within the group.
    Raises: ValueError for G < 2, or a score that is not finite.
    """
    ddof, sums = 1 if std == "sample" else 0, []
    for index, (scores_KG, weights_K) in enumerate(zip(scores, weights, strict=True)):
        _check(index, scores_KG)
        scale = Scale(ddof=ddof, eps=eps)
        terms = [[weight * value for value in grpo(scores_G, scale)]
                 for weight, scores_G in zip(weights_K, scores_KG, strict=True)]
        sums.append([math.fsum(values) for values in zip(*terms, strict=True)])
    batch_std = standard_deviation([value for sums_G in sums for value in sums_G], ddof)
    return [_bounded(_divided(sums_G, batch_std, eps), cap) for sums_G in sums]


def _check(index: int, rewards_KG: Sequence[Sequence[float]]) -> None:
    """Raises ValueError where group `index` gives no advantages."""
    for rewards_G in rewards_KG:
        if len(rewards_G) < 2:
            raise ValueError(f"group {index} has {len(rewards_G)} completion(s); an advantage compares at least 2: "
                             "raise sampling.group_size")
        for position, reward in enumerate(rewards_G):
            if not math.isfinite(reward):
                raise ValueError(
                    f"the reward of completion {position} of group {index} is {reward}; rewards must be finite")


def _bounded(values: Sequence[float], cap: float | None) -> tuple[float, ...]:
    bound = math.inf if cap is None else cap
    return tuple(min(bound, max(-bound, value)) for value in values)
