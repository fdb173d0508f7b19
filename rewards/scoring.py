"""Groups of completions -> weighted sums of rewards, with answers, clusters and semantic entropy for each group.

    RewardSum([RewardSpec("rewards.accuracy:accuracy"), RewardSpec("my.py:brevity", weight=0.2)]).score(groups)

How a function is called and checked is in calling.py, how it is found in loading.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rewards.calling import STYLES, CheckedScore, GroupInput, Reward, RolloutLike
from rewards.clustering import cluster, entropy_of
from rewards.contract import RewardError
from rewards.extraction import extract_answers
from rewards.loading import load

__all__ = ["GroupInput", "GroupResult", "RewardSpec", "RewardSum", "RolloutLike"]


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One term of the sum. use: package.module:name or file.py:name. name: in metrics; None: the function's own."""

    use: str
    weight: float = 1.0
    name: str | None = None
    style: Literal["group", "trl"] = "group"
    arguments: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What the rewards say about one group.

    rewards: [G], weighted sum. scores: each reward's own values [G] by name, unweighted; where it had none the mean of
    its others in the group, or 0. answers: [G], None where nothing was found. labels: [G], cluster of each completion.
    entropy: over the labels, in nats, 0 <= H <= ln G. metrics: `name/metric` of each reward, and of the group
    `group/num_clusters`, `group/unparsable_share`, `group/unscored_share` (completions for which no reward had a
    score), `group/skipped` (1 where skipped). skipped: some reward could not judge the group. Its rewards are then all
    equal, its clusters mean nothing, and it must not train.
    """

    rewards: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    answers: tuple[str | None, ...]
    labels: tuple[int, ...]
    entropy: float
    metrics: Mapping[str, float]
    skipped: bool = False


class RewardSum:
    """r_i = sum over rewards of weight * score_i. Loads and checks all functions at once, before anything is sampled.

    search_from: folder that files named by `use` are looked for in first. run_arguments: what the run knows and a
    function takes by name, where its own arguments do not set it. may_be_empty: without any reward every sum is 0;
    answers and clusters are told all the same. Raises RewardError, also for two rewards of one name.
    """

    def __init__(self, specs: Sequence[RewardSpec], search_from: Path | None = None,
                 run_arguments: Mapping[str, object] | None = None, *, may_be_empty: bool = False) -> None:
        if not specs and not may_be_empty:
            raise RewardError("no reward is given; name at least one")
        self._terms: list[tuple[RewardSpec, Reward]] = []
        for spec in specs:
            if spec.style not in STYLES:
                raise RewardError(
                    f"style is {spec.style!r}, expected one of {', '.join(STYLES)}", where=f"reward {spec.use!r}")
            if not math.isfinite(spec.weight):
                raise RewardError(
                    f"weight is {spec.weight}, expected a finite number", where=f"reward {spec.use!r}")
            function = load(spec.use, search_from)
            name = spec.name or str(getattr(function, "__name__", type(function).__name__))
            if name in self.names:
                raise RewardError(
                    f"two rewards are named {name!r} (the second is {spec.use}); give one of them another `name`")
            reward = Reward(name, spec.use, function, dict(spec.arguments))
            reward.check_arguments(spec.style)
            filled_in = {key: value for key, value in (run_arguments or {}).items() if reward.takes(key)}
            reward = replace(reward, arguments=filled_in | dict(spec.arguments))
            self._terms.append((spec, reward))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(reward.name for _, reward in self._terms)

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """The reward functions, in order."""
        return tuple(reward.function for _, reward in self._terms)

    @property
    def needs_answer(self) -> bool:
        """Whether any of the rewards needs a gold answer."""
        return any(reward.needs_answer for _, reward in self._terms)

    @property
    def needs_token_statistics(self) -> bool:
        """Whether any of the rewards reads per-token entropies or self-certainties of the rollouts."""
        return any(reward.needs_token_statistics for _, reward in self._terms)

    @property
    def needs_votes(self) -> bool:
        """Whether any of the rewards reads what a moving average of the policy answers."""
        return any(getattr(function, "needs_votes", False) for function in self.functions)

    @property
    def needs_policy(self) -> bool:
        """Whether any of the rewards asks the policy for log-probabilities."""
        return any(reward.needs_policy for _, reward in self._terms)

    @property
    def any_thread(self) -> bool:
        """Whether groups may be scored as they come, a few at a time, outside the main thread, and while the policy
        trains.

        Not where a reward asks the policy, which is not what it was then, or is called on a flat batch, of which it may
        need all."""
        return all(
            spec.style == "group"
            and reward.any_thread
            and not reward.needs_policy
            and not reward.needs_token_statistics
            for spec, reward in self._terms)

    def check_question(self, question_id: str, answer: str | None) -> None:
        """Raises RewardError if the question has no gold answer and a reward needs one."""
        if answer is not None and answer.strip():
            return
        for _, reward in self._terms:
            if reward.needs_answer:
                raise RewardError(
                    f"{reward.label} needs a gold answer, and question {question_id!r} has none",
                    remedy="fill the answer column, or use a reward that needs none, such as "
                    "rewards.semantic_entropy:semantic_entropy")

    def check_columns(self, question_id: str, columns: Mapping[str, object]) -> None:
        """Raises RewardError if the question lacks a column that a reward says it needs (`needs_columns`)."""
        for _, reward in self._terms:
            for column in getattr(reward.function, "needs_columns", ()):
                if column not in columns:
                    raise RewardError(f"{reward.label} needs the column {column!r}, and question {question_id!r} has "
                                      f"{', '.join(map(repr, columns)) or 'no columns'}")

    def score(self, groups: Sequence[GroupInput]) -> list[GroupResult]:
        """One result per group, in order. Raises RewardError for whatever a function does wrong, and for an empty
        group."""
        if not groups:
            return []
        for group in groups:
            if not group.completions:
                raise RewardError(f"question {group.question_id!r} has no completions to score")
            if group.rollouts is not None and len(group.rollouts) != len(group.completions):
                raise RewardError(f"question {group.question_id!r} has {len(group.rollouts)} rollouts for "
                                  f"{len(group.completions)} completions")
            self.check_question(group.question_id, group.answer)
            self._check_needs(group)
        columns = [STYLES[spec.style](reward, groups) for spec, reward in self._terms]
        return [self._combine(group, [column[i] for column in columns]) for i, group in enumerate(groups)]

    def _check_needs(self, group: GroupInput) -> None:
        for _, reward in self._terms:
            if reward.needs_policy and group.policy is None:
                raise reward.error(group, "asks for the policy's log-probabilities, which only a training run has")
            if reward.needs_token_statistics and (group.rollouts is None or any(
                    rollout.entropies is None or rollout.self_certainties is None for rollout in group.rollouts)):
                raise reward.error(group, "asks for per-token statistics, which these completions were sampled without")

    def _combine(self, group: GroupInput, checked: Sequence[CheckedScore]) -> GroupResult:
        size = len(group.completions)
        skipped = any(score.skipped for score in checked)
        fills = [_fill(score, spec) for score, (spec, _) in zip(checked, self._terms, strict=True)]
        rewards, unscored = _weighted_sum(checked, [spec.weight for spec, _ in self._terms], fills, size)
        if skipped:
            rewards = (_mean(rewards),) * size
        if not all(map(math.isfinite, rewards)):
            raise RewardError(
                f"the weighted sum of {', '.join(self.names)} is {rewards}, expected finite numbers; the values or the "
                "weights are too large", where=f"question {group.question_id!r}")
        answers, labels = _answers_and_labels(group, checked)
        metrics = {f"{name}/{metric}": value for name, score in zip(self.names, checked, strict=True)
                   for metric, value in score.metrics.items()}
        metrics |= {
            "group/unparsable_share": answers.count(None) / size,
            "group/unscored_share": unscored / size if checked else 0.0, "group/skipped": float(skipped)}
        if not skipped:
            metrics["group/num_clusters"] = float(len(set(labels)))
        scores = {name: _filled(score.scores) for name, score in zip(self.names, checked, strict=True)}
        return GroupResult(rewards, scores, answers, labels, entropy_of(labels), metrics, skipped)


def _weighted_sum(checked: Sequence[CheckedScore], weights: Sequence[float], fills: Sequence[float | None],
                  size: int) -> tuple[tuple[float, ...], int]:
    """[G] sums, and the number of completions that no reward had a score for.

    Those get the mean of the group's others, hence no advantage: 0 would be a verdict that nobody gave.
    """
    sums: list[float | None] = []
    for i in range(size):
        terms = [weight * value for score, weight, fill in zip(checked, weights, fills, strict=True)
                 if (value := fill if score.scores[i] is None else score.scores[i]) is not None]
        is_scored = any(score.scores[i] is not None for score in checked)
        sums.append(sum(terms) if is_scored else None)
    scored = [value for value in sums if value is not None]
    mean = _mean(scored) if scored else 0.0
    return tuple(mean if value is None else value for value in sums), size - len(scored)


def _fill(score: CheckedScore, spec: RewardSpec) -> float | None:
    """What stands for a reward's missing scores: the mean of its others in the group; None, nothing at all, in style
    trl, as in TRL."""
    found = [value for value in score.scores if value is not None]
    return _mean(found) if found and spec.style == "group" else None


def _filled(scores: Sequence[float | None]) -> tuple[float, ...]:
    """Missing ones as the mean of the others, whatever the style: by itself 0 would be a verdict that nobody gave."""
    found = [value for value in scores if value is not None]
    return tuple((_mean(found) if found else 0.0) if value is None else value for value in scores)


def _mean(values: Sequence[float]) -> float:
    """The mean, exact where all are equal: rounding must not make an equal-reward group look unequal."""
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def _answers_and_labels(
    group: GroupInput, checked: Sequence[CheckedScore]
) -> tuple[tuple[str | None, ...], tuple[int, ...]]:
    """Both from the first reward that gives both, otherwise both made here: taken from two places they could
    disagree."""
    for score in checked:
        if score.answers is not None and score.labels is not None:
            return score.answers, score.labels
    unjudged = next((score for score in checked if score.skipped), None)
    if unjudged is not None:  # no clusters: those of rewards/clustering.py would be another judge's verdict
        answers = unjudged.answers if unjudged.answers is not None else tuple(extract_answers(list(group.completions)))
        return answers, tuple(range(len(answers)))
    extracted = extract_answers(list(group.completions))
    return tuple(extracted), cluster(extracted).labels
