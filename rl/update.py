"""A batch of training groups -> optimiser updates of the policy.

    groups -> (old log-probabilities, where needed) -> for each pass and minibatch: micro-batches -> loss -> gradient ->
    step

The old log-probabilities are the policy's at the start of the batch. With one update per batch they are the ones just
computed, detached, and no forward is spent on them; with several they are computed once, before the first. Groups
sampled by an earlier version (left over by refilling) keep the sampler's, which are those of the version that sampled
them. Every denominator is that of the whole minibatch over all ranks, so micro-batches and ranks change memory and
speed, not the gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.optim import Optimizer

from rl.batching import (
    Layout,
    MicroBatch,
    SequenceIndex,
    build_micro_batch,
    plan_micro_batches,
    split_for_ranks,
    split_minibatches,
    trains,
)
from rl.config import RunConfig
from rl.kl import k1
from rl.losses import LossOutput, entropy_threshold, mean_statistics, policy_loss, sampler_correction
from rl.policy.forward import PolicyForward
from rl.policy.logprobs import TokenLogprobs
from rl.proof.distances import effective_sample_share
from rl.records import TrainingGroup
from rl.runs.tracking import REVERSE_KL
from rl.schedule import learning_rate
from rl.teacher.advantages import distilled_advantages

PACKING_ATTENTION = ("flash_attention_2", "flash_attention_3")


@dataclass(slots=True)
class UpdateReport:
    """What one batch did. num_updates: optimiser steps taken (0 where no group trains). metrics: means over tokens."""

    num_updates: int
    metrics: dict[str, float]


@dataclass(slots=True)
class _Sums:
    """What adds up over the micro-batches of one batch on one rank."""

    statistics: list[Tensor] = field(default_factory=list)
    # trainer's less sampler's log-probability, of tokens of the present version
    mismatch: list[Tensor] = field(default_factory=list)
    drift: list[Tensor] = field(default_factory=list)  # the same of tokens that an older version sampled
    importance: list[Tensor] = field(default_factory=list)  # what such a token counts for under the correction
    reverse_kl: list[Tensor] = field(default_factory=list)  # policy's less teacher's log-probability
    loss: float = 0.0
    grad_norms: list[float] = field(default_factory=list)


def _spread(
    name: str, differences: np.ndarray[tuple[int, ...], np.dtype[np.float64]], weights: Tensor
) -> dict[str, float]:
    """differences: absolute, of log-probabilities; weights: importance weights of the same tokens."""
    return {
        f"{name}/mean": float(differences.mean()), f"{name}/p95": float(np.quantile(differences, 0.95)),
        f"{name}/p99": float(np.quantile(differences, 0.99)), f"{name}/max": float(differences.max()),
        f"{name}/effective_sample_share": effective_sample_share(weights),
    }


class Updater:
    """Owns the forward module and the optimiser. `forward` and `optimizer` are as accelerate prepared them."""

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, forward: torch.nn.Module, optimizer: Optimizer, *,
        pad_token_id: int, attention: str,
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._forward = forward
        self._unwrapped: PolicyForward = accelerator.unwrap_model(forward)
        self._optimizer = optimizer
        self._parameters = [p for p in forward.parameters() if p.requires_grad]
        self._pad_token_id = pad_token_id
        self._layout: Layout = "packed" if attention in PACKING_ATTENTION else "padded"
        loss = config.loss
        # Terms that act on every token, whatever its advantage.
        self._needs_all = loss.kl_weight > 0 or loss.entropy_bonus > 0

    def update(self, groups: Sequence[TrainingGroup], *, step: int, policy_version: int) -> UpdateReport:
        """Train on the groups (the same on every rank); groups with zero advantages count in the denominators."""
        optim, loss = self._config.optim, self._config.loss
        lr = learning_rate(self._config, step)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = lr
        sums, num_updates = _Sums(), 0
        old: dict[tuple[int, int], Tensor] | None = None
        indexed = list(enumerate(groups))
        minibatches = split_minibatches(indexed, optim.minibatches)
        # With dropout the trained forward is not the policy that sampled: neither pi_old nor the mismatch may come from
        # it.
        if optim.epochs * len(minibatches) > 1 or loss.top_entropy_share < 1.0 or self._config.lora.dropout > 0:
            old, min_entropy = self._before_first_update(groups, policy_version)
        else:
            min_entropy = -float("inf")
        for epoch in range(optim.epochs):
            for minibatch in minibatches:
                numbers, members = [i for i, _ in minibatch], [group for _, group in minibatch]
                named_old = None if old is None else {
                    (position, rollout): old[number, rollout] for position, number in enumerate(numbers)
                    for rollout in range(len(members[position].group.rollouts)) if (number, rollout) in old}
                num_updates += self._one_update(
                    members, named_old, min_entropy, policy_version, sums, record_mismatch=epoch == 0)
        return UpdateReport(num_updates, self._report(sums, lr))

    def _one_update(
        self,
        groups: list[TrainingGroup],
        old: dict[tuple[int, int], Tensor] | None,
        min_entropy: float,
        policy_version: int,
        sums: _Sums,
        *,
        record_mismatch: bool,
    ) -> int:
        """One optimiser step over one minibatch; returns 1, or 0 where nothing trains."""
        config = self._config
        plan = self._plan(groups)
        if not plan:
            return 0
        num_loss_tokens = sum(len(r.token_ids) for g in groups for r in g.group.rollouts)
        for position, (sequences, weight) in enumerate(plan):
            batch = self._build(groups, sequences, num_loss_tokens)
            last = position == len(plan) - 1
            with nullcontext() if last else self._accelerator.no_sync(self._forward):
                computed = self._logprobs(batch, self._forward, entropy_grad=config.loss.entropy_bonus > 0)
                old_T, fresh_T, present_T = self._old_logprobs(groups, batch, computed.logprobs_N, old, policy_version)
                advantages_T = self._advantages(batch, present_T)
                output = self._loss(batch, computed, old_T, advantages_T, min_entropy, num_loss_tokens)
                # DDP averages gradients over ranks; the denominators are global, so they have to be summed.
                self._accelerator.backward(output.loss * (weight * self._accelerator.num_processes))
            if weight:
                sums.statistics.append(output.sums_K)
                sums.loss += output.loss.item()
                if record_mismatch:
                    sums.mismatch.append((old_T - batch.sampler_logprobs_T)[fresh_T])
                    sums.importance.append(self._importance(batch, old_T)[fresh_T])
                    sums.drift.append((present_T - batch.sampler_logprobs_T)[~fresh_T])
                    sums.reverse_kl.append(k1(present_T, batch.teacher_logprobs_T)[~batch.teacher_logprobs_T.isnan()])
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, config.optim.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm.item()}: a loss or a log-probability is not finite. Remedy: a lower "
                "optim.lr, model.dtype=float32, in a new run that may begin with the last checkpoint's weights "
                "(model.adapter=.../adapter)")
        sums.grad_norms.append(norm.item())
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return 1

    def _plan(self, groups: Sequence[TrainingGroup]) -> list[tuple[list[SequenceIndex], float]]:
        """This rank's micro-batches with weight 1; a rank that has fewer than the others repeats one with weight 0,
        because the backward passes of the ranks must match."""
        chosen = {i for i, group in enumerate(groups) if trains(group, self._needs_all)}
        compact = [groups[i] for i in sorted(chosen)]
        numbers = sorted(chosen)
        plan = plan_micro_batches(compact, max_tokens=self._config.optim.micro_batch_tokens, layout=self._layout)
        plan = [[replace(s, group=numbers[s.group]) for s in sequences] for sequences in plan]
        if not plan:
            return []
        mine = split_for_ranks(plan, self._accelerator.num_processes)[self._accelerator.process_index]
        smallest = min(plan, key=lambda sequences: sum(s.num_tokens for s in sequences))
        return [(smallest, 0.0) if sequences is None else (sequences, 1.0) for sequences in mine]

    def _build(
        self, groups: Sequence[TrainingGroup], sequences: Sequence[SequenceIndex], num_loss_tokens: int
    ) -> MicroBatch:
        return build_micro_batch(
            groups,
            sequences,
            layout=self._layout,
            pad_token_id=self._pad_token_id,
            aggregation=self._config.loss.aggregation,
            num_loss_tokens=num_loss_tokens,
            num_sequences=sum(len(g.group.rollouts) for g in groups),
            max_completion_tokens=self._config.sampling.max_completion_tokens,
        ).to(self._accelerator.device)

    def _logprobs(self, batch: MicroBatch, forward: torch.nn.Module, *, entropy_grad: bool) -> TokenLogprobs:
        computed: TokenLogprobs = forward(
            batch.token_ids_BL, batch.position_ids_BL if self._layout == "packed" else None, batch.predictor_T,
            batch.completion_ids_T, entropy_grad=entropy_grad,
        )
        return computed

    def _old_logprobs(
        self, groups: Sequence[TrainingGroup], batch: MicroBatch, logprobs_T: Tensor,
        old: dict[tuple[int, int], Tensor] | None, policy_version: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(old log-probabilities [T], which tokens the present version sampled [T], the present version's
        log-probabilities [T])."""
        old_T = logprobs_T.detach() if old is None else torch.cat(
            [old[s.group, s.rollout] for s in batch.sequences]).to(logprobs_T.device)
        fresh = torch.tensor([
            groups[s.group].group.rollouts[s.rollout].policy_version == policy_version for s in batch.sequences
        ], device=logprobs_T.device)
        fresh_T = fresh[batch.sequence_ids_T]
        return torch.where(fresh_T, old_T, batch.sampler_logprobs_T), fresh_T, old_T

    def _advantages(self, batch: MicroBatch, present_T: Tensor) -> Tensor:
        """[T]: each completion's, and what a teacher adds to each token's; present_T: of the policy at the start of the
        batch."""
        teacher = self._config.teacher
        if teacher is None:
            return batch.advantages_T
        return distilled_advantages(
            batch.advantages_T, present_T, batch.teacher_logprobs_T, weight=teacher.weight, cap=teacher.cap)

    def _loss(
        self,
        batch: MicroBatch,
        computed: TokenLogprobs,
        old_T: Tensor,
        advantages_T: Tensor,
        min_entropy: float,
        num_loss_tokens: int,
    ) -> LossOutput:
        loss = self._config.loss
        reference_T = None
        if loss.kl_weight > 0:
            reference_T = self._unwrapped.reference(
                batch.token_ids_BL, batch.position_ids_BL if self._layout == "packed" else None, batch.predictor_T,
                batch.completion_ids_T)
        return policy_loss(
            loss.name,
            logprobs_T=computed.logprobs_N,
            old_logprobs_T=old_T,
            sampler_logprobs_T=batch.sampler_logprobs_T,
            advantages_T=advantages_T,
            entropies_T=computed.entropies_N,
            weights_T=batch.weights_T,
            sequence_ids_T=batch.sequence_ids_T,
            num_sequences=batch.num_sequences,
            num_loss_tokens=num_loss_tokens,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            ref_logprobs_T=reference_T,
            kl_weight=loss.kl_weight,
            entropy_bonus=loss.entropy_bonus,
            min_entropy=min_entropy,
            correction_mode=loss.correction.mode,
            correction_cap=loss.correction.cap,
            correction_low=loss.correction.low,
            correction_high=loss.correction.high,
        )

    def _importance(self, batch: MicroBatch, old_T: Tensor) -> Tensor:
        """[T]: s_t = pi_trainer / pi_sampler, after the truncation or masking of loss.correction; as it is where that
        is none."""
        correction = self._config.loss.correction
        if correction.mode == "none":
            return torch.exp(old_T - batch.sampler_logprobs_T)
        return sampler_correction(
            correction.mode,
            old_logprobs_T=old_T,
            sampler_logprobs_T=batch.sampler_logprobs_T,
            sequence_ids_T=batch.sequence_ids_T,
            num_sequences=batch.num_sequences,
            cap=correction.cap,
            low=correction.low,
            high=correction.high,
        ).weights_T

    @torch.no_grad()
    def _before_first_update(
        self, groups: Sequence[TrainingGroup], policy_version: int
    ) -> tuple[dict[tuple[int, int], Tensor], float]:
        """Old log-probabilities of every sequence that trains, and the entropy that the top share of tokens reaches."""
        found: dict[tuple[int, int], tuple[list[float], list[float]]] = {}
        was_training = self._unwrapped.training
        self._unwrapped.eval()
        for sequences, weight in self._plan(groups):
            if weight:
                batch = self._build(
                    groups, sequences, num_loss_tokens=sum(len(r.token_ids) for g in groups for r in g.group.rollouts))
                computed = self._logprobs(batch, self._unwrapped, entropy_grad=False)
                lengths = list(batch.sequence_lengths)
                parts = zip(
                    sequences, computed.logprobs_N.split(lengths), computed.entropies_N.split(lengths), strict=True)
                found |= {
                    (s.group, s.rollout): (logprobs.tolist(), entropies.tolist()) for s, logprobs, entropies in parts}
        self._unwrapped.train(was_training)
        if self._accelerator.num_processes > 1:
            shares: list[dict[tuple[int, int], tuple[list[float], list[float]]]] = gather_object([found])
            found = {key: value for share in shares for key, value in share.items()}
        entropies = torch.tensor([h for _, values in found.values() for h in values])
        threshold = entropy_threshold(entropies, self._config.loss.top_entropy_share)
        return {key: torch.tensor(logprobs) for key, (logprobs, _) in found.items()}, threshold

    def _report(self, sums: _Sums, lr: float) -> dict[str, float]:
        """Means over all ranks' tokens.

        mismatch/mean, p95, p99, max: of |trainer's - sampler's log-probability| in nats, over the trained tokens that
        the present version sampled. mismatch/effective_sample_share: (sum w)^2 / (n sum w^2) of their importance
        weights w (`_importance`), 1 where sampler and trainer agree. staleness/...: the same of the tokens that an
        older version sampled, with the weights w = pi / pi_sampler that
        the loss clips: how far the policy has moved since, numerics included."""
        mine = (
            torch.stack(sums.statistics).sum(0).tolist() if sums.statistics else None,
            torch.cat(sums.mismatch).tolist() if sums.mismatch else [],
            torch.cat(sums.importance).tolist() if sums.importance else [], sums.loss,
            torch.cat(sums.drift).tolist() if sums.drift else [],
        )
        shares = gather_object([mine]) if self._accelerator.num_processes > 1 else [mine]
        present = [torch.tensor(statistics) for statistics, *_ in shares if statistics is not None]
        metrics: dict[str, float] = {"optim/lr": lr, "optim/updates": float(len(sums.grad_norms))}
        if not present:
            return metrics
        means = mean_statistics(torch.stack(present).sum(0))
        mismatch = np.abs([value for _, values, *_ in shares for value in values])
        drift = np.array([value for *_, values in shares for value in values])
        metrics |= {
            "loss/value": sum(loss for *_, loss, _ in shares) / len(sums.grad_norms),
            "optim/grad_norm": float(np.mean(sums.grad_norms)),
            "loss/tokens": means["num_tokens"],
            "loss/ratio": means["ratio"],
            "loss/clip_low_share": means["clip_low"],
            "loss/clip_high_share": means["clip_high"],
            "loss/kl": means["kl"],
            "policy/token_entropy": means["entropy"],
            "loss/corrected_share": means["corrected"],
            "loss/top_entropy_share": means["kept"],
        }
        if mismatch.size:
            importance = torch.tensor([value for _, _, values, *_ in shares for value in values])
            metrics |= _spread("mismatch", mismatch, importance)
        if drift.size:
            metrics |= _spread("staleness", np.abs(drift), torch.from_numpy(drift).exp())
        return metrics | self._teacher_report(sums)

    def _teacher_report(self, sums: _Sums) -> dict[str, float]:
        """distillation/reverse_kl: the mean of ln pi - ln pi_teacher over all ranks' tokens that the teacher has
        scored, in nats: an estimate of KL(pi || pi_teacher) per token, pi at the sampling temperature and the teacher
        at 1. Unbiased only where the present policy sampled the tokens; those of an older version count without their
        importance ratio. distillation/capped_share: of those tokens, where the cap acted."""
        teacher = self._config.teacher
        if teacher is None:
            return {}
        mine = torch.cat(sums.reverse_kl).tolist() if sums.reverse_kl else []
        shares: list[list[float]] = gather_object([mine]) if self._accelerator.num_processes > 1 else [mine]
        values = np.array([value for share in shares for value in share])
        if not values.size:
            return {}
        capped = (
            {}
            if teacher.cap is None
            else {"distillation/capped_share": float(np.mean(teacher.weight * np.abs(values) > teacher.cap))})
        return {REVERSE_KL: float(values.mean()), **capped}

    def rehearse(self, groups: Sequence[TrainingGroup]) -> None:
        """Forward and backward of the largest micro-batch of these groups, without a step: out of memory now, not at
        step 40."""
        plan = self._plan(groups)
        largest = max((sequences for sequences, _ in plan), key=lambda sequences: sum(s.num_tokens for s in sequences))
        num_loss_tokens = sum(len(r.token_ids) for g in groups for r in g.group.rollouts)
        batch = self._build(groups, largest, num_loss_tokens)
        computed = self._logprobs(batch, self._forward, entropy_grad=self._config.loss.entropy_bonus > 0)
        output = self._loss(
            batch, computed, computed.logprobs_N.detach(), batch.advantages_T, -float("inf"), num_loss_tokens)
        self._accelerator.backward(output.loss * 0.0)
        self._optimizer.zero_grad(set_to_none=True)

    def micro_batches_of(self, groups: Sequence[TrainingGroup]) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the groups, for tests and measurements."""
        num_loss_tokens = sum(len(r.token_ids) for g in groups for r in g.group.rollouts)
        for sequences, weight in self._plan(groups):
            if weight:
                yield self._build(groups, sequences, num_loss_tokens)
