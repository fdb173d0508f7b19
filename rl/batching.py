"""Training groups -> micro-batches by token budget: here, and only here, groups are taken apart into rows of tokens.

`plan_micro_batches` decides which sequences share a forward pass, `build_micro_batch` makes the tensors of one. Rows
are right-padded (under a causal mask no real token sees the padding, so no attention mask is needed) or packed one
after the other into one row, where `position_ids` start at 0 for each sequence: pass `use_cache=False`, no attention
mask, and an attention that keeps them apart. Completions of a question with the same tokens share one row: the loss
counts each of them, the model computes them once. To add a layout: its cost in `plan_micro_batches`, its tensors in
`_lay_out`.

Shape legend: B sequences, L columns, T completion tokens of all sequences one after the other, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from rl.losses import Aggregation, Denominators, token_weights
from rl.records import TrainingGroup

Layout = Literal["padded", "packed"]

OVERHEAD_TOKENS = 128
"""A micro-batch costs about as much as so many tokens of computation, whatever it holds: launches, Python, small
kernels."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, order=True)
class SequenceIndex:
    """One completion of a list of groups. num_tokens: of its row, prompt included. is_repeat: an earlier completion of
    the group has the same tokens, and this one shares its row."""

    group: int
    rollout: int
    num_tokens: int
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The tensors of one forward and backward pass.

    token_ids_BL, position_ids_BL: what the model reads; [1, L] when packed. predictor_T: where the position that
    predicts each completion token is in the flattened [B * L]; `hidden_BLH.flatten(0, 1)[predictor_T]` is [T, H], the
    same positions again for completions that share a row. completion_ids_T: those tokens. advantages_T (of the
    completion), sampler_logprobs_T, old_logprobs_T (NaN where not computed yet), teacher_logprobs_T (NaN where no
    teacher was asked), weights_T: float32 (weights: see rl.losses.token_weights). policy_versions_T: which version
    sampled each token. sequence_ids_T: index of its sequence in `sequences`. sequence_lengths: completion tokens of
    each sequence. num_loss_tokens: of the whole update.
    """

    token_ids_BL: Tensor
    position_ids_BL: Tensor
    predictor_T: Tensor
    completion_ids_T: Tensor
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

    @property
    def num_sequences(self) -> int:
        return len(self.sequences)

    def to(self, device: torch.device | str) -> MicroBatch:
        """A copy with all tensors on the device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def trains(group: TrainingGroup, needs_all: bool) -> bool:
    """Whether a group needs a forward pass: some advantage is not zero, it has a teacher's log-probabilities, or the
    loss has a term that does not depend on advantages (`needs_all`: a KL penalty or an entropy bonus). Groups left out
    still count in the denominators."""
    return needs_all or group.teacher_logprobs is not None or any(advantage != 0.0 for advantage in group.advantages)


def sequence_indices(groups: Sequence[TrainingGroup]) -> list[SequenceIndex]:
    """Every completion of the groups. The row fed to the model is prompt + completion without its last token, which
    predicts nothing.

    Raises: ValueError for an empty prompt: nothing would predict the first token."""
    indices = []
    for group_index, training_group in enumerate(groups):
        group = training_group.group
        if not group.prompt.token_ids:
            raise ValueError(
                f"the prompt of question {group.question.id!r} has no tokens; a completion's first token needs "
                "one before it: use a template with some text, or a tokenizer with a beginning-of-sequence token")
        seen: set[tuple[int, ...]] = set()
        for rollout_index, rollout in enumerate(group.rollouts):
            num_tokens = len(group.prompt.token_ids) + len(rollout.token_ids) - 1
            indices.append(SequenceIndex(group_index, rollout_index, num_tokens, is_repeat=rollout.token_ids in seen))
            seen.add(rollout.token_ids)
    return indices


def plan_micro_batches(
    groups: Sequence[TrainingGroup], *, max_tokens: int, layout: Layout = "padded"
) -> list[list[SequenceIndex]]:
    """Which sequences share a forward pass, each sequence exactly once; longest first, so that little is padded. A
    repeat follows the sequence whose row it shares and costs nothing.

    A micro-batch costs its rows times its longest row (padded) or its tokens (packed), and costs at most `max_tokens`.
    A sequence longer than that gets a micro-batch of its own: refusing it would lose a completion after it was sampled;
    check the longest possible row (prompt + completion limits) before training instead. The same groups give the same
    plan.

    Raises: ValueError for max_tokens < 1 or an empty prompt.
    """
    if max_tokens < 1:
        raise ValueError(f"optim.micro_batch_tokens is {max_tokens}; it must be at least 1")
    indices = sequence_indices(groups)
    longest_first = sorted((s for s in indices if not s.is_repeat), key=lambda s: (-s.num_tokens, s.group, s.rollout))
    plan = _in_padded_rows(longest_first, max_tokens) if layout == "padded" else _first_fit(longest_first, max_tokens)
    return [_with_repeats(sequences, groups, indices) for sequences in plan]


def _with_repeats(
    sequences: list[SequenceIndex], groups: Sequence[TrainingGroup], indices: list[SequenceIndex]
) -> list[SequenceIndex]:
    repeats: dict[tuple[int, tuple[int, ...]], list[SequenceIndex]] = {}
    for index in indices:
        if index.is_repeat:
            repeats.setdefault(_row_key(groups, index), []).append(index)
    return [member for first in sequences for member in (first, *repeats.get(_row_key(groups, first), ()))]


def _row_key(groups: Sequence[TrainingGroup], index: SequenceIndex) -> tuple[int, tuple[int, ...]]:
    """What sequences that share a row have in common: the question and the tokens."""
    return index.group, groups[index.group].group.rollouts[index.rollout].token_ids


def _in_padded_rows(longest_first: list[SequenceIndex], max_tokens: int) -> list[list[SequenceIndex]]:
    """Consecutive runs of the sorted sequences with the least sum of (padded tokens + OVERHEAD_TOKENS), by dynamic
    programming.

    Filling each micro-batch to max_tokens would pad short completions to the longest of a batch that has room for
    all."""
    lengths = [sequence.num_tokens for sequence in longest_first]
    # cost[i]: least cost of the first i sequences; start[i]: where the last micro-batch of that plan begins.
    cost, start = [0] * (len(lengths) + 1), [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        best = None
        for begin in range(end - 1, -1, -1):
            padded = (end - begin) * lengths[begin]
            if padded > max_tokens and end - begin > 1:
                break
            total = cost[begin] + padded + OVERHEAD_TOKENS
            if best is None or total < best:
                best, start[end] = total, begin
        assert best is not None
        cost[end] = best
    plan, end = [], len(lengths)
    while end:
        plan.append(longest_first[start[end] : end])
        end = start[end]
    return plan[::-1]


def _first_fit(longest_first: list[SequenceIndex], max_tokens: int) -> list[list[SequenceIndex]]:
    plan: list[list[SequenceIndex]] = []
    room: list[int] = []
    for sequence in longest_first:
        place = next((index for index, free in enumerate(room) if free >= sequence.num_tokens), None)
        if place is None:
            plan.append([])
            room.append(max_tokens)
            place = len(plan) - 1
        plan[place].append(sequence)
        room[place] -= sequence.num_tokens
    return plan


def split_for_ranks(plan: Sequence[list[SequenceIndex]], num_ranks: int) -> list[list[list[SequenceIndex] | None]]:
    """[ranks][steps]: the plan dealt out so that ranks have about equally many tokens and exactly equally many
    micro-batches.

    None, always last, is a micro-batch that a rank has to run empty, because collective operations must match.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks is {num_ranks}; it must be at least 1")
    num_steps = -(-len(plan) // num_ranks)
    shares: list[list[list[SequenceIndex] | None]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    costs = [sum(sequence.num_tokens for sequence in sequences if not sequence.is_repeat) for sequences in plan]
    for index in sorted(range(len(plan)), key=lambda index: (-costs[index], index)):
        rank = min(
            (rank for rank in range(num_ranks) if len(shares[rank]) < num_steps), key=lambda rank: (loads[rank], rank))
        shares[rank].append(plan[index])
        loads[rank] += costs[index]
    return [share + [None] * (num_steps - len(share)) for share in shares]


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
    rollouts = [rollout for group in groups for rollout in group.group.rollouts]
    return Denominators(sum(len(rollout.token_ids) for rollout in rollouts), len(rollouts), max_completion_tokens)


def build_micro_batch(
    groups: Sequence[TrainingGroup], sequences: Sequence[SequenceIndex], denominators: Denominators, *,
    aggregation: Aggregation, pad_token_id: int, layout: Layout = "padded",
) -> MicroBatch:
    """The tensors, on the CPU, of the sequences that `plan_micro_batches` put together; `groups` are the ones it was
    given.

    Args: denominators: of the whole update, not of this micro-batch. pad_token_id: any id of the vocabulary; what it is
    changes nothing."""
    assert sequences, "an empty micro-batch has no tensors"
    members = [groups[sequence.group] for sequence in sequences]
    rollouts = [item.group.rollouts[sequence.rollout] for item, sequence in zip(members, sequences, strict=True)]
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    lengths_B = torch.tensor(lengths)
    rows, row_of = _rows(groups, sequences)
    token_ids_BL, position_ids_BL, offsets = _lay_out(rows, layout, pad_token_id)
    starts = [offsets[row] + len(item.group.prompt.token_ids) - 1 for row, item in zip(row_of, members, strict=True)]
    old = [_of_completion(groups[s.group].old_logprobs, s, n) for s, n in zip(sequences, lengths, strict=True)]
    teachers = [_of_completion(groups[s.group].teacher_logprobs, s, n) for s, n in zip(sequences, lengths, strict=True)]
    advantages = [item.advantages[sequence.rollout] for item, sequence in zip(members, sequences, strict=True)]
    return MicroBatch(
        token_ids_BL=token_ids_BL, position_ids_BL=position_ids_BL,
        predictor_T=torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)]),
        completion_ids_T=torch.tensor([token for rollout in rollouts for token in rollout.token_ids]),
        advantages_T=torch.tensor(advantages, dtype=torch.float32).repeat_interleave(lengths_B),
        sampler_logprobs_T=_flat([rollout.logprobs for rollout in rollouts]),
        old_logprobs_T=_flat(old), teacher_logprobs_T=_flat(teachers),
        weights_T=token_weights(lengths, aggregation, denominators),
        policy_versions_T=torch.tensor([r.policy_version for r in rollouts]).repeat_interleave(lengths_B),
        sequence_ids_T=torch.arange(len(lengths)).repeat_interleave(lengths_B), sequence_lengths=tuple(lengths),
        sequences=tuple(sequences), num_loss_tokens=denominators.num_loss_tokens)


def _rows(
    groups: Sequence[TrainingGroup], sequences: Sequence[SequenceIndex]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """What the model reads, prompt and completion without its last token, and the number of each sequence's row."""
    rows: dict[tuple[int, tuple[int, ...]], tuple[int, ...]] = {}
    for sequence in sequences:
        key = _row_key(groups, sequence)
        rows[key] = (*groups[sequence.group].group.prompt.token_ids, *key[1][:-1])
    numbers = {key: number for number, key in enumerate(rows)}
    return list(rows.values()), [numbers[_row_key(groups, sequence)] for sequence in sequences]


def _of_completion(
    logprobs: tuple[tuple[float, ...], ...] | None, sequence: SequenceIndex, length: int
) -> tuple[float, ...]:
    return (math.nan,) * length if logprobs is None else logprobs[sequence.rollout]


def _flat(values: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([value for part in values for value in part], dtype=torch.float32)


def _lay_out(rows: list[tuple[int, ...]], layout: Layout, pad_token_id: int) -> tuple[Tensor, Tensor, list[int]]:
    """Token ids, position ids, and where each row begins in the flattened [B * L]."""
    if layout == "padded":
        width = max(len(row) for row in rows)
        token_ids_BL = torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])
        return token_ids_BL, torch.arange(width).expand(len(rows), width), [width * index for index in range(len(rows))]
    offsets = [0]
    for row in rows[:-1]:
        offsets.append(offsets[-1] + len(row))
    token_ids_1L = torch.tensor([[token for row in rows for token in row]])
    position_ids_1L = torch.tensor([[position for row in rows for position in range(len(row))]])
    return token_ids_1L, position_ids_1L, offsets
