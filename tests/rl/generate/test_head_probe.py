"""Logits that were rounded to bfloat16 are told from others by log-probabilities alone."""

from __future__ import annotations

import pytest
import torch

from rl.generate.servers.head_probe import rounded_to_bfloat16


def top_logprobs(*, rounded: bool, scale: float, seed: int) -> list[list[float]]:
    """Of 16 positions, the 5 likeliest of 5,000 tokens, in float32 as vLLM gives them."""
    logits = scale * torch.randn(16, 5000, generator=torch.Generator().manual_seed(seed))
    logits = logits.bfloat16().float() if rounded else logits
    return torch.log_softmax(logits, -1).topk(5).values.tolist()


@pytest.mark.parametrize("scale", [0.3, 3.0, 20.0])
@pytest.mark.parametrize("rounded", [False, True])
def test_the_spacing_of_the_logits_is_seen_at_every_scale(rounded: bool, scale: float) -> None:
    for seed in range(20):
        assert rounded_to_bfloat16(top_logprobs(rounded=rounded, scale=scale, seed=seed)) == rounded


def test_nothing_to_compare_is_no_rounding() -> None:
    assert not rounded_to_bfloat16([[-1.0], [-2.0]]) and not rounded_to_bfloat16([])
