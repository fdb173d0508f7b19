"""What a step collected -> what it trains on: every group with its advantages, and with what a teacher says of its
tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rl.advantages import compute_advantages, decoupled_advantages
from rl.collect import Collected
from rl.config import RunConfig
from rl.records import ScoredGroup, TrainingGroup
from rl.scoring.flips import FlipMemory
from rl.selection import lacks_consensus
from rl.teacher.advantages import Teacher, with_teacher


def make_training_groups(
    config: RunConfig, collected: Collected, teacher: Teacher | None = None, rank: int = 0, num_ranks: int = 1,
    flips: FlipMemory | None = None,
) -> list[TrainingGroup]:
    """The groups of `groups_with_advantages`; those of the batch with the teacher's log-probabilities, where there is
    one. Collective over ranks."""
    groups = groups_with_advantages(config, collected, flips)
    kept = {id(scored) for scored in collected.batch}
    return with_teacher(teacher, groups, [id(item.scored) in kept for item in groups], rank=rank, num_ranks=num_ranks)


def groups_with_advantages(
    config: RunConfig, collected: Collected, flips: FlipMemory | None = None
) -> list[TrainingGroup]:
    """The batch, or under `selection.mode: zero` every group that was sampled, refused ones with zeros. flips: gives
    each group's advantages their weight; None: all have the same."""
    advantages = _advantages(config, collected.batch)
    if flips is not None:
        weights = flips.weights(collected.batch, {id(scored) for scored in collected.sampled})
        advantages = [tuple(weight * value for value in values)
                      for weight, values in zip(weights, advantages, strict=True)]
    if config.selection.mode != "zero":
        return [_training_group(config, scored, values)
                for scored, values in zip(collected.batch, advantages, strict=True)]
    # In the order of the draw: behind the others, the refused groups would all be in the last of several minibatches.
    found = {id(scored): values for scored, values in zip(collected.batch, advantages, strict=True)}
    return [_training_group(config, scored, found.get(id(scored), (0.0,) * len(scored.rewards)))
            for scored in collected.sampled]


def _training_group(config: RunConfig, scored: ScoredGroup, advantages: tuple[float, ...]) -> TrainingGroup:
    if not config.loss.mask_truncated:
        return TrainingGroup(scored, advantages)
    cut = frozenset(i for i, rollout in enumerate(scored.group.rollouts) if rollout.is_truncated)
    return TrainingGroup(scored, tuple(0.0 if i in cut else value for i, value in enumerate(advantages)), left_out=cut)


def _advantages(config: RunConfig, batch: Sequence[ScoredGroup]) -> list[tuple[float, ...]]:
    """One tuple [G] per group, in order. Where there is no consensus no reward is believed: all of them count as 0, and
    every completion gets -selection.penalty."""
    settings, selection = config.advantage, config.selection
    doubtful = [lacks_consensus(scored, selection.min_votes) for scored in batch]
    if settings.normalise == "sum":
        rewards = [(0.0,) * len(scored.rewards) if is_doubtful else scored.rewards
                   for scored, is_doubtful in zip(batch, doubtful, strict=True)]
        found = compute_advantages(rewards, settings.name, settings.std, settings.eps, settings.cap)
    else:
        weights = [[1.0] if scored.is_anchor else [section.weight for section in config.rewards] for scored in batch]
        found = decoupled_advantages(
            [tuple(scored.scores.values()) for scored in batch],
            [[0.0] * len(weights_K) if is_doubtful else weights_K
             for weights_K, is_doubtful in zip(weights, doubtful, strict=True)],
            settings.std, settings.eps, settings.cap)
    return [(-selection.penalty,) * len(values) if is_doubtful else values
            for values, is_doubtful in zip(found, doubtful, strict=True)]
