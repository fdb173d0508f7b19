"""Logits [B, V] and one uniform number per row -> one token per row, with its log-probability.

Inverse-CDF sampling: each request brings a stream of uniform numbers from its own seed, so that a completion does not
depend on which others share its batch (beyond the rounding of the matrix products).

Legend: B rows, V vocabulary, T longest completion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from rl.generate.protocol import SamplingParameters


def uniform_streams(seeds: Sequence[int], num_tokens: int) -> torch.Tensor:
    """[B, T] float32 in [0, 1); row i depends on seeds[i] alone (Philox 4x64)."""
    rows = [np.random.Generator(np.random.Philox(key=seed)).random(num_tokens, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def sample_tokens(
    logits_BV: torch.Tensor, uniforms_B: torch.Tensor, parameters: SamplingParameters
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row; returns (tokens [B] int64, log-probabilities [B] float32).

    The log-probability is that of softmax(logits / temperature) over the whole vocabulary, which is also what the
    trainer computes; top_k and top_p only restrict which tokens can be drawn. Temperature 0 takes the likeliest
    token."""
    if parameters.temperature == 0.0:
        greedy_logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
        likeliest_B1 = greedy_logprobs_BV.argmax(dim=-1, keepdim=True)
        return likeliest_B1.squeeze(1), greedy_logprobs_BV.gather(1, likeliest_B1).squeeze(1)
    logprobs_BV = torch.log_softmax(logits_BV.float() / parameters.temperature, dim=-1)
    probabilities_BV = logprobs_BV.exp()
    if parameters.top_k or parameters.top_p < 1.0:
        probabilities_BV = _restrict(probabilities_BV, parameters.top_p, parameters.top_k)
    cumulative_BV = probabilities_BV.cumsum(dim=-1)
    total_B1 = cumulative_BV[:, -1:]
    # Strictly below the total: otherwise rounding could pick the last entry of the vocabulary, whatever its
    # probability.
    thresholds_B1 = torch.minimum(uniforms_B[:, None] * total_B1, torch.nextafter(total_B1, torch.zeros_like(total_B1)))
    tokens_B1 = torch.searchsorted(cumulative_BV, thresholds_B1, right=True)
    return tokens_B1.squeeze(1), logprobs_BV.gather(1, tokens_B1).squeeze(1)


def token_statistics(
    logits_BV: torch.Tensor, temperature: float, *, chunk_elements: int = 1 << 24
) -> tuple[torch.Tensor, torch.Tensor]:
    """(entropies [B], self-certainties [B]), float32, in nats, of pi = softmax(logits / temperature).

    Entropy: -sum_v pi_v ln pi_v. Self-certainty: KL(uniform || pi) = -ln V - mean_v ln pi_v (arXiv:2505.19590). At most
    chunk_elements of the logits are in float32 at the same time, at least one row."""
    vocab_size = logits_BV.shape[1]
    entropies, certainties = [], []
    for logits_bV in logits_BV.split(max(1, chunk_elements // vocab_size)):
        logprobs_bV = torch.log_softmax(logits_bV.float() / temperature, dim=-1)
        certainties.append(-math.log(vocab_size) - logprobs_bV.mean(dim=-1))
        # entr and not a product with the logarithm: a token whose logit is -inf has no entropy, where the product is
        # NaN.
        entropies.append(torch.special.entr(logprobs_bV.exp_()).sum(dim=-1))
    return torch.cat(entropies), torch.cat(certainties)


def _restrict(probabilities_BV: torch.Tensor, top_p: float, top_k: int) -> torch.Tensor:
    """Zero all but the top_k likeliest, and of those all but the smallest set whose share reaches top_p."""
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    if top_k:
        sorted_BV[:, top_k:] = 0.0
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    sorted_BV = sorted_BV.masked_fill(before_BV >= top_p * sorted_BV.sum(dim=-1, keepdim=True), 0.0)
    return torch.zeros_like(probabilities_BV).scatter(1, order_BV, sorted_BV)
