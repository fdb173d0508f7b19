"""Token log-probabilities and entropies from the full logits: everything in memory, in float64 if the input is."""

from __future__ import annotations

import torch
from torch import Tensor


def reference_token_logprobs(
    hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, token_ids_N: Tensor, temperature: float,
    logit_scale: float = 1.0, softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """([N], [N]): ln p(token), entropy."""
    logprobs, entropies = [], []
    for hidden_H, token_id in zip(hidden_NH, token_ids_N.tolist(), strict=True):
        logits_V = (
            weight_VH @ hidden_H * logit_scale if bias_V is None else (weight_VH @ hidden_H + bias_V) * logit_scale)
        if softcap is not None:
            logits_V = softcap * torch.tanh(logits_V / softcap)
        log_p_V = torch.log_softmax(logits_V / temperature, dim=-1)
        logprobs.append(log_p_V[token_id])
        entropies.append(-(log_p_V.exp() * log_p_V).sum())
    return torch.stack(logprobs), torch.stack(entropies)
