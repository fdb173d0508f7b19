"""Hidden states -> log-probabilities of the completion tokens and entropies, in chunks over tokens.

The logits of a whole micro-batch are its largest tensor (16k tokens x 152k entries x 4 bytes = 10 GB), so they are
never
made at once: each chunk's logits live only while its log-probabilities are computed, and again, recomputed, in the
backward pass. When everything fits into one chunk nothing is recomputed.

Shape legend: N predicting positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """logprobs_N: ln pi(token), float32. entropies_N: token entropies in nats, 0 <= H <= ln V, float32.

    self_certainties_N: KL(uniform || pi) in nats, >= 0, float32; None unless asked for."""

    logprobs_N: Tensor
    entropies_N: Tensor
    self_certainties_N: Tensor | None = None


def chunk_tokens_for(vocab_size: int, *, budget_bytes: int = 256 * 2**20) -> int:
    """How many tokens' float32 logits fit into the budget; at least 1. A chunk's peak is about four times its logits
    (their gradient, the probabilities and one product live beside them)."""
    return max(1, budget_bytes // (4 * vocab_size))


def token_logprobs(
    hidden_NH: Tensor,
    lm_head: Head,
    token_ids_N: Tensor,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
    entropy_grad: bool = False,
    self_certainty: bool = False,
    upcast_head: bool = False,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> TokenLogprobs:
    """ln softmax(z / temperature)[token] and the entropy of softmax(z / temperature), with z the logits of each
    position.

    Args:
        hidden_NH: final hidden states (after the last norm) of the positions that predict `token_ids_N`; float32 or
        bfloat16.
        lm_head: [n, H] -> [n, V], such as the model's output layer (with or without bias or adapter).
        token_ids_N: long, the tokens predicted.
        chunk_tokens: at most so many rows of logits live at once, forward and backward.
        temperature: the sampling temperature: the gradient is that of the distribution sampled from.
        entropy_grad: whether the entropies carry a gradient; costs memory and time, so only for an entropy bonus.
        self_certainty: also KL(uniform || pi) = logsumexp(z) - mean_v(z) - ln V, without a gradient.
        upcast_head: the output layer's product itself in float32 (an nn.Linear only; slower on a GPU, closer to the
            exact log-probabilities). Without it the layer runs in its own dtype. Logits are float32 from there on in
            both cases.
        logit_scale: z = logit_scale * lm_head(hidden). softcap: then z = softcap * tanh(z / softcap), as in Gemma 2.
    Returns: [N] each; empty for N = 0.
    Raises: ValueError if the numbers of positions and tokens differ, or a setting is out of range.
    """
    if hidden_NH.shape[0] != token_ids_N.shape[0]:
        raise ValueError(
            f"{hidden_NH.shape[0]} hidden states for {token_ids_N.shape[0]} tokens; each needs the one before it")
    if temperature <= 0:
        raise ValueError(
            f"temperature is {temperature}; log-probabilities need one above 0 (greedy decoding has no density)")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    head = _float32_head(lm_head) if upcast_head else lm_head

    def one_chunk(hidden_nH: Tensor, token_ids_n: Tensor) -> tuple[Tensor, ...]:
        logits_nV = float_logits(hidden_nH, head, logit_scale, softcap)
        if temperature != 1.0:
            logits_nV = logits_nV / temperature
        log_normaliser_n = torch.logsumexp(logits_nV, dim=-1)
        logprobs_n = logits_nV.gather(-1, token_ids_n[:, None]).squeeze(-1) - log_normaliser_n
        # Detached, the entropy's intermediates are freed at once instead of being kept for the backward pass.
        z_nV, log_z_n = (
            (logits_nV, log_normaliser_n) if entropy_grad else (logits_nV.detach(), log_normaliser_n.detach()))
        entropies_n = log_z_n - (torch.softmax(z_nV, dim=-1) * z_nV).sum(dim=-1)
        if not self_certainty:
            return logprobs_n, entropies_n
        return logprobs_n, entropies_n, (log_z_n - z_nV.mean(dim=-1) - math.log(z_nV.shape[-1])).detach()

    if token_ids_N.shape[0] <= chunk_tokens:
        return TokenLogprobs(*one_chunk(hidden_NH, token_ids_N))
    chunks = zip(hidden_NH.split(chunk_tokens), token_ids_N.split(chunk_tokens), strict=True)
    if torch.is_grad_enabled():
        parts = [
            checkpoint(one_chunk, hidden_nH, token_ids_n, use_reentrant=False) for hidden_nH, token_ids_n in chunks]
    else:
        parts = [one_chunk(hidden_nH, token_ids_n) for hidden_nH, token_ids_n in chunks]
    return TokenLogprobs(*(torch.cat(chunks) for chunks in zip(*parts, strict=True)))


def float_logits(hidden_nH: Tensor, head: Head, logit_scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """z [n, V] in float32, as `token_logprobs` describes them, before the temperature."""
    logits_nV = head(hidden_nH).float()
    if logit_scale != 1.0:
        logits_nV = logits_nV * logit_scale
    return logits_nV if softcap is None else softcap * torch.tanh(logits_nV / softcap)


def _float32_head(lm_head: Head) -> Head:
    if not isinstance(lm_head, nn.Linear):
        raise ValueError(f"upcast_head needs an nn.Linear as output layer; this model's is {type(lm_head).__name__}")
    # Once for all chunks: one float32 copy of the weight, through which gradients still reach the original.
    weight_VH = lm_head.weight.float()
    bias_V = None if lm_head.bias is None else lm_head.bias.float()

    def head(hidden_nH: Tensor) -> Tensor:
        with torch.autocast(device_type=hidden_nH.device.type, enabled=False):
            return functional.linear(hidden_nH.float(), weight_VH, bias_V)

    return head
