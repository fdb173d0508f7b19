"""A batch of training groups -> optimiser updates of the policy.

    groups -> (old log-probabilities, where needed) -> for each pass and minibatch: micro-batches -> loss -> gradient ->
    step

The old log-probabilities are the policy's at the start of the batch. With one update per batch they are the ones just
computed, detached, and no forward is spent on them; with several they are computed once, before the first, and travel
with their group. Groups sampled by an earlier version (left over by refilling) keep the sampler's, which are those of
the version that sampled them. Every denominator is that of the whole minibatch over all ranks, so micro-batches and
ranks change memory and speed, not the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from rl.batching import (
    MicroBatch,
    SequenceIndex,
    build_micro_batch,
    denominators_of,
    plan_for_ranks,
    split_for_ranks,
    split_minibatches,
    trains,
)
from rl.config import RunConfig
from rl.generate.protocol import request_seed
from rl.losses import LossTokens, covariance_marks, entropy_threshold, policy_loss
from rl.optimizer import learning_rate
from rl.policy.forward import PolicyForward
from rl.policy.logprobs import TokenLogprobs
from rl.ranks import gather
from rl.records import TrainingGroup
from rl.teacher.advantages import distilled_advantages
from rl.update_report import UpdateReport, UpdateSums


@dataclass(frozen=True, slots=True)
class _Before:
    """Of one completion, before the first update: [T] each. advantages_T: with a teacher's only under
    loss.covariance."""

    logprobs_T: Tensor
    entropies_T: Tensor
    advantages_T: Tensor


class Updater:
    """Owns the forward module and the optimiser. `forward` and `optimizer` are as accelerate prepared them."""

    def __init__(
        self, config: RunConfig, accelerator: Accelerator, forward: torch.nn.Module, optimizer: Optimizer, *,
        pad_token_id: int,
    ) -> None:
        self._config = config
        self._accelerator = accelerator
        self._forward = forward
        self._unwrapped: PolicyForward = accelerator.unwrap_model(forward)
        self._optimizer = optimizer
        self._parameters = [p for p in forward.parameters() if p.requires_grad]
        self._pad_token_id = pad_token_id
        # Terms that act on every token, whatever its advantage.
        self._needs_all = config.loss.kl_weight > 0 or config.loss.entropy_bonus > 0

    def update(self, groups: Sequence[TrainingGroup], *, step: int, policy_version: int) -> UpdateReport:
        """Train on the groups (the same on every rank); groups with zero advantages count in the denominators."""
        config, num_ranks = self._config, self._accelerator.num_processes
        lr = learning_rate(config.optim, step, config.steps)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = lr
        groups, min_entropy = self._before_first_update(groups, step)
        sums = UpdateSums(marked_share=_marked_share(groups) if config.loss.covariance.mode != "none" else None)
        for epoch in range(config.optim.epochs):
            for minibatch in split_minibatches(groups, config.optim.minibatches):
                for batch, weight, is_last in self._micro_batches(minibatch):
                    with nullcontext() if is_last else self._accelerator.no_sync(self._forward):
                        computed = self._logprobs(batch, self._forward)
                        present_T = _present(batch, computed)
                        is_fresh_T = batch.policy_versions_T == policy_version
                        tokens = self._loss_tokens(batch, computed, present_T, is_fresh_T, min_entropy)
                        output = policy_loss(tokens, config.loss)
                        # DDP averages gradients over ranks; the denominators are global, so they have to be summed.
                        self._accelerator.backward(output.loss * (weight * num_ranks))
                    if weight:
                        sums.add(batch, output, present_T, is_fresh_T, is_first_pass=epoch == 0)
                    if is_last:
                        sums.grad_norms.append(self._take_step())
        return sums.report(lr, config.teacher, num_ranks)

    @torch.no_grad()
    def _before_first_update(
        self, groups: Sequence[TrainingGroup], step: int
    ) -> tuple[Sequence[TrainingGroup], float]:
        """The groups that train with their old log-probabilities and marks, and the entropy that the top share of
        tokens reaches; the groups as they are and no such bound where the first forward with gradient gives all that is
        needed."""
        optim, loss = self._config.optim, self._config.loss
        num_updates = optim.epochs * min(optim.minibatches, len(groups))
        # With dropout the trained forward is not the policy that sampled: neither pi_old nor the mismatch may come from
        # it.
        if (num_updates <= 1 and loss.top_entropy_share == 1.0 and loss.covariance.mode == "none"
                and self._config.lora.dropout == 0):
            return groups, -math.inf
        was_training = self._unwrapped.training
        self._unwrapped.eval()
        found: list[dict[SequenceIndex, _Before]] = []  # of each micro-batch
        for batch, weight, _ in self._micro_batches(groups):
            if weight:
                computed = self._logprobs(batch, self._unwrapped)
                advantages_T = (batch.advantages_T if loss.covariance.mode == "none"
                                else self._advantages(batch, computed.logprobs_N))
                values = computed.logprobs_N, computed.entropies_N, advantages_T
                parts = (value_T.cpu().split(batch.sequence_lengths) for value_T in values)
                found.append({s: _Before(*part) for s, *part in zip(batch.sequences, *parts, strict=True)})
        self._unwrapped.train(was_training)
        shares = gather(found, self._accelerator.num_processes, "compute log-probabilities of the batch")
        before = {sequence: one for share in shares for part in share for sequence, one in part.items()}
        threshold = entropy_threshold(
            torch.cat([one.entropies_T for one in before.values()] or [torch.empty(0)]), loss.top_entropy_share)
        return self._with_old_logprobs(groups, before, self._marks(groups, before, step)), threshold

    def _marks(
        self, groups: Sequence[TrainingGroup], before: Mapping[SequenceIndex, _Before], step: int
    ) -> Mapping[SequenceIndex, Tensor]:
        """Where loss.covariance acts, of each completion that it looks at; nothing where it is off."""
        settings = self._config.loss.covariance
        # Groups that are computed for a penalty's sake alone have no advantage: they would move the means.
        numbers = {n for n, group in enumerate(self._training(groups)) if trains(group, needs_all=False)}
        sequences = sorted(sequence for sequence in before if sequence.group in numbers)
        if settings.mode == "none" or not sequences:
            return {}
        looked_at = [before[sequence] for sequence in sequences]
        random = torch.Generator().manual_seed(request_seed(self._config.seed, "covariance", step, "", 0))
        marks_N = covariance_marks(
            torch.cat([one.logprobs_T for one in looked_at]), torch.cat([one.advantages_T for one in looked_at]),
            settings, random)
        return dict(zip(sequences, marks_N.split([len(one.logprobs_T) for one in looked_at]), strict=True))

    def _training(self, groups: Sequence[TrainingGroup]) -> list[TrainingGroup]:
        """Those that need a forward pass; micro-batches count them."""
        return [group for group in groups if trains(group, self._needs_all)]

    def _with_old_logprobs(
        self, groups: Sequence[TrainingGroup], before: Mapping[SequenceIndex, _Before],
        marks: Mapping[SequenceIndex, Tensor],
    ) -> list[TrainingGroup]:
        """before, marks: of every completion that trains; their groups are counted among those that do."""
        numbers = {id(group): number for number, group in enumerate(self._training(groups))}

        def completed(group: TrainingGroup) -> TrainingGroup:
            sequences = [SequenceIndex(numbers[id(group)], rollout) for rollout in range(len(group.advantages))]
            return replace(
                group, old_logprobs=tuple(before[s].logprobs_T if s in before else None for s in sequences),
                marks=tuple(marks.get(s) for s in sequences) if marks else None)

        return [completed(group) if id(group) in numbers else group for group in groups]

    def _micro_batches(self, groups: Sequence[TrainingGroup]) -> Iterator[tuple[MicroBatch, float, bool]]:
        """This rank's micro-batches of one update with their weight, 1, and whether it is the last. A rank that has
        fewer than the others repeats one with weight 0, because the backward passes of the ranks must match."""
        training = self._training(groups)
        layout, num_ranks = self._unwrapped.layout, self._accelerator.num_processes
        plan = plan_for_ranks(
            training, max_tokens=self._config.optim.micro_batch_tokens, layout=layout, num_ranks=num_ranks)
        if not plan:
            return
        mine = split_for_ranks(plan, num_ranks)[self._accelerator.process_index]
        smallest = min(plan, key=lambda planned: planned.num_tokens)
        denominators = denominators_of(groups, self._config.sampling.max_completion_tokens)
        for number, planned in enumerate(mine, start=1):
            batch = build_micro_batch(
                training, (planned or smallest).sequences, denominators, aggregation=self._config.loss.aggregation,
                pad_token_id=self._pad_token_id, layout=layout)
            yield batch.to(self._accelerator.device), float(planned is not None), number == len(mine)

    def _logprobs(self, batch: MicroBatch, forward: torch.nn.Module) -> TokenLogprobs:
        computed: TokenLogprobs = forward(batch.rows, entropy_grad=self._config.loss.entropy_bonus > 0)
        return computed

    def _loss_tokens(
        self, batch: MicroBatch, computed: TokenLogprobs, present_T: Tensor, is_fresh_T: Tensor, min_entropy: float
    ) -> LossTokens:
        """present_T: log-probabilities of the policy at the start of the batch. is_fresh_T: True where that version
        sampled the token; the others keep their sampler's as old log-probability."""
        return LossTokens(
            logprobs_T=computed.logprobs_N,
            old_logprobs_T=torch.where(is_fresh_T, present_T, batch.sampler_logprobs_T),
            sampler_logprobs_T=batch.sampler_logprobs_T, advantages_T=self._advantages(batch, present_T),
            entropies_T=computed.entropies_N, weights_T=batch.weights_T, sequence_ids_T=batch.sequence_ids_T,
            num_sequences=batch.num_sequences, num_loss_tokens=batch.num_loss_tokens,
            ref_logprobs_T=(
                self._unwrapped.reference(batch.rows) if self._config.loss.kl_weight > 0 else None),
            min_entropy=min_entropy, is_marked_T=batch.is_marked_T)

    def _advantages(self, batch: MicroBatch, present_T: Tensor) -> Tensor:
        """[T]: each completion's, and what a teacher adds to each token's; present_T: of the policy at the start of the
        batch."""
        teacher = self._config.teacher
        if teacher is None:
            return batch.advantages_T
        return distilled_advantages(
            batch.advantages_T, present_T, batch.teacher_logprobs_T, weight=teacher.weight, cap=teacher.cap)

    def _take_step(self) -> float:
        """One optimiser step with the gradients that have added up; returns their norm before it was bounded."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.optim.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm.item()}: a loss or a log-probability is not finite. Remedy: a lower "
                "optim.lr, model.dtype=float32, in a new run that may begin with the last checkpoint's weights "
                "(model.adapter=.../adapter)")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def rehearse(self, groups: Sequence[TrainingGroup]) -> None:
        """Forward and backward of the largest micro-batch of these groups, without a step: out of memory now, not at
        step 40."""
        batch = max((batch for batch, _, _ in self._micro_batches(groups)),
                    key=lambda batch: batch.rows.token_ids_BL.numel())
        computed = self._logprobs(batch, self._forward)
        present_T = _present(batch, computed)
        tokens = self._loss_tokens(
            batch, computed, present_T, torch.ones_like(present_T, dtype=torch.bool), min_entropy=-math.inf)
        self._accelerator.backward(policy_loss(tokens, self._config.loss).loss * 0.0)
        self._optimizer.zero_grad(set_to_none=True)

    def micro_batches_of(self, groups: Sequence[TrainingGroup]) -> Iterator[MicroBatch]:
        """This rank's micro-batches of the groups, for tests and measurements."""
        return (batch for batch, weight, _ in self._micro_batches(groups) if weight)


def _marked_share(groups: Sequence[TrainingGroup]) -> float:
    """Of the tokens that loss.covariance has looked at, those that it marked."""
    marks = [marks_T for group in groups for marks_T in group.marks or () if marks_T is not None]
    return float(torch.cat(marks).double().mean()) if marks else 0.0


def _present(batch: MicroBatch, computed: TokenLogprobs) -> Tensor:
    """[T]: log-probabilities under the policy at the start of the batch: those computed before the first update, or,
    where none were, those just computed."""
    return torch.where(batch.old_logprobs_T.isnan(), computed.logprobs_N.detach(), batch.old_logprobs_T)
