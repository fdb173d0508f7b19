"""A key/value cache that writes in place.

transformers' DynamicLayer concatenates on every token, which copies the whole cache each time; its StaticLayer attends
over the whole reserved length. This layer reserves room in steps and hands out views of the part that is filled. Layers
of another kind (sliding window, linear attention) keep transformers' own class.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 32  # tokens reserved beyond what is needed


class GrowingLayer(DynamicLayer):
    """DynamicLayer with spare room: `keys` and `values` are views [B, heads, filled, width] of larger buffers."""

    _key_buffer: torch.Tensor
    _value_buffer: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        needed = filled + key_states.shape[-2]
        if filled == 0 or needed > self._key_buffer.shape[-2]:
            self._reserve(key_states, value_states, filled, needed + max(ROOM, needed // 2))
        self._key_buffer[:, :, filled:needed] = key_states
        self._value_buffer[:, :, filled:needed] = value_states
        self.keys, self.values = self._key_buffer[:, :, :needed], self._value_buffer[:, :, :needed]
        return self.keys, self.values

    def _reserve(self, key_states: torch.Tensor, value_states: torch.Tensor, filled: int, length: int) -> None:
        old_keys, old_values = self.keys, self.values
        self._key_buffer = key_states.new_empty(*key_states.shape[:2], length, key_states.shape[-1])
        self._value_buffer = value_states.new_empty(*value_states.shape[:2], length, value_states.shape[-1])
        if filled:
            self._key_buffer[:, :, :filled], self._value_buffer[:, :, :filled] = old_keys, old_values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._shrink_to_view()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._shrink_to_view()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)
        self._shrink_to_view()

    def _shrink_to_view(self) -> None:
        # The rows were copied without their spare room; the next update reserves it anew.
        self._key_buffer, self._value_buffer = self.keys, self.values


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """A DynamicCache for this model whose full-attention layers write in place."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keeps_all_tokens(config: PretrainedConfig) -> bool:
    """Whether every layer of this model keeps keys and values of all tokens: no sliding window, no linear attention."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
