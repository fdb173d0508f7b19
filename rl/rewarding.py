"""Groups -> scored groups: hands each group to the rewards as primitives and puts what comes back beside the group."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.scoring import GroupInput, RewardSpec, RewardSum
from rl.config import RewardSection
from rl.records import Group, Question, ScoredGroup


def build_rewards(sections: Sequence[RewardSection]) -> RewardSum:
    """The weighted sum that the configuration names. Raises RewardError where a function cannot be loaded."""
    return RewardSum([
        RewardSpec(use=s.use, weight=s.weight, name=s.name, style=s.style, arguments=dict(s.arguments)) for s in sections
    ])


def check_answers(rewards: RewardSum, questions: Sequence[Question]) -> None:
    """Refuse, before anything is sampled, questions without the gold answer that a reward needs."""
    for question in questions:
        rewards.check_question(question.id, question.answer)


def check_columns(rewards: RewardSum, questions: Sequence[Question]) -> None:
    """Refuse, before anything is sampled, questions without a column that a reward needs."""
    for question in questions:
        rewards.check_columns(question.id, question.columns)


def score_groups(rewards: RewardSum, groups: Sequence[Group]) -> list[ScoredGroup]:
    """Score whole groups, in order."""
    inputs = [
        GroupInput(
            question_id=group.question.id, question=group.question.text, completions=[r.text for r in group.rollouts],
            answer=group.question.answer, columns=group.question.columns, prompt=group.prompt.text, rollouts=group.rollouts,
        )
        for group in groups
    ]
    return [
        ScoredGroup(
            group=group, rewards=tuple(result.rewards), scores=dict(result.scores), answers=tuple(result.answers),
            labels=tuple(result.labels), entropy=result.entropy, metrics=dict(result.metrics), skipped=result.skipped,
        )
        for group, result in zip(groups, rewards.score(inputs), strict=True)
    ]
