"""A batch of completions while it decodes: the rows that the model still runs, and what was sampled for all of them.

Shape legend: B completions, T tokens of the longest that is allowed, L tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rl.generate.completions import Completion
from rl.generate.growing_cache import growing_cache, keeps_all_tokens
from rl.generate.protocol import Request
from rl.policy.layout import PROMPTS, TOLERANCE, layout_of
from rl.policy.shared_cache import SharedCache
from rl.records import Prompt, Question


class DecodingRows:
    """The rows that still decode, one per completion. logits: [B, V], of their next tokens.

    Each prompt is run once, left-padded to the longest. share: its rows read that one cache, beside one of their own
    tokens (rl/policy/shared_cache.py); else each has a copy of it."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request], *, share: bool) -> None:
        device, prompts = model.device, [request.prompt.token_ids for request in requests]
        padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        ids_BL = torch.tensor([[0] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)], device=device)
        mask = torch.tensor(
            [[0] * pad + [1] * len(ids) for pad, ids in zip(padding, prompts, strict=True)], device=device)
        self._model, self._is_padded, self._num_appended = model, any(padding), 0
        self._cache = DynamicCache(config=model.config) if share else growing_cache(model.config)
        logits = model(
            input_ids=ids_BL, attention_mask=mask if self._is_padded else None,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0) if self._is_padded else None,
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1]
        repeats = torch.tensor([len(request.seeds) for request in requests], device=device)
        prompt_of_B = torch.repeat_interleave(torch.arange(len(requests), device=device), repeats)
        self._shared = None
        if share:
            self._shared = SharedCache([(layer.keys, layer.values) for layer in self._cache.layers], mask, prompt_of_B)
            self._cache = growing_cache(model.config)
        else:
            self._cache.batch_select_indices(prompt_of_B)
        self.logits, self._mask = logits[prompt_of_B], mask[prompt_of_B]
        self._lengths_B1 = self._mask.sum(1, keepdim=True)  # of the prompts

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, in their order; `append` makes the logits anew."""
        self._cache.batch_select_indices(rows)
        if self._shared is not None:
            self._shared.keep(rows)
        self._mask, self._lengths_B1 = self._mask[rows], self._lengths_B1[rows]

    def append(self, tokens_B: Tensor) -> None:
        """Run the model on one more token of each row."""
        seen: dict[str, Any] = {}
        if self._shared is not None:
            # A mask that is ready: transformers would make one of the row's own tokens, and it is not looked at.
            ready = self._mask.new_zeros((1, 1, 1, 1), dtype=torch.bool)
            seen = {"shared_cache": self._shared, "attention_mask": ready}
        elif self._is_padded:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
            seen = {"attention_mask": self._mask}
        if self._shared is not None or self._is_padded:
            seen["position_ids"] = self._lengths_B1 + self._num_appended
        self.logits = self._model(
            input_ids=tokens_B[:, None], past_key_values=self._cache, use_cache=True, **seen).logits[:, -1]
        self._num_appended += 1


@torch.inference_mode()
def reads_shared_cache(model: PreTrainedModel) -> bool:
    """Whether rows may share their prompt's cache, tried on the model, in evaluation mode: its next logits are those
    with copies of it. False where it does not even share prompts in training, or a layer keeps a cache of another kind
    (a sliding window)."""
    if layout_of(model) != "shared" or not keeps_all_tokens(model.config):
        return False
    requests = [Request(Prompt(Question("", "", None, {}), "", ids), seeds)
                for ids, seeds in zip(PROMPTS, ((0, 1, 2), (3, 4)), strict=True)]
    tokens_B = torch.tensor([*PROMPTS[0][:3], *PROMPTS[1]], device=model.device)
    expected, found = (DecodingRows(model, requests, share=share) for share in (False, True))
    try:
        for rows in (expected, found):
            rows.append(tokens_B)
            rows.keep(torch.arange(1, len(tokens_B), device=model.device))
            rows.append(tokens_B[1:])
    except torch.OutOfMemoryError:
        raise
    # Whatever an architecture of any author raises where it is given what it does not know.
    except Exception:
        return False
    difference = (found.logits.float() - expected.logits.float()).abs().mean()
    return bool(difference <= TOLERANCE.get(model.dtype, 0.1) * expected.logits.float().abs().mean())


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What was sampled so far; beyond a completion's end the numbers mean nothing.

    statistics_2BT: entropies and self-certainties, None where nobody asks for them. ended_at_B: the index of the token
    that stopped the completion, T where none has."""

    tokens_BT: Tensor
    logprobs_BT: Tensor
    statistics_2BT: Tensor | None
    ended_at_B: Tensor

    @classmethod
    def none(cls, num_rows: int, num_tokens: int, with_statistics: bool, device: torch.device) -> SampledTokens:
        """Room for num_rows completions of at most num_tokens."""
        return cls(
            torch.zeros(num_rows, num_tokens, dtype=torch.long, device=device),
            torch.zeros(num_rows, num_tokens, device=device),
            torch.zeros(2, num_rows, num_tokens, device=device) if with_statistics else None,
            torch.full((num_rows,), num_tokens, device=device))

    def end(self, live: Tensor, stops: Tensor, step: int) -> Tensor:
        """Note which of the completions `live` stop at this step; which of them go on, as indices into `live`."""
        steps, ended_at = self.tokens_BT.shape[1], self.ended_at_B
        ended_at[live] = torch.where(stops & (ended_at[live] == steps), step, ended_at[live])
        return (ended_at[live] == steps).nonzero().squeeze(1)

    def completions(self) -> list[Completion]:
        """All of them, each up to its end."""
        steps, logprobs, ended_at = self.tokens_BT.shape[1], self.logprobs_BT.tolist(), self.ended_at_B.tolist()
        entropies, certainties = self.statistics_2BT.tolist() if self.statistics_2BT is not None else (None, None)

        def up_to_end(values_BT: list[list[float]] | None, row: int, length: int) -> tuple[float, ...] | None:
            return None if values_BT is None else tuple(values_BT[row][:length])

        found = []
        for row, (tokens, end) in enumerate(zip(self.tokens_BT.tolist(), ended_at, strict=True)):
            length = min(end + 1, steps)
            found.append(Completion(
                tuple(tokens[:length]), tuple(logprobs[row][:length]), "stop" if end < steps else "length",
                up_to_end(entropies, row, length), up_to_end(certainties, row, length)))
        return found
