"""Attention of one new token of each row over a key/value cache in which the rows of a prompt share its part.

A prompt's keys are read once for all queries of its rows, each row's own keys by its query alone, and one softmax goes
over the scores of both. Everything is computed in float32, whatever the cache holds.

Shape legend: B rows; n prompts of P tokens, padding included; C most rows of a prompt; H query heads, KV heads of keys
and values, R = H / KV; t tokens of the rows' own; D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Places:
    """Of rows and prompts, heads apart. of_prompts [n * KV * C]: which of the B * KV rows stands there, any where a
    prompt has fewer; of_rows [B * KV]: where each stands among those. bias [n * KV, 1, P]: -inf at padding, else 0."""

    of_prompts: Tensor
    of_rows: Tensor
    bias: Tensor


class SharedCache:
    """The prompts' part, and which rows share it. transformers hands it from the model's call to each layer's attention
    (rl/policy/shared_prompts.py), whose own cache then holds the rows' part alone.

    prompts: of each layer the keys and values [n, KV, P, D]. is_real_nP: where no padding is. prompt_of_B: in rising
    order."""

    def __init__(self, prompts: Sequence[tuple[Tensor, Tensor]], is_real_nP: Tensor, prompt_of_B: Tensor) -> None:
        self._prompts, self._is_real_nP, self._prompt_of_B = list(prompts), is_real_nP.bool(), prompt_of_B
        self._places: dict[int, _Places] = {}

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, in rising order, and the prompts that still have one."""
        alive, self._prompt_of_B = torch.unique_consecutive(self._prompt_of_B[rows], return_inverse=True)
        if len(alive) < len(self._is_real_nP):
            self._is_real_nP = self._is_real_nP[alive]
            for layer, (key, value) in enumerate(self._prompts):
                self._prompts[layer] = (key[alive], value[alive])
        self._places.clear()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None) -> Tensor:
        """query [B, H, 1, D]; key, value: the rows' own, [B, KV, t, D]. -> [B, 1, H, D]."""
        (B, H, _, D), KV = query.shape, key.shape[1]
        if KV not in self._places:
            self._places[KV] = self._place(KV)
        places = self._places[KV]
        # [n * KV, P, D] and [B * KV, t, D]
        prompt_key, prompt_value, key, value = (x.float().flatten(0, 1) for x in (*self._prompts[layer], key, value))
        P, R = prompt_key.shape[1], H // KV

        def by_prompt(x: Tensor) -> Tensor:
            """[B * KV, R, any] -> [n * KV, C * R, any]"""
            return x.index_select(0, places.of_prompts).view(len(places.bias), -1, x.shape[-1])

        def by_row(x: Tensor) -> Tensor:
            return x.view(-1, R, x.shape[-1]).index_select(0, places.of_rows)

        query_rows = (query.float() * (D**-0.5 if scale is None else scale)).view(B * KV, R, D)
        of_prompt = torch.baddbmm(places.bias, by_prompt(query_rows), prompt_key.transpose(1, 2))
        scores = torch.cat([by_row(of_prompt), torch.bmm(query_rows, key.transpose(1, 2))], dim=2)
        weights = scores.softmax(dim=2)
        result = by_row(torch.bmm(by_prompt(weights[..., :P]), prompt_value))
        return torch.baddbmm(result, weights[..., P:], value).view(B, 1, H, D).to(query.dtype)

    def _place(self, num_heads: int) -> _Places:
        prompts, device = self._prompt_of_B, self._prompt_of_B.device
        counts = torch.bincount(prompts)
        most, heads = int(counts.max()), torch.arange(num_heads, device=device)
        number_B = torch.arange(len(prompts), device=device) - (counts.cumsum(0) - counts)[prompts]  # in its prompt
        of_rows = ((prompts[:, None] * num_heads + heads) * most + number_B[:, None]).flatten()
        of_prompts = of_rows.new_zeros(len(counts) * num_heads * most)
        of_prompts[of_rows] = torch.arange(len(of_rows), device=device)
        bias = torch.zeros(self._is_real_nP.shape, device=device).masked_fill_(~self._is_real_nP, -torch.inf)
        return _Places(of_prompts, of_rows, bias.repeat_interleave(num_heads, 0)[:, None])
