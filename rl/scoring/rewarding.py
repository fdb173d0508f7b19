"""Groups -> scored groups: hands each group to the rewards as primitives and puts what comes back beside the group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from rewards.contract import PolicyLike, RewardError
from rewards.scoring import GroupInput, RewardSpec, RewardSum
from rl.config import RewardSection
from rl.records import Group, Prompt, Question, ScoredGroup


class AskedPolicy(Protocol):
    """What rewards may ask of the policy; rl.policy.logprob_calculator.LogprobCalculator is one."""

    def after(self, prompt: Prompt) -> PolicyLike: ...

    def with_statistics(self, groups: Sequence[Group]) -> list[Group]: ...


def build_rewards(sections: Sequence[RewardSection], max_completion_tokens: int) -> RewardSum:
    """The weighted sum that the configuration names; max_completion_tokens: the run's, for the rewards that take it by
    name.

    Raises RewardError where a function cannot be loaded, or is given a length limit that no completion can reach."""
    for i, section in enumerate(sections):
        limit = section.arguments.get("max_completion_tokens")
        if isinstance(limit, int | float) and limit > max_completion_tokens:
            raise RewardError(
                f"rewards.{i}.arguments.max_completion_tokens is {limit}, above sampling.max_completion_tokens="
                f"{max_completion_tokens}: no completion can be so long. Leave it out to take the sampling's own")
    return RewardSum(
        [
            RewardSpec(use=s.use, weight=s.weight, name=s.name, style=s.style, arguments=dict(s.arguments))
            for s in sections],
        run_arguments={"max_completion_tokens": max_completion_tokens}, may_be_empty=True)


def check_answers(rewards: RewardSum, questions: Sequence[Question]) -> None:
    """Refuse, before anything is sampled, questions without the gold answer that a reward needs."""
    for question in questions:
        rewards.check_question(question.id, question.answer)


def check_columns(rewards: RewardSum, questions: Sequence[Question]) -> None:
    """Refuse, before anything is sampled, questions without a column that a reward needs."""
    for question in questions:
        rewards.check_columns(question.id, question.columns)


def score_mixed(
    rewards: RewardSum, anchor_rewards: RewardSum | None, groups: Sequence[Group], policy: AskedPolicy | None = None
) -> list[ScoredGroup]:
    """`score_groups`, in order, where anchors are judged by their own reward; None: there are none."""
    if anchor_rewards is None:
        return score_groups(rewards, groups, policy)
    anchors = iter(score_groups(anchor_rewards, [group for group in groups if group.question.is_anchor], policy))
    others = iter(score_groups(rewards, [group for group in groups if not group.question.is_anchor], policy))
    return [next(anchors if group.question.is_anchor else others) for group in groups]


def score_groups(rewards: RewardSum, groups: Sequence[Group], policy: AskedPolicy | None = None) -> list[ScoredGroup]:
    """Score whole groups, in order. policy: the policy that sampled them, for rewards that ask it something.

    Token statistics that the sampler did not tell are computed by the policy; the scored groups carry none."""
    if rewards.needs_token_statistics and policy is not None:
        groups = policy.with_statistics(groups)
    inputs = [
        GroupInput(
            question_id=group.question.id, question=group.question.text, completions=[r.text for r in group.rollouts],
            answer=group.question.answer, columns=_columns(rewards, group), prompt=group.prompt.text,
            rollouts=group.rollouts,
            policy=policy.after(group.prompt) if policy is not None and rewards.needs_policy else None)
        for group in groups
    ]
    return [
        ScoredGroup(
            group=_without_statistics(group), rewards=tuple(result.rewards), scores=dict(result.scores),
            answers=tuple(result.answers), labels=tuple(result.labels), entropy=result.entropy,
            metrics=dict(result.metrics), skipped=result.skipped)
        for group, result in zip(groups, rewards.score(inputs), strict=True)
    ]


def _columns(rewards: RewardSum, group: Group) -> Mapping[str, object]:
    """What rewards get by name beside question and answer."""
    if not rewards.needs_votes or group.votes is None:
        return group.question.columns
    return {**group.question.columns, "votes": list(group.votes)}


def _without_statistics(group: Group) -> Group:
    """Nobody reads them, or the votes, after the rewards: they need not travel between ranks or into checkpoints."""
    if group.votes is not None:
        group = replace(group, votes=None)
    if all(rollout.entropies is None for rollout in group.rollouts):
        return group
    return replace(group, rollouts=tuple(replace(r, entropies=None, self_certainties=None) for r in group.rollouts))
