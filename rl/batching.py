"""Training groups -> micro-batches by token budget: here, and only here, groups are taken apart into completions.

`plan_micro_batches` decides which completions share a forward pass, `build_micro_batch` makes the tensors of one; what
the model reads of them is rl/policy/rows.py's. Completions of a question with the same tokens are computed once, and
the loss counts each of them.

Shape legend: T completion tokens of all sequences one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rl.losses import Aggregation, Denominators, token_weights
from rl.policy.row_plan import OVERHEAD_TOKENS, plan_rows
from rl.policy.rows import Layout, ModelRows, model_rows
from rl.records import PromptCompletion, TrainingGroup

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, order=True)
class SequenceIndex:
    """One completion of a list of groups."""

    group: int
    rollout: int


@dataclass(frozen=True, slots=True, order=True)
class PlannedBatch:
    """sequences: of one forward and backward pass. num_tokens: what the model computes for them."""

    sequences: tuple[SequenceIndex, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward and backward pass.

    rows: what the model reads; its N are the T here. advantages_T (of the completion), sampler_logprobs_T,
    old_logprobs_T (NaN where not computed yet), teacher_logprobs_T (NaN where no teacher was asked), weights_T: float32
    (weights: see rl.losses.token_weights). policy_versions_T: which version sampled each token. sequence_ids_T: index
    of its sequence in `sequences`. sequence_lengths: completion tokens of each sequence. num_loss_tokens: of the whole
    update. is_marked_T: where loss.covariance acts; None: nowhere.
    """

    rows: ModelRows
    advantages_T: Tensor
    sampler_logprobs_T: Tensor
    old_logprobs_T: Tensor
    teacher_logprobs_T: Tensor
    weights_T: Tensor
    policy_versions_T: Tensor
    sequence_ids_T: Tensor
    sequence_lengths: tuple[int, ...]
    sequences: tuple[SequenceIndex, ...]
    num_loss_tokens: int
    is_marked_T: Tensor | None = None

    @property
    def num_sequences(self) -> int:
        return len(self.sequences)

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy with all tensors on the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor | ModelRows)}
        return replace(self, **moved)


def trains(group: TrainingGroup, needs_all: bool) -> bool:
    """Whether a group needs a forward pass: some advantage is not zero, it has a teacher's log-probabilities, or the
    loss has a term that does not depend on advantages (`needs_all`: a KL penalty or an entropy bonus). Groups left out
    still count in the denominators."""
    return needs_all or group.teacher_logprobs is not None or any(advantage != 0.0 for advantage in group.advantages)


def plan_micro_batches(
    groups: Sequence[TrainingGroup], *, max_tokens: int, layout: Layout
) -> list[PlannedBatch]:
    """Which completions share a forward pass, each that trains exactly once (rl.policy.row_plan.plan_rows).

    Raises: ValueError for max_tokens < 1, or an empty prompt."""
    for training_group in groups:
        if not training_group.group.prompt.token_ids:
            raise ValueError(
                f"the prompt of question {training_group.group.question.id!r} has no tokens; a completion's first "
                "token needs one before it: use a template with some text, or a tokenizer with a beginning-of-sequence "
                "token")
    indices = [SequenceIndex(number, rollout) for number, group in enumerate(groups) for rollout in group.trained]
    plan = plan_rows([_pair(groups, index) for index in indices], max_tokens=max_tokens, layout=layout)
    return [PlannedBatch(tuple(indices[member] for member in part.members), part.num_tokens) for part in plan]


def plan_for_ranks(
    groups: Sequence[TrainingGroup], *, max_tokens: int, layout: Layout, num_ranks: int
) -> list[PlannedBatch]:
    """`plan_micro_batches`, with smaller ones than max_tokens where ranks would else have nothing to do: of some sizes
    the one under which the busiest rank computes least."""
    plan = plan_micro_batches(groups, max_tokens=max_tokens, layout=layout)
    if num_ranks == 1 or not plan:
        return plan
    fair = sum(planned.num_tokens for planned in plan) / num_ranks
    sizes = sorted({min(max_tokens, math.ceil(fair * slack)) for slack in (1.05, 1.2, 1.5)})
    plans = [plan, *(plan_micro_batches(groups, max_tokens=size, layout=layout) for size in sizes)]
    return min(plans, key=lambda plan: _busiest(plan, num_ranks))


def _busiest(plan: Sequence[PlannedBatch], num_ranks: int) -> int:
    """Tokens, the overhead of passes included, of the rank that computes most."""
    return max(sum(OVERHEAD_TOKENS + (planned.num_tokens if planned else 0) for planned in share)
               for share in split_for_ranks(plan, num_ranks))


def _pair(groups: Sequence[TrainingGroup], index: SequenceIndex) -> PromptCompletion:
    group = groups[index.group].group
    return group.prompt.token_ids, group.rollouts[index.rollout].token_ids


def split_for_ranks(plan: Sequence[PlannedBatch], num_ranks: int) -> list[list[PlannedBatch | None]]:
    """[ranks][steps]: the plan dealt out so that ranks have about equally many tokens and exactly equally many
    micro-batches.

    None, always last, is a micro-batch that a rank has to run empty, because collective operations must match.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}; it must be at least 1")
    num_steps = -(-len(plan) // num_ranks)
    shares: list[list[PlannedBatch | None]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for index in sorted(range(len(plan)), key=lambda index: (-plan[index].num_tokens, index)):
        rank = min(
            (rank for rank in range(num_ranks) if len(shares[rank]) < num_steps), key=lambda rank: (loads[rank], rank))
        shares[rank].append(plan[index])
        loads[rank] += plan[index].num_tokens
    return [[*share, *[None] * (num_steps - len(share))] for share in shares]


def split_minibatches(groups: Sequence[Item], num_minibatches: int) -> list[list[Item]]:
    """Consecutive parts whose sizes differ by at most one, one optimiser update each; fewer parts than asked for where
    there are fewer groups, never an empty one."""
    if num_minibatches < 1:
        raise ValueError(f"optim.minibatches is {num_minibatches}; it must be at least 1")
    num_parts = min(num_minibatches, len(groups))
    bounds = [len(groups) * part // num_parts for part in range(num_parts + 1)] if num_parts else [0]
    return [list(groups[start:end]) for start, end in pairwise(bounds)]


def denominators_of(groups: Sequence[TrainingGroup], max_completion_tokens: int) -> Denominators:
    """Of one optimiser update over these groups, those included that need no forward pass."""
    rollouts = [group.group.rollouts[rollout] for group in groups for rollout in group.trained]
    return Denominators(sum(len(rollout.token_ids) for rollout in rollouts), len(rollouts), max_completion_tokens)


def build_micro_batch(
    groups: Sequence[TrainingGroup], sequences: Sequence[SequenceIndex], denominators: Denominators, *,
    aggregation: Aggregation, pad_token_id: int, layout: Layout,
) -> MicroBatch:
    """The tensors, on the CPU, of the sequences that `plan_micro_batches` put together; `groups` are the ones it was
    given.

    Args: denominators: of the whole update, not of this micro-batch. pad_token_id: any id of the vocabulary; what it is
    changes nothing."""
    assert sequences, "an empty micro-batch has no tensors"
    numbered = [(groups[sequence.group], sequence) for sequence in sequences]
    rollouts = [item.group.rollouts[sequence.rollout] for item, sequence in numbered]
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    lengths_B = torch.tensor(lengths)
    advantages = [item.advantages[sequence.rollout] for item, sequence in numbered]
    return MicroBatch(
        rows=model_rows([_pair(groups, sequence) for sequence in sequences], layout, pad_token_id),
        advantages_T=torch.tensor(advantages, dtype=torch.float32).repeat_interleave(lengths_B),
        sampler_logprobs_T=_flat([rollout.logprobs for rollout in rollouts], lengths),
        old_logprobs_T=_flat([item.old_logprobs[s.rollout] if item.old_logprobs else None for item, s in numbered],
                             lengths),
        teacher_logprobs_T=_flat(
            [item.teacher_logprobs[s.rollout] if item.teacher_logprobs else None for item, s in numbered], lengths),
        weights_T=token_weights(lengths, aggregation, denominators),
        policy_versions_T=torch.tensor([r.policy_version for r in rollouts]).repeat_interleave(lengths_B),
        sequence_ids_T=torch.arange(len(lengths)).repeat_interleave(lengths_B), sequence_lengths=tuple(lengths),
        sequences=tuple(sequences), num_loss_tokens=denominators.num_loss_tokens,
        is_marked_T=_marks(numbered, lengths))


def _marks(numbered: Sequence[tuple[TrainingGroup, SequenceIndex]], lengths: Sequence[int]) -> Tensor | None:
    """[T] bool; None where no group has any."""
    if all(item.marks is None for item, _ in numbered):
        return None
    return _flat([item.marks[s.rollout] if item.marks else None for item, s in numbered], lengths) == 1.0


def _flat(parts: Sequence[Sequence[float] | Tensor | None], lengths: Sequence[int]) -> Tensor:
    """[T] float32; NaN where a part is None."""
    return torch.cat([
        torch.full((length,), math.nan) if part is None else torch.from_numpy(np.asarray(part, dtype=np.float32))
        for part, length in zip(parts, lengths, strict=True)])
