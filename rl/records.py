"""The records that travel from stage to stage; see the picture in CONTRIBUTING.md.

Each stage takes one kind and returns the next: Question -> Prompt -> Group of G Rollouts -> ScoredGroup ->
TrainingGroup. A group stays whole until rl/batching.py: nothing is flattened early and regrouped by text. All are
frozen; none imports torch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

FinishReason = Literal["stop", "length"]

PromptCompletion = tuple[tuple[int, ...], tuple[int, ...]]
"""(token ids of a prompt, token ids of a completion of it), neither empty."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row of the questions file.

    id: unique within its file; enters each request's seed. answer: the gold answer, or None where there is none.
    columns: every other column of the row, passed on to rewards by name. is_anchor: a labelled question mixed in, with
    a reward of its own.
    """

    id: str
    text: str
    answer: str | None
    columns: Mapping[str, Json]
    is_anchor: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the sampler is given for one question.

    text: the rendered prompt, for people to read. assistant_prefix: the beginning of the answer that the template puts
    into the prompt (such as "<think>\\n"); it is part of what rewards see, and no part of what is trained.
    """

    question: Question
    text: str
    token_ids: tuple[int, ...]
    assistant_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled completion.

    token_ids: [T], without the prompt, with the stop token where there was one: ending is an action and gets a
    gradient.
    logprobs: [T], natural log-probabilities under the sampler at the sampling temperature, before top_p and top_k.
    entropies, self_certainties: [T], in nats, of the distribution that each token was drawn from (temperature included,
    before top_p and top_k): its entropy, and KL(uniform || pi) = -ln V - mean of ln pi. Only between sampler and
    rewards, where one asks for them.
    text: assistant prefix + decoded completion, without special tokens: what rewards see.
    policy_version: number of optimiser updates behind the weights that sampled this.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int
    seed: int
    entropies: tuple[float, ...] | None = None
    self_certainties: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.logprobs) > 0

    @property
    def is_truncated(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class Group:
    """The G rollouts of one question. votes: texts of the completions that a moving average of the policy gave to it;
    only between sampler and rewards, where one asks for them. num_vote_tokens: of those completions."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    votes: tuple[str, ...] | None = None
    num_vote_tokens: int = 0

    @property
    def question(self) -> Question:
        return self.prompt.question

    @property
    def num_sampled_tokens(self) -> int:
        """All that were sampled for it, votes among them."""
        return sum(len(rollout.token_ids) for rollout in self.rollouts) + self.num_vote_tokens


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with its rewards.

    rewards: [G], the weighted sum. scores: each reward's own values [G] by name, unweighted.
    answers: [G], extracted final answers, None where nothing was found. labels: [G], cluster of each completion; one
    without an answer is a cluster of its own. entropy: semantic entropy over the clusters in nats, 0 <= H <= ln G.
    metrics: what the rewards reported beside their values. skipped: a reward could not judge the group (its service did
    not answer); it never trains, and its clusters mean nothing.
    """

    group: Group
    rewards: tuple[float, ...]
    scores: Mapping[str, tuple[float, ...]]
    answers: tuple[str | None, ...]
    labels: tuple[int, ...]
    entropy: float
    metrics: Mapping[str, float]
    skipped: bool = False

    @property
    def normalised_entropy(self) -> float:
        """H / ln G, in [0, 1]."""
        return self.entropy / math.log(len(self.rewards))

    @property
    def is_anchor(self) -> bool:
        return self.group.question.is_anchor

    @property
    def votes(self) -> Counter[int]:
        """Completions by cluster; those without an answer do not vote."""
        return Counter(label for label, answer in zip(self.labels, self.answers, strict=True) if answer is not None)

    @property
    def largest_cluster(self) -> int:
        """Completions in the largest cluster of answers; 0 without an answer."""
        return max(self.votes.values(), default=0)

    @property
    def majority(self) -> int | None:
        """Label of the one largest cluster of answers; None where several are the largest, or nothing was answered."""
        ranked = self.votes.most_common(2)
        is_clear = len(ranked) == 1 or (len(ranked) == 2 and ranked[0][1] > ranked[1][1])
        return ranked[0][0] if is_clear else None

    @property
    def has_equal_rewards(self) -> bool:
        return max(self.rewards) == min(self.rewards)

    def has_equal_scores(self, weights: Sequence[float]) -> bool:
        """Whether each reward that counts is equal by itself; equal sums may be made of different scores. weights: of
        each reward; an anchor's only one counts."""
        if self.is_anchor:
            return self.has_equal_rewards
        return all(max(scores) == min(scores)
                   for scores, weight in zip(self.scores.values(), weights, strict=True) if weight)


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """A scored group with the advantages that it trains with; advantages: [G].

    teacher_logprobs: [G][T], a teacher's log-probabilities of the completions' tokens at temperature 1; None where none
    was asked. What it adds to the advantage of each token depends on the policy too (rl/teacher/advantages.py).
    old_logprobs: [G][T], the policy's at the start of the batch, at the sampling temperature; None where no forward of
    their own was spent on them, or on that completion (rl/update.py).
    marks: [G][T], True where loss.covariance acts on the token; None where it acts nowhere, or not on that completion.
    left_out: numbers of completions that are neither computed nor counted (loss.mask_truncated)."""

    scored: ScoredGroup
    advantages: tuple[float, ...]
    teacher_logprobs: tuple[tuple[float, ...], ...] | None = None
    old_logprobs: tuple[Tensor | None, ...] | None = field(default=None, compare=False)
    marks: tuple[Tensor | None, ...] | None = field(default=None, compare=False)
    left_out: frozenset[int] = frozenset()

    @property
    def group(self) -> Group:
        return self.scored.group

    @property
    def trained(self) -> tuple[int, ...]:
        """Numbers of the completions that are computed and counted."""
        return tuple(i for i in range(len(self.advantages)) if i not in self.left_out)
