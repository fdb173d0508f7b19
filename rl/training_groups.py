"""What a step collected -> what it trains on: every group with its advantages, and with what a teacher says of its
tokens."""

from __future__ import annotations

from collections.abc import Sequence

from rl.advantages import compute_advantages, decoupled_advantages
from rl.collect import Collected
from rl.config import RunConfig
from rl.records import ScoredGroup, TrainingGroup
from rl.teacher.advantages import Teacher, with_teacher


def make_training_groups(
    config: RunConfig, collected: Collected, teacher: Teacher | None = None, rank: int = 0, num_ranks: int = 1
) -> list[TrainingGroup]:
    """The groups of `groups_with_advantages`; those of the batch with the teacher's log-probabilities, where there is
    one. Collective over ranks."""
    groups = groups_with_advantages(config, collected)
    kept = {id(scored) for scored in collected.batch}
    return with_teacher(teacher, groups, [id(item.scored) in kept for item in groups], rank=rank, num_ranks=num_ranks)


def groups_with_advantages(config: RunConfig, collected: Collected) -> list[TrainingGroup]:
    """The batch, or under `selection.mode: zero` every group that was sampled, refused ones with zeros."""
    advantages = _advantages(config, collected.batch)
    if config.selection.mode != "zero":
        return [TrainingGroup(scored, values) for scored, values in zip(collected.batch, advantages, strict=True)]
    # In the order of the draw: behind the others, the refused groups would all be in the last of several minibatches.
    found = {id(scored): values for scored, values in zip(collected.batch, advantages, strict=True)}
    return [TrainingGroup(scored, found.get(id(scored), (0.0,) * len(scored.rewards))) for scored in collected.sampled]


def _advantages(config: RunConfig, batch: Sequence[ScoredGroup]) -> list[tuple[float, ...]]:
    """One tuple [G] per group, in order."""
    settings = config.advantage
    if settings.normalise == "sum":
        return compute_advantages(
            [scored.rewards for scored in batch], settings.name, settings.std, settings.eps, settings.cap)
    weights = [section.weight for section in config.rewards]
    return decoupled_advantages(
        [tuple(scored.scores.values()) for scored in batch], [weights] * len(batch), settings.std, settings.eps,
        settings.cap)
