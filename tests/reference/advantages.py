"""The advantages of algorithms' papers, letter by letter: slow, without any numerical care."""

from __future__ import annotations

from collections.abc import Sequence


def _mean(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def _std(values: Sequence[float], ddof: int) -> float:
    mean, total = _mean(values), 0.0
    for value in values:
        total += (value - mean) ** 2
    return float((total / (len(values) - ddof)) ** 0.5)


def reference_advantages(rewards: Sequence[Sequence[float]], name: str, ddof: int, eps: float) -> list[list[float]]:
    """One list per group, for any of grpo, dr_grpo, rloo, reinforce++."""
    everything_centred = [reward - _mean(group) for group in rewards for reward in group]
    result = []
    for group in rewards:
        advantages = []
        for index, reward in enumerate(group):
            others = [other for position, other in enumerate(group) if position != index]
            if name == "grpo":
                advantages.append((reward - _mean(group)) / (_std(group, ddof) + eps))
            elif name == "dr_grpo":
                advantages.append(reward - _mean(group))
            elif name == "rloo":
                advantages.append(reward - _mean(others))
            else:
                assert name == "reinforce++"
                advantages.append((reward - _mean(group)) / (_std(everything_centred, ddof) + eps))
        result.append(advantages)
    return result


def reference_decoupled(
    scores: Sequence[Sequence[Sequence[float]]], weights: Sequence[float], ddof: int, eps: float
) -> list[list[float]]:
    """GDPO (arXiv:2601.05242): [group][G] from [group][reward][G]."""
    sums = []
    for rewards in scores:
        size = len(rewards[0])
        sums.append([0.0] * size)
        for weight, reward in zip(weights, rewards, strict=True):
            for i in range(size):
                std = _std(reward, ddof)
                sums[-1][i] += weight * (reward[i] - _mean(reward)) / (std + eps)
    everything = [value for group in sums for value in group]
    return [[(value - _mean(everything)) / (_std(everything, ddof) + eps) for value in group] for group in sums]
