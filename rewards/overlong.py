"""Completion lengths -> the soft overlong penalty of DAPO (arXiv:2503.14476): a warning before the length limit, not a
cliff at it.

Added to a reward with a weight of its own; it is 0 or negative and says nothing about the answer."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.calling import RolloutLike
from rewards.contract import GroupScore


def overlong_penalty(
    *, rollouts: Sequence[RolloutLike], max_completion_tokens: int, cache_tokens: int | None = None, **columns: object
) -> GroupScore:
    """r_i = 0 up to L_max - L_cache tokens, then linear, down to -1 at L_max and beyond.

    Lengths count all sampled tokens, the stop token included. max_completion_tokens: L_max; a run fills in its own
    sampling.max_completion_tokens where the configuration sets none, and refuses a higher one, which no completion
    could reach. cache_tokens: L_cache, 1 to L_max; None stands for a fifth of L_max, the paper's 4096 of 20480. Raises
    ValueError outside of that.
    """
    cache = max(1, max_completion_tokens // 5) if cache_tokens is None else cache_tokens
    if not 1 <= cache <= max_completion_tokens:
        raise ValueError(f"cache_tokens is {cache}, expected 1 to max_completion_tokens={max_completion_tokens}")
    free = max_completion_tokens - cache
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    return GroupScore([min(max(free - length, -cache), 0) / cache for length in lengths],
                      {"penalised_share": sum(length > free for length in lengths) / len(lengths)})
