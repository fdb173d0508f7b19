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
    batch, selection = collected.batch, config.selection
    weights = [1.0] * len(batch) if flips is None else flips.weights(
        batch, {id(scored) for scored in collected.sampled})
    if config.anchors is not None:
        weights = [weight * config.anchors.weight if scored.is_anchor else weight
                   for weight, scored in zip(weights, batch, strict=True)]
    # Where there is no consensus no reward is believed: such groups have no part in the others' scale either.
    believed = [scored for scored in batch if not lacks_consensus(scored, selection.min_votes)]
    found = dict(zip(map(id, believed), _advantages(config, believed), strict=True))
    advantages = {
        id(scored): tuple(weight * value for value in found[id(scored)]) if id(scored) in found
        else (-selection.penalty,) * len(scored.rewards)
        for scored, weight in zip(batch, weights, strict=True)}
    # Under zero in the order of the draw: behind the others, the refused groups would all be in the last minibatch.
    groups = batch if selection.mode != "zero" else collected.sampled
    return [_training_group(config, scored, advantages.get(id(scored), (0.0,) * len(scored.rewards)))
            for scored in groups]


def _training_group(config: RunConfig, scored: ScoredGroup, advantages: tuple[float, ...]) -> TrainingGroup:
    if not config.loss.mask_truncated:
        return TrainingGroup(scored, advantages)
    cut = frozenset(i for i, rollout in enumerate(scored.group.rollouts) if rollout.is_truncated)
    return TrainingGroup(scored, tuple(0.0 if i in cut else value for i, value in enumerate(advantages)), left_out=cut)


def _advantages(config: RunConfig, batch: Sequence[ScoredGroup]) -> list[tuple[float, ...]]:
    """One tuple [G] per group, in order."""
    settings = config.advantage
    if settings.normalise == "sum":
        return compute_advantages(
            [scored.rewards for scored in batch], settings.name, settings.std, settings.eps, settings.cap)
    own = [section.weight for section in config.rewards]
    return decoupled_advantages(
        [tuple(scored.scores.values()) for scored in batch], [[1.0] if scored.is_anchor else own for scored in batch],
        settings.std, settings.eps, settings.cap)
