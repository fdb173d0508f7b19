"""Plain distillation in a warm-up: the policy learns a teacher's whole next-token distributions at the tokens of given
solutions.

loss_t = weight * T^2 * KL_t + (1 - weight) * (- ln pi(o_t)), KL_t between the two models' distributions at temperature
T (arXiv:1503.02531; on solutions that the teacher wrote: sequence-level distillation with soft targets,
arXiv:1606.07947). T^2 keeps the gradient's size where T changes. Denominators, accumulation and ranks are TRL's: its
trainer (rl/supervised/trainer.py) asks the model for per-token log-probabilities and gets minus these losses in their
place.

Logits of both models exist for one chunk of solution tokens at a time, and again in the backward pass.

Shape legend: B rows, L columns, N solution tokens of the micro-batch, n of a chunk, H hidden size of either model, V
vocabulary.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from rl.kl import forward_kl, reverse_kl
from rl.policy.forward import logit_settings
from rl.policy.logprobs import LogitHead, chunk_tokens_for
from rl.supervised.config import DistillationSection

DIVERGENCES = {"forward_kl": forward_kl, "reverse_kl": reverse_kl}


@dataclass
class DistilledOutput(ModelOutput):
    """What TRL's trainer reads of a forward with `fused_lm_head`. log_probs: minus the losses, [B, L - 1], 0 where
    label_mask is False; entropy, is_top1: of the policy, without a gradient."""

    log_probs: Tensor | None = None
    label_mask: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None


def distilled_losses(
    logits_nV: Tensor, teacher_logits_nV: Tensor, token_ids_n: Tensor, section: DistillationSection
) -> Tensor:
    """weight * T^2 * KL + (1 - weight) * cross-entropy of each token: [n], float32, differentiable in the policy's
    logits.

    Where the two models pad their outputs to different sizes, the KL is over the ids that both have: the rest are no
    tokens."""
    width = min(logits_nV.shape[-1], teacher_logits_nV.shape[-1])
    divergence = DIVERGENCES[section.divergence]
    losses_n = section.weight * section.temperature**2 * divergence(
        logits_nV[:, :width], teacher_logits_nV[:, :width].detach(), section.temperature)
    if section.weight < 1.0:
        losses_n = losses_n + (1.0 - section.weight) * torch.nn.functional.cross_entropy(
            logits_nV, token_ids_n, reduction="none")
    return losses_n


def attach_teacher(
    student: PreTrainedModel, teacher: PreTrainedModel, section: DistillationSection, *, chunk_tokens: int | None = None
) -> None:
    """From now on `student(..., labels=labels, fused_lm_head=True)` returns a DistilledOutput; other calls are as
    before.

    student: the transformers model, with an adapter's layers in place where there are any. The balancing loss of a
    mixture of experts is no part of the losses."""
    plain_forward = student.forward
    width = max(model.get_output_embeddings().weight.shape[0] for model in (student, teacher))
    size = chunk_tokens or chunk_tokens_for(2 * width)

    # The signature stays the model's own: the trainer looks for it.
    @functools.wraps(type(student).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head or labels is None:
            named = {"labels": labels, "num_items_in_batch": num_items_in_batch}
            return plain_forward(*args, **{name: value for name, value in named.items() if value is not None}, **kwargs)
        mask_BL = labels[:, 1:] != -100
        kwargs["use_cache"] = False
        hidden_NH = getattr(self, self.base_model_prefix)(*args, **kwargs).last_hidden_state[:, :-1][mask_BL]
        # The trainer's autocast is the student's: the teacher computes in its own dtype.
        with torch.no_grad(), torch.autocast(labels.device.type, enabled=False):
            inputs = {name: kwargs.get(name) for name in ("input_ids", "attention_mask", "position_ids")}
            teacher_NH = getattr(teacher, teacher.base_model_prefix)(**inputs, use_cache=False).last_hidden_state[
                :, :-1
            ][mask_BL]
        found = _in_chunks(self, teacher, hidden_NH, teacher_NH, labels[:, 1:][mask_BL], section, size)
        losses_BL, entropy_BL, is_top1_BL = (
            values_N.new_zeros(mask_BL.shape).masked_scatter(mask_BL, values_N) for values_N in found)
        return DistilledOutput(log_probs=-losses_BL, label_mask=mask_BL, entropy=entropy_BL, is_top1=is_top1_BL)

    student.forward = types.MethodType(forward, student)


def _in_chunks(
    student: PreTrainedModel, teacher: PreTrainedModel, hidden_NH: Tensor, teacher_NH: Tensor, token_ids_N: Tensor,
    section: DistillationSection, chunk_tokens: int,
) -> list[Tensor]:
    """Losses with gradient, entropies and whether the token is the likeliest, [N] each."""
    head, teacher_head = (
        LogitHead(model.get_output_embeddings(), *logit_settings(model)) for model in (student, teacher))

    def one_chunk(hidden_nH: Tensor, other_nH: Tensor, token_ids_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits_nV = head(hidden_nH)
        with torch.no_grad(), torch.autocast(other_nH.device.type, enabled=False):
            teacher_logits_nV = teacher_head(other_nH)
        losses_n = distilled_losses(logits_nV, teacher_logits_nV, token_ids_n, section)
        with torch.no_grad():
            log_pi_nV = torch.log_softmax(logits_nV, dim=-1)
            return losses_n, -(log_pi_nV.exp() * log_pi_nV).sum(-1), logits_nV.argmax(-1) == token_ids_n

    chunks = list(
        zip(hidden_NH.split(chunk_tokens), teacher_NH.split(chunk_tokens), token_ids_N.split(chunk_tokens), strict=True)
    )
    if len(chunks) == 1 or not torch.is_grad_enabled():
        parts = [one_chunk(*chunk) for chunk in chunks]
    else:
        parts = [checkpoint(one_chunk, *chunk, use_reentrant=False) for chunk in chunks]
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]
