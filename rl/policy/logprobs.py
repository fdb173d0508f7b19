"""Hidden states -> log-probabilities of the completion tokens and entropies, in chunks over tokens.

The logits of a whole micro-batch are its largest tensor (16k tokens x 152k entries x 4 bytes = 10 GB), so they are
never made at once. Of a frozen output layer each chunk's logits live only in the forward pass, which also takes the
gradient of each log-probability by its hidden state: all that the backward pass needs, [N, H]. An output layer that
trains, or an entropy with a gradient, needs the logits again: they are recomputed in the backward pass, unless
everything fits into one chunk.

Shape legend: N predicting positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
LOGITS_BUDGET_BYTES = 256 * 2**20  # of one chunk's logits


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """logprobs_N: ln pi(token), float32. entropies_N: token entropies in nats, 0 <= H <= ln V, float32.

    self_certainties_N: KL(uniform || pi) in nats, >= 0, float32; None unless asked for."""

    logprobs_N: Tensor
    entropies_N: Tensor
    self_certainties_N: Tensor | None = None


def chunk_tokens_for(vocab_size: int, *, budget_bytes: int = LOGITS_BUDGET_BYTES) -> int:
    """How many tokens' float32 logits fit into the budget; at least 1. A chunk's peak is about four times its logits
    (their gradient, the probabilities and one product live beside them)."""
    return max(1, budget_bytes // (4 * vocab_size))


@dataclass(frozen=True, slots=True)
class LogitHead:
    """[n, H] -> z [n, V] in float32: z = scale * layer(hidden), and with a softcap softcap * tanh(z / softcap), as in
    Gemma 2.

    layer: such as the model's output layer (with or without bias or adapter); it runs in its own dtype. is_frozen:
    nothing in it trains."""

    layer: Head
    scale: float = 1.0
    softcap: float | None = None
    is_frozen: bool = False

    def __call__(self, hidden_nH: Tensor) -> Tensor:
        logits_nV = self.layer(hidden_nH).float()
        if self.scale != 1.0:
            logits_nV = logits_nV * self.scale
        return logits_nV if self.softcap is None else self.softcap * torch.tanh(logits_nV / self.softcap)


def token_logprobs(
    hidden_NH: Tensor, head: Head, token_ids_N: Tensor, *, chunk_tokens: int, temperature: float = 1.0,
    entropy_grad: bool = False, self_certainty: bool = False,
) -> TokenLogprobs:
    """ln softmax(z / temperature)[token] and the entropy of softmax(z / temperature), with z the logits of each
    position.

    Args:
        hidden_NH: final hidden states (after the last norm) of the positions that predict `token_ids_N`; float32 or
            bfloat16.
        head: [n, H] -> [n, V]: a model's output layer, or a LogitHead. Its logits are float32 from there on.
        chunk_tokens: at most so many rows of logits live at once, forward and backward.
        temperature: the sampling temperature: the gradient is that of the distribution sampled from.
        entropy_grad: whether the entropies carry a gradient; costs memory and time, so only for an entropy bonus.
        self_certainty: also KL(uniform || pi) = logsumexp(z) - mean_v(z) - ln V, without a gradient.
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
    of_chunk = functools.partial(
        _of_chunk, head=head, temperature=temperature, entropy_grad=entropy_grad, self_certainty=self_certainty)
    if getattr(head, "is_frozen", False) and hidden_NH.requires_grad and torch.is_grad_enabled() and not entropy_grad:
        return TokenLogprobs(
            *_FrozenHead.apply(hidden_NH, token_ids_N, head, chunk_tokens, temperature, self_certainty))
    if token_ids_N.shape[0] <= chunk_tokens:
        return TokenLogprobs(*of_chunk(hidden_NH, token_ids_N))
    return TokenLogprobs(*_in_chunks(of_chunk, hidden_NH, token_ids_N, chunk_tokens))


def _of_chunk(
    hidden_nH: Tensor, token_ids_n: Tensor, *, head: Head, temperature: float, entropy_grad: bool, self_certainty: bool
) -> tuple[Tensor, ...]:
    logprobs_nV = torch.log_softmax(_logits(hidden_nH, head, temperature), dim=-1)
    # Detached, the entropy's intermediates are freed at once instead of being kept for the backward pass.
    return (logprobs_nV.gather(-1, token_ids_n[:, None]).squeeze(-1),
            *_statistics(logprobs_nV if entropy_grad else logprobs_nV.detach(), self_certainty))


def _logits(hidden_nH: Tensor, head: Head, temperature: float) -> Tensor:
    logits_nV = head(hidden_nH).float()
    return logits_nV if temperature == 1.0 else logits_nV / temperature


def _statistics(logprobs_nV: Tensor, self_certainty: bool) -> list[Tensor]:
    """Entropies [n], and self-certainties [n] where asked for."""
    entropies_n = -(logprobs_nV.exp() * logprobs_nV).sum(dim=-1)
    certainties = [(-logprobs_nV.mean(dim=-1) - math.log(logprobs_nV.shape[-1])).detach()] if self_certainty else []
    return [entropies_n, *certainties]


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities [N] with a gradient, and statistics [N] without one, chunk by chunk. Each log-probability
    depends on its own hidden state alone, so its gradient, of shape [H], is known before the loss's is."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, token_ids_N: Tensor, head: Head, chunk_tokens: int, temperature: float,
        self_certainty: bool,
    ) -> tuple[Tensor, ...]:
        parts, slopes = [], []
        for hidden_nH, token_ids_n in zip(hidden_NH.split(chunk_tokens), token_ids_N.split(chunk_tokens), strict=True):
            with torch.enable_grad():
                leaf_nH = hidden_nH.detach().requires_grad_()
                logits_nV = _logits(leaf_nH, head, temperature)
            logprobs_nV = torch.log_softmax(logits_nV.detach(), dim=-1)
            asked_n1 = token_ids_n[:, None]
            parts.append([logprobs_nV.gather(-1, asked_n1).squeeze(-1), *_statistics(logprobs_nV, self_certainty)])
            # Of ln softmax(z)[token] by z: one at the token, less the probabilities.
            slope_nV = logprobs_nV.exp_().neg_()
            slope_nV.scatter_add_(-1, asked_n1, torch.ones_like(slope_nV[:, :1]))
            slopes += torch.autograd.grad(logits_nV, leaf_nH, slope_nV)
        ctx.save_for_backward(torch.cat(slopes))
        results = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes_NH,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes_NH).to(slopes_NH.dtype), None, None, None, None, None


def _in_chunks(
    of_chunk: Callable[[Tensor, Tensor], tuple[Tensor, ...]], hidden_NH: Tensor, token_ids_N: Tensor, chunk_tokens: int
) -> list[Tensor]:
    """The results of all chunks in one; their logits are computed again in the backward pass."""
    chunks = zip(hidden_NH.split(chunk_tokens), token_ids_N.split(chunk_tokens), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [of_chunk(*chunk) for chunk in chunks]
    return [torch.cat(column) for column in zip(*parts, strict=True)]
