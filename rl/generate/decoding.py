"""A batch of completions while it decodes: the rows that the model still runs, and what was sampled for all of them.

Shape legend: B completions, T tokens of the longest that is allowed, L tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.generate.completions import Completion
from rl.generate.growing_cache import growing_cache
from rl.generate.protocol import Request


class DecodingRows:
    """The rows that still decode, one per completion. logits: [B, V], of their next tokens.

    Each prompt is run once, left-padded to the longest, and its cache is copied for each of its completions."""

    def __init__(self, model: PreTrainedModel, requests: Sequence[Request]) -> None:
        device, prompts = model.device, [request.prompt.token_ids for request in requests]
        padding = [max(map(len, prompts)) - len(prompt) for prompt in prompts]
        ids_BL = torch.tensor([[0] * pad + list(ids) for pad, ids in zip(padding, prompts, strict=True)], device=device)
        mask = torch.tensor(
            [[0] * pad + [1] * len(ids) for pad, ids in zip(padding, prompts, strict=True)], device=device)
        self._model, self._cache, self._is_padded = model, growing_cache(model.config), any(padding)
        self._num_appended = 0
        logits = model(
            input_ids=ids_BL, attention_mask=mask if self._is_padded else None,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0) if self._is_padded else None,
            past_key_values=self._cache, use_cache=True, logits_to_keep=1,
        ).logits[:, -1]
        repeats = torch.tensor([len(request.seeds) for request in requests], device=device)
        prompt_of_B = torch.repeat_interleave(torch.arange(len(requests), device=device), repeats)
        self._cache.batch_select_indices(prompt_of_B)
        self.logits, self._mask = logits[prompt_of_B], mask[prompt_of_B]
        self._lengths_B1 = self._mask.sum(1, keepdim=True)  # of the prompts

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone; `append` makes the logits anew."""
        self._cache.batch_select_indices(rows)
        self._mask, self._lengths_B1 = self._mask[rows], self._lengths_B1[rows]

    def append(self, tokens_B: Tensor) -> None:
        """Run the model on one more token of each row."""
        if self._is_padded:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self.logits = self._model(
            input_ids=tokens_B[:, None], attention_mask=self._mask if self._is_padded else None,
            position_ids=self._lengths_B1 + self._num_appended if self._is_padded else None,
            past_key_values=self._cache, use_cache=True,
        ).logits[:, -1]
        self._num_appended += 1


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
