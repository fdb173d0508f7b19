"""What a step collected, trained on and measured -> its line in metrics.jsonl and its lines in rollouts.jsonl.

Nothing here changes the run. A metric of a step that is no metric of the update (rl/update_report.py), of the sampler
or of the watchdog belongs into `step_metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rl.collect import Collected
from rl.records import ScoredGroup, TrainingGroup
from rl.runs.reasoning import reasoning_metrics
from rl.runs.tracking import NORMALISED_ENTROPY, REVERSE_KL, Record, RolloutsLog
from rl.selection import lacks_consensus


def judged_groups(collected: Collected) -> tuple[ScoredGroup, ...]:
    """The groups that describe the step, anchors apart. Those that the rewards could not judge are not among them: they
    count in what the rewards report and in the refusals, and in nothing else."""
    return tuple(group for group in _every_group(collected) if not group.skipped)


def mean_reward(judged: Sequence[ScoredGroup]) -> float:
    """Over all completions; NaN without a group."""
    return _mean_or_nan(reward for group in judged for reward in group.rewards)


def goal_of_step(has_rewards: bool, judged: Sequence[ScoredGroup], measured: Mapping[str, float]) -> float | None:
    """What the run raises: the reward, or without rewards minus the distance to the teacher, which is missing where the
    teacher was asked about no token."""
    goal = mean_reward(judged) if has_rewards else -measured.get(REVERSE_KL, math.nan)
    return None if not judged or math.isnan(goal) else goal


def step_metrics(
    collected: Collected, collapse: Mapping[str, float], measured: Mapping[str, float], *, policy_version: int,
    num_surplus: int,
) -> dict[str, float]:
    """A step's training line. collapse: signs of collapse (rl/runs/watchdog.py). measured: what update, sampler, proof
    and stopwatch report. policy_version: after the step. num_surplus: groups left over for the next one."""
    judged = judged_groups(collected)
    num_tokens = sum(group.group.num_sampled_tokens for group in collected.sampled)
    return {
        "reward": mean_reward(judged), **_reward_metrics(judged, _every_group(collected)),
        NORMALISED_ENTROPY: _mean_or_nan(group.normalised_entropy for group in judged),
        **_anchor_metrics(collected), **collected.selection.shares(), "groups/sampled": len(collected.sampled),
        "groups/trained": len(collected.batch), "groups/refills": collected.num_refills, "groups/surplus": num_surplus,
        **{f"collapse/{name}": value for name, value in collapse.items()},
        **{f"reasoning/{name}": value for name, value in reasoning_metrics(judged).items()},
        "policy/version": policy_version, "tokens/sampled": num_tokens, **measured,
        "tokens_per_s": num_tokens / collected.times.generate_s if collected.times.generate_s else 0.0,
    }


def staleness(batch: Sequence[TrainingGroup], policy_version: int) -> dict[str, float]:
    """Optimiser updates between the version that sampled a completion and the one that trains on it: the mean over the
    batch."""
    lags = [float(policy_version - rollout.policy_version) for item in batch for rollout in item.group.rollouts]
    return {"policy/staleness": mean(lags)}


def consensus(collected: Collected, min_votes: int | None) -> dict[str, float]:
    """Share of the batch's groups that are penalised for their lack of consensus; nothing without selection.min_votes.
    """
    if min_votes is None:
        return {}
    return {"groups/without_consensus": mean([float(lacks_consensus(group, min_votes)) for group in collected.batch])}


def log_rollouts(
    log: RolloutsLog, step: int, collected: Collected, batch: Sequence[TrainingGroup]
) -> list[Record]:
    """Every group of the step, those first that the step before had left over, with the advantages it trained with or
    the reason why it did not. Returns their lines."""
    trained = {id(item.scored): item.advantages for item in batch}
    reasons = {id(group): reason for group, reason in collected.selection.refused}
    fresh = {id(group) for group in collected.sampled}
    left_over = [item.scored for item in batch if id(item.scored) not in fresh]
    return [log.log(step, scored, advantages=trained.get(id(scored)), refused=reasons.get(id(scored)))
            for scored in (*left_over, *collected.sampled)]


def mean(values: Sequence[float]) -> float:
    """0 without values."""
    return sum(values) / len(values) if values else 0.0


def _every_group(collected: Collected) -> tuple[ScoredGroup, ...]:
    """Without anchors. A step that lived on groups left over by refilling has sampled nothing, or anchors alone; it is
    described by what it trained on."""
    sampled, batch = (
        tuple(group for group in groups if not group.is_anchor) for groups in (collected.sampled, collected.batch))
    return sampled or batch


def _anchor_metrics(collected: Collected) -> dict[str, float]:
    """Mean reward of the step's anchors, and how many of them train; nothing where there are none."""
    anchors = [group for group in collected.sampled if group.is_anchor and not group.skipped]
    if not anchors:
        return {}
    return {"anchors/reward": _mean_or_nan(reward for group in anchors for reward in group.rewards),
            "anchors/trained": float(sum(group.is_anchor for group in collected.batch))}


def _mean_or_nan(values: Iterable[float]) -> float:
    found = list(values)
    return mean(found) if found else math.nan


def _reward_metrics(judged: Sequence[ScoredGroup], groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Each reward's mean by name over the judged groups (`accuracy` among them, where it is one), and the means of what
    the rewards reported over all groups."""
    names = judged[0].scores if judged else ()
    scores = {
        (name if name == "accuracy" else f"reward/{name}"): mean(
            [score for group in judged for score in group.scores[name]])
        for name in names}
    reported = {name for group in groups for name in group.metrics}
    return scores | {
        f"reward/{name}": mean([g.metrics[name] for g in groups if name in g.metrics]) for name in sorted(reported)}
