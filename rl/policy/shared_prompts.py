"""Attention over one row in which the completions of a question share its prompt.

`SharedPrompts` says what sees what: a segment of the row (a prompt, a completion) sees its context (nothing, its
prompt) and, causally, itself. transformers hands it from the model's call to each layer's attention, which after
`share_prompts(model)` is `_attention`: without a layout transformers' own sdpa, so that whatever else reads the model
notices nothing. The sampler's `SharedCache` comes to it in the same way (rl/policy/shared_cache.py).

On a GPU in half precision all segments are one call of torch's flash kernel for sequences of different lengths;
elsewhere a large segment is a call of scaled_dot_product_attention, and small ones share a padded one.

Shape legend: L tokens of the row; H query heads; n segments of a call, padded to Q queries and K keys; D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import signature
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from rl.policy.shared_cache import SharedCache

NAME = "otherhalf_shared_prompts"
CALL_PAIRS = 2048
"""A call of attention costs about as much as so many pairs of a query and a key: kernels started, Python."""
KEPT_COPIES = {"cpu": 4, "elsewhere": 2}
"""Each completion reads a copy of its prompt's keys and values. Where copies are more than so many times the row, they
are made again for the backward pass instead of being kept: on a CPU that takes longer, elsewhere memory is dearer.
Layers that are recomputed anyway (rl/policy/recomputation.py) make them again with the rest."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, stop) of the row. Each sees [context_start, context_stop), and its own segment up to itself."""

    start: int
    stop: int
    context_start: int = 0
    context_stop: int = 0

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    @property
    def num_context(self) -> int:
        return self.context_stop - self.context_start

    @property
    def num_keys(self) -> int:
        return self.num_context + self.num_tokens

    def key_positions(self) -> Tensor:
        """[num_keys]: where they stand in the row."""
        return torch.cat([torch.arange(self.context_start, self.context_stop), torch.arange(self.start, self.stop)])


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of scaled_dot_product_attention over segments that are padded to one size. mask: [n, 1, Q, K], 0 where a
    query sees a key, else -inf, in the queries' dtype: of booleans each layer would make and keep such a one; None
    where that is plainly causal. queries [n, Q], keys [n, K]: positions in the row;
    outputs: which of the n * Q results are real. None for a segment alone: it is cut out of the row."""

    segments: tuple[Segment, ...]
    mask: Tensor | None
    queries: Tensor | None = None
    keys: Tensor | None = None
    outputs: Tensor | None = None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float) -> Tensor:
        """query [1, H, L, D], key and value [1, KV, L, D] -> [1, tokens of the segments, H, D]."""
        cut = 0
        if self.queries is None:
            (segment,) = self.segments
            key, value = (_with_context(x, segment) for x in (key, value))
            if self.mask is None and segment.num_context:
                # Its context attends once more, and is cut off: less than a mask, under which nothing is passed over.
                query, cut = _with_context(query, segment), segment.num_context
            else:
                query = query[:, :, segment.start : segment.stop].clone()
        else:
            query, key, value = (
                x[0][:, at].transpose(0, 1) for x, at in ((query, self.queries), (key, self.keys), (value, self.keys)))
        result = _sdpa(query, key, value, self.mask, scale=scale, dropout=dropout).transpose(1, 2)
        return result[:, cut:] if self.outputs is None else result.flatten(0, 1)[self.outputs][None]


@dataclass(frozen=True, slots=True)
class _Place:
    """What the calls of a row depend on beside its segments. window: None where it hides nothing."""

    device: torch.device
    dtype: torch.dtype
    window: int | None

    def mask(self, sees: Tensor) -> Tensor:
        """[n, Q, K] booleans -> [n, 1, Q, K]."""
        return torch.zeros(sees.shape, dtype=self.dtype).masked_fill_(~sees, -torch.inf)[:, None].to(self.device)


@dataclass(frozen=True, slots=True)
class _Varlen:
    """All segments for one call of the flash kernel: keys [K]: positions in the row, segment after segment; where each
    segment's queries and keys begin, int32."""

    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest_query: int
    longest_key: int


@dataclass(eq=False, slots=True)
class SharedPrompts:
    """segments: of the whole row, in its order, without gaps. windows: the sliding window of each layer that has
    attended, None where it has none. is_recomputed: layers are computed again in the backward pass."""

    segments: tuple[Segment, ...]
    is_recomputed: bool = False
    windows: list[int | None] = field(default_factory=list)
    _calls: dict[_Place, tuple[list[_Call], Tensor | None]] = field(default_factory=dict)
    _varlen: dict[torch.device, _Varlen] = field(default_factory=dict)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, dropout: float, window: int | None
    ) -> Tensor:
        """query [1, H, L, D], key and value [1, KV, L, D] -> [1, L, H, D]. window: how many tokens each sees, itself
        included."""
        self.windows.append(window)
        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # positions are turned in float32, and leave queries and keys so
            query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
        if window is not None and window >= max(segment.num_keys for segment in self.segments):
            window = None

        def compute(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
                return self._by_flash(query, key, value, scale, window)
            return self._by_calls(query, key, value, scale, dropout, window)

        copies = sum(segment.num_keys for segment in self.segments)
        kept = KEPT_COPIES["cpu" if kind == "cpu" else "elsewhere"]
        if torch.is_grad_enabled() and copies > kept * query.shape[2] and not self.is_recomputed:
            result: Tensor = checkpoint(compute, query, key, value, use_reentrant=False)
            return result
        return compute(query, key, value)

    def _by_calls(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, dropout: float, window: int | None
    ) -> Tensor:
        place = _Place(query.device, query.dtype, window)
        if place not in self._calls:
            self._calls[place] = _plan(self.segments, place)
        calls, order = self._calls[place]
        result = torch.cat([call.attend(query, key, value, scale=scale, dropout=dropout) for call in calls], dim=1)
        return result if order is None else result[:, order]

    def _by_flash(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        grouped = query.shape[1] != key.shape[1]
        # Before torch 2.12 there is no such argument, and grouped queries need none.
        knows = "enable_gqa" in signature(varlen_attn).parameters
        gqa: dict[str, Any] = {"enable_gqa": True} if grouped and knows else {}
        if query.device not in self._varlen:
            self._varlen[query.device] = _varlen(self.segments, query.device)
        layout = self._varlen[query.device]
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        # The kernel aligns the last query with the last key.
        result = varlen_attn(
            query, key[layout.keys], value[layout.keys], layout.query_starts, layout.key_starts, layout.longest_query,
            layout.longest_key, scale=scale, window_size=(-1 if window is None else window - 1, 0),
            **gqa)
        assert isinstance(result, Tensor)
        return result[None]


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float | None, dropout: float
) -> Tensor:
    """Causal without a mask. [n, H, Q, D], [n, KV, K, D] twice -> [n, H, Q, D]."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and mask is not None and query.device.type != "cpu":
        # Of masked and grouped queries only the CPU has a kernel.
        key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
        grouped = False
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scale, enable_gqa=grouped)


def _with_context(x: Tensor, segment: Segment) -> Tensor:
    """A copy: a view would keep the whole row for the backward pass."""
    parts = (x[:, :, segment.context_start : segment.context_stop], x[:, :, segment.start : segment.stop])
    return torch.cat(parts, dim=2)


def _varlen(segments: Sequence[Segment], device: torch.device) -> _Varlen:
    def starts(lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)

    queries, keys = [s.num_tokens for s in segments], [s.num_keys for s in segments]
    positions = torch.cat([segment.key_positions() for segment in segments]).to(device)
    return _Varlen(positions, starts(queries), starts(keys), max(queries), max(keys))


def _plan(segments: Sequence[Segment], place: _Place) -> tuple[list[_Call], Tensor | None]:
    """The calls, and which of their results, one after the other, belongs to each token of the row; None where they
    come in its order."""
    parts = _parts(segments)
    calls = [_alone(part[0], place) if len(part) == 1 else _together(part, place) for part in parts]
    positions = torch.cat([torch.arange(s.start, s.stop) for part in parts for s in part])
    order = positions.argsort()
    return calls, None if torch.equal(order, torch.arange(len(order))) else order.to(place.device)


def _parts(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Which segments share a call: as long as padding them costs less than a call of their own."""
    parts: list[list[Segment]] = []
    queries = context = 0  # of the last part's padded size
    for segment in sorted(segments, key=lambda s: (-s.num_keys, s.start)):
        if parts:
            wider, longer = max(queries, segment.num_tokens), max(context, segment.num_context)
            size = len(parts[-1])
            together = (size + 1) * wider * (longer + wider)
            apart = size * queries * (context + queries) + segment.num_tokens * segment.num_keys + CALL_PAIRS
            if together <= apart:
                parts[-1].append(segment)
                queries, context = wider, longer
                continue
        parts.append([segment])
        queries, context = segment.num_tokens, segment.num_context
    return [sorted(part, key=lambda s: s.start) for part in sorted(parts, key=lambda part: min(s.start for s in part))]


def _alone(segment: Segment, place: _Place) -> _Call:
    if segment.num_context <= segment.num_tokens and place.window is None:
        return _Call((segment,), None)
    sees = torch.ones(1, segment.num_tokens, segment.num_keys, dtype=torch.bool).tril(segment.num_context)
    if place.window is not None:
        sees = sees.triu(segment.num_context - place.window + 1)
    return _Call((segment,), place.mask(sees))


def _together(segments: Sequence[Segment], place: _Place) -> _Call:
    """Keys are the context, padded, and then the segment's own tokens, padded."""
    width, context = max(s.num_tokens for s in segments), max(s.num_context for s in segments)
    starts, lengths, context_starts, contexts = torch.tensor(
        [(s.start, s.num_tokens, s.context_start, s.num_context) for s in segments]).T[:, :, None]
    own, before = torch.arange(width), torch.arange(context)
    is_real = own < lengths
    queries = torch.where(is_real, starts + own, starts)
    keys = torch.cat([torch.where(before < contexts, context_starts + before, starts), queries], dim=1)
    # Of keys and of queries, counted from the beginning of the context.
    places = torch.cat([before.expand(len(segments), -1), contexts + own], dim=1)[:, None]
    exists = torch.cat([before < contexts, torch.ones_like(is_real)], dim=1)[:, None]
    distances = (contexts + own)[:, :, None] - places
    sees = exists & (distances >= 0)
    if place.window is not None:
        sees &= distances < place.window
    return _Call(tuple(segments), place.mask(sees), queries.to(place.device), keys.to(place.device),
                 is_real.flatten().nonzero().squeeze(1).to(place.device))


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    shared_prompts: SharedPrompts | None = None, shared_cache: SharedCache | None = None, scaling: float | None = None,
    dropout: float = 0.0, sliding_window: int | None = None, **kwargs: object,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B, H, L, D], key and value [B, KV, L, D] -> [B, L, H, D]."""
    if shared_cache is not None and sliding_window is None:  # no cache with a window is shared
        return shared_cache.attend(cast(int, module.layer_idx), query, key, value, scale=scaling), None
    if shared_prompts is None and attention_mask is not None and query.device.type == "cpu":
        # transformers repeats keys and values for grouped queries under a mask, which on a CPU is not needed.
        found = _sdpa(query, key, value, attention_mask, scale=scaling, dropout=dropout)
        return found.transpose(1, 2).contiguous(), None
    if shared_prompts is None:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window,
            **kwargs)
        return result
    unknown = [name for name in ("softcap", "s_aux", "position_bias", "indices", "block_indices")
               if kwargs.get(name) is not None]
    if attention_mask is None or attention_mask.numel() != 1:  # not the one that `hidden_states` gave
        unknown.append("a mask of its own")
    if unknown:  # met when the model is loaded (rl/policy/layout.py), and then the reason for padded rows
        raise NotImplementedError(f"attention with {', '.join(unknown)}")
    return shared_prompts.attend(query, key, value, scale=scaling, dropout=dropout, window=sliding_window), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
