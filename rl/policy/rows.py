"""Prompts and completions -> what the model reads, in one of two layouts; every different pair stands there once.

padded: a row for each pair, prompt and completion, right-padded; under a causal mask no real token sees the padding.
shared: one row in all; first every different prompt, then the completions, each with positions that go on from its
prompt's. A completion sees its prompt and itself (rl/policy/shared_prompts.py), so that the model computes each
different token once.

A completion's last token is never read: it predicts nothing.

Shape legend: B rows, L columns, N tokens of all completions one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.policy.shared_prompts import Segment, SharedPrompts
from rl.records import PromptCompletion

Layout = Literal["padded", "shared"]


@dataclass(frozen=True, slots=True)
class ModelRows:
    """token_ids_BL: what the model reads. position_ids_1L, shared_prompts: of the shared layout; None where each row
    counts from 0 and sees itself. predicting_N: where in the flattened [B * L] the position is that predicts each token
    of the completions; `hidden_BLH.flatten(0, 1)[predicting_N]` is [N, H]. targets_N: those tokens."""

    token_ids_BL: Tensor
    predicting_N: Tensor
    targets_N: Tensor
    position_ids_1L: Tensor | None = None
    shared_prompts: SharedPrompts | None = None

    def to(self, device: torch.device | str) -> ModelRows:
        """A copy with all tensors on the device."""
        positions = None if self.position_ids_1L is None else self.position_ids_1L.to(device)
        return replace(
            self, token_ids_BL=self.token_ids_BL.to(device), predicting_N=self.predicting_N.to(device),
            targets_N=self.targets_N.to(device), position_ids_1L=positions)


def model_rows(pairs: Sequence[PromptCompletion], layout: Layout, pad_token_id: int) -> ModelRows:
    """pairs: token ids of prompts and completions. pad_token_id: any id of the vocabulary; what it is changes nothing.
    Tensors on the CPU. Raises ValueError for an empty prompt or completion: nothing would predict the first token."""
    if not all(prompt and completion for prompt, completion in pairs):
        raise ValueError("a prompt or a completion has no tokens")
    return _padded(pairs, pad_token_id) if layout == "padded" else _shared(pairs)


def _padded(pairs: Sequence[PromptCompletion], pad_token_id: int) -> ModelRows:
    ids = {pair: _ids(pair[1]) for pair in pairs}
    row_of = {pair: row for row, pair in enumerate(ids)}
    width = max(len(prompt) + len(completion) - 1 for prompt, completion in ids)
    token_ids_BL = torch.full((len(ids), width), pad_token_id)
    for row, ((prompt, _), completion) in enumerate(ids.items()):
        token_ids_BL[row, : len(prompt)] = _ids(prompt)
        token_ids_BL[row, len(prompt) : len(prompt) + len(completion) - 1] = completion[:-1]
    starts = [width * row_of[pair] + len(pair[0]) - 1 for pair in pairs]
    predicting = [torch.arange(start, start + len(pair[1])) for start, pair in zip(starts, pairs, strict=True)]
    return ModelRows(token_ids_BL, torch.cat(predicting), torch.cat([ids[pair] for pair in pairs]))


def _shared(pairs: Sequence[PromptCompletion]) -> ModelRows:
    prompts: dict[tuple[int, ...], Segment] = {}
    completions: dict[PromptCompletion, Segment] = {}
    at = 0
    for prompt, _ in pairs:
        if prompt not in prompts:
            prompts[prompt] = Segment(at, at := at + len(prompt))
    for pair in pairs:
        if pair not in completions:
            of = prompts[pair[0]]
            completions[pair] = Segment(at, at := at + len(pair[1]) - 1, of.start, of.stop)
    ids = {pair: _ids(pair[1]) for pair in completions}
    predicting = [
        part for pair in pairs for part in (
            torch.tensor([prompts[pair[0]].stop - 1]), torch.arange(completions[pair].start, completions[pair].stop))]
    # A completion of one token is never read.
    segments = [segment for segment in (*prompts.values(), *completions.values()) if segment.num_tokens]
    positions = torch.cat([torch.arange(segment.num_context, segment.num_keys) for segment in segments])
    return ModelRows(
        torch.cat([*map(_ids, prompts), *(completion[:-1] for completion in ids.values())])[None],
        torch.cat(predicting), torch.cat([ids[pair] for pair in pairs]), positions[None],
        SharedPrompts(tuple(segments)))


def _ids(tokens: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.array(tokens, dtype=np.int64))  # torch.tensor takes several times as long


def hidden_states(model: PreTrainedModel, rows: ModelRows) -> Tensor:
    """[N, H]: the model's last hidden states at the positions that predict the completions' tokens."""
    shared: dict[str, Any] = {}
    if rows.shared_prompts is not None:
        # A mask that is ready: transformers would make one that keeps completions from their prompts, [L, L] at that.
        ready = rows.token_ids_BL.new_zeros((1, 1, 1, 1), dtype=torch.bool)
        rows.shared_prompts.is_recomputed = model.training and model.is_gradient_checkpointing
        shared = {"shared_prompts": rows.shared_prompts, "attention_mask": ready}
    backbone = getattr(model, model.base_model_prefix)
    output = backbone(input_ids=rows.token_ids_BL, position_ids=rows.position_ids_1L, use_cache=False, **shared)
    hidden_BLH: Tensor = output.last_hidden_state
    return hidden_BLH.flatten(0, 1)[rows.predicting_N]
