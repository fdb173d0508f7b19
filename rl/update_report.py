"""What the micro-batches of one batch add up to -> a report, the same on every rank, and its names in metrics.jsonl.

To report something more: a list in `UpdateSums`, a field of `UpdateReport`, and its name in `UpdateReport.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rl.batching import MicroBatch
from rl.config import TeacherSection
from rl.kl import k1
from rl.losses import LossOutput, mean_statistics
from rl.proof.distances import effective_sample_share
from rl.ranks import gather
from rl.runs.tracking import LOSS, REVERSE_KL

# Names in metrics.jsonl of rl.losses.STATISTICS.
TOKEN_MEANS = {
    "loss/tokens": "num_tokens", "loss/ratio": "ratio", "loss/clip_low_share": "clip_low",
    "loss/clip_high_share": "clip_high", "loss/kl": "kl", "policy/token_entropy": "entropy",
    "loss/corrected_share": "corrected", "loss/top_entropy_share": "kept"}


@dataclass(frozen=True, slots=True)
class Spread:
    """Of |difference of two log-probabilities| in nats, over tokens. effective_sample_share: (sum w)^2 / (n sum w^2) of
    the same tokens' importance weights w, 1 where both sides agree."""

    mean: float
    p95: float
    p99: float
    max: float
    effective_sample_share: float

    @classmethod
    def of(cls, differences: Tensor, importance: Tensor) -> Self:
        sizes = differences.double().abs().numpy()
        p95, p99 = np.quantile(sizes, (0.95, 0.99))
        return cls(float(sizes.mean()), float(p95), float(p99), float(sizes.max()), effective_sample_share(importance))


@dataclass(frozen=True, slots=True)
class Distillation:
    """reverse_kl: the mean of ln pi - ln pi_teacher over all ranks' tokens that the teacher was asked about, in nats:
    an estimate of KL(pi || pi_teacher) per token, pi at the sampling temperature and the teacher at 1. Unbiased only
    where the present policy sampled the tokens; those of an older version count without their importance ratio.
    capped_share: of those tokens, where the cap acted; None without a cap."""

    reverse_kl: float
    capped_share: float | None


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one batch did. num_updates: optimiser steps taken; 0 where no group trains, and all that follows lr is None.

    loss, grad_norm: means over the updates. token_means: rl.losses.mean_statistics, over all ranks' tokens. mismatch:
    between trainer and sampler, over the trained tokens that the present version sampled, with the importance weights
    of loss.correction; staleness: over those that an older version sampled, with the weights pi / pi_sampler that the
    loss clips: how far the policy has moved since, numerics included; each None without such tokens. marked_share: of
    the tokens, those on which loss.covariance acts; None where it is off."""

    num_updates: int
    lr: float
    loss: float | None = None
    grad_norm: float | None = None
    token_means: Mapping[str, float] | None = None
    mismatch: Spread | None = None
    staleness: Spread | None = None
    distillation: Distillation | None = None
    marked_share: float | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Under their names in metrics.jsonl; what is None is missing."""
        values = {"optim/lr": self.lr, "optim/updates": float(self.num_updates), LOSS: self.loss,
                  "optim/grad_norm": self.grad_norm, "loss/covariance_share": self.marked_share}
        if self.token_means is not None:
            values |= {name: self.token_means[statistic] for name, statistic in TOKEN_MEANS.items()}
        for group, spread in (("mismatch", self.mismatch), ("staleness", self.staleness)):
            if spread is not None:
                values |= {f"{group}/{name}": value for name, value in asdict(spread).items()}
        if self.distillation is not None:
            values |= {REVERSE_KL: self.distillation.reverse_kl,
                       "distillation/capped_share": self.distillation.capped_share}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Share:
    """One rank's part, on the CPU, as it is sent to the others. statistics: None where nothing was trained."""

    statistics: Tensor | None
    loss: float
    mismatch: Tensor
    importance: Tensor
    drift: Tensor
    reverse_kl: Tensor


@dataclass(slots=True)
class UpdateSums:
    """What adds up over the micro-batches of one batch on one rank, left on the device until `report` reads it.

    mismatch, importance: trainer's less sampler's log-probability of the tokens that the present version sampled, and
    what such a token counts for under the correction. drift: trainer's less sampler's, of tokens that an older version
    sampled. reverse_kl: policy's less teacher's. These four are of the first pass over the batch alone. marked_share:
    as in UpdateReport."""

    statistics: list[Tensor] = field(default_factory=list)
    mismatch: list[Tensor] = field(default_factory=list)
    importance: list[Tensor] = field(default_factory=list)
    drift: list[Tensor] = field(default_factory=list)
    reverse_kl: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    marked_share: float | None = None

    def add(
        self, batch: MicroBatch, output: LossOutput, present_T: Tensor, is_fresh_T: Tensor, *, is_first_pass: bool
    ) -> None:
        """present_T: log-probabilities of the policy at the start of the batch. is_fresh_T: True where that version
        sampled the token."""
        self.statistics.append(output.sums_K)
        self.losses.append(output.loss.detach())
        if is_first_pass:
            self.mismatch.append(output.correction.log_ratio_T[is_fresh_T])
            self.importance.append(output.correction.importance_T[is_fresh_T])
            self.drift.append((present_T - batch.sampler_logprobs_T)[~is_fresh_T])
            self.reverse_kl.append(k1(present_T, batch.teacher_logprobs_T)[~batch.teacher_logprobs_T.isnan()])

    def report(self, lr: float, teacher: TeacherSection | None, num_ranks: int) -> UpdateReport:
        """Over all ranks; collective."""
        mine = _Share(
            torch.stack(self.statistics).sum(0).cpu() if self.statistics else None,
            sum(torch.stack(self.losses).tolist()) if self.losses else 0.0,
            *map(_joined, (self.mismatch, self.importance, self.drift, self.reverse_kl)))
        shares = gather(mine, num_ranks, "train on the batch")
        statistics = [share.statistics for share in shares if share.statistics is not None]
        if not statistics:
            return UpdateReport(len(self.grad_norms), lr)
        mismatch, importance, drift, reverse_kl = (
            torch.cat([getattr(share, name) for share in shares])
            for name in ("mismatch", "importance", "drift", "reverse_kl"))
        return UpdateReport(
            len(self.grad_norms), lr,
            loss=sum(share.loss for share in shares) / len(self.grad_norms),
            grad_norm=float(np.mean(self.grad_norms)),
            token_means=mean_statistics(torch.stack(statistics).sum(0)),
            mismatch=Spread.of(mismatch, importance) if mismatch.numel() else None,
            staleness=Spread.of(drift, drift.double().exp()) if drift.numel() else None,
            distillation=_distillation(reverse_kl, teacher), marked_share=self.marked_share)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)).cpu() if parts else torch.empty(0)


def _distillation(reverse_kl: Tensor, teacher: TeacherSection | None) -> Distillation | None:
    if teacher is None or not reverse_kl.numel():
        return None
    values = reverse_kl.double()
    capped = None if teacher.cap is None else float((teacher.weight * values.abs() > teacher.cap).double().mean())
    return Distillation(float(values.mean()), capped)
