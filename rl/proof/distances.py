"""Log-probabilities of the same tokens under sampler, trainer and base -> does the sampler have the policy?

Agreement alone does not tell: as long as a policy has hardly moved, a sampler of its base agrees with it too (in
bfloat16 for hundreds of steps, whose numerics leave a bound of 0.1 nats). So the sampler is also asked on which side it
is: at how many tokens it is nearer to the trainer, and at how many to the base. This is a sign test. Where numerics
alone decide, each side is as likely as the other; a sampler that has the policy is nearer to it at more than half of
the tokens, whatever the size of the move and however few tokens carry most of it.

A mean weighted by the move (the share, a metric) is no test in bfloat16: log-probabilities lie on a lattice there, of
9,000 tokens a dozen carry the whole sum, and where they fall is chance (LOG.md has the false alarms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

CLEAR = 5.0
"""Standard deviations of a fair coin from which on a side counts as known. By chance it is passed at most once in
exp(CLEAR^2 / 2) = 270,000 looks at a side (Hoeffding's bound), and never with fewer than CLEAR^2 = 25 tokens that
differ."""

Verdict = Literal["policy", "base", "other", "open"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """bound: nats to which sampler and trainer agree on average. judges_side: whether a sampler that has the policy is
    nearer to it than to the base."""

    bound: float
    judges_side: bool = True


@dataclass(frozen=True, slots=True)
class Distances:
    """Means over tokens of |difference|, in nats. agreement: sampler and trainer; from_base: sampler and base; moved:
    trainer and base.

    from_base, moved: None where there is no base to compare with (all parameters train, no reference is kept). share:
    of the policy's move that the sampler shows, sum s m / sum m^2 with s = sampler - base and m = trainer - base; None
    without a base or where the policy equals it. num_nearer_policy, num_nearer_base: tokens at which the sampler is
    nearer to one of both."""

    num_tokens: int
    agreement: float
    from_base: float | None = None
    moved: float | None = None
    share: float | None = None
    num_nearer_policy: int = 0
    num_nearer_base: int = 0

    @property
    def is_on_base_side(self) -> bool:
        return self._deviations < -CLEAR

    @property
    def is_on_policy_side(self) -> bool:
        return self._deviations > CLEAR

    @property
    def _deviations(self) -> float:
        """From the fair coin's mean, in its standard deviations."""
        num_tokens = self.num_nearer_policy + self.num_nearer_base
        return (self.num_nearer_policy - self.num_nearer_base) / math.sqrt(num_tokens) if num_tokens else 0.0

    def verdict(self, by: Judgement) -> Verdict:
        """What the sampler has. policy: it agrees within the bound and is on the policy's side. base: it does not, and
        agrees with the base within the bound. other: neither. open: it agrees, but the policy has moved too little to
        tell it from its base.

        Without a base, agreement is all there is: policy or other."""
        if not self.agreement <= by.bound or (by.judges_side and self.is_on_base_side):  # NaN is no agreement
            has_base = self.from_base is not None and self.from_base <= by.bound and self.from_base < self.agreement
            return "base" if has_base else "other"
        return "policy" if self.moved is None or (by.judges_side and self.is_on_policy_side) else "open"


def distances(sampler_T: Tensor, trainer_T: Tensor, base_T: Tensor | None) -> Distances:
    """[T] each, T >= 1, the same tokens."""
    sampler_T, trainer_T = sampler_T.double(), trainer_T.double()
    from_trainer_T = (sampler_T - trainer_T).abs()
    agreement = from_trainer_T.mean().item()
    if base_T is None:
        return Distances(len(sampler_T), agreement)
    shown_T, move_T = sampler_T - base_T.double(), trainer_T - base_T.double()
    squares = move_T.square().sum().item()
    return Distances(
        len(sampler_T), agreement, shown_T.abs().mean().item(), move_T.abs().mean().item(),
        (shown_T * move_T).sum().item() / squares if squares else None,
        int((from_trainer_T < shown_T.abs()).sum()), int((from_trainer_T > shown_T.abs()).sum()))


def pooled(parts: Sequence[Distances]) -> Distances:
    """The means over all ranks' tokens, of the shares likewise, for the metrics: each rank has its own verdict. Raises
    ValueError for no parts."""
    if not parts:
        raise ValueError("there are no distances to pool")

    def mean(values: Sequence[float | None]) -> float | None:
        pairs = [(value, part.num_tokens) for value, part in zip(values, parts, strict=True) if value is not None]
        return sum(value * count for value, count in pairs) / sum(count for _, count in pairs) if pairs else None

    agreement = mean([part.agreement for part in parts])
    assert agreement is not None
    return Distances(
        sum(part.num_tokens for part in parts), agreement, mean([part.from_base for part in parts]),
        mean([part.moved for part in parts]), mean([part.share for part in parts]),
        sum(part.num_nearer_policy for part in parts), sum(part.num_nearer_base for part in parts))


def effective_sample_share(weights: Tensor) -> float:
    """(sum w)^2 / (n sum w^2) of importance weights, any shape: the share of the samples that would tell as much if
    they were the trainer's own (Kish). In (0, 1], 1 for equal weights; 0 where every weight is 0.

    Raises: ValueError for no weights."""
    if weights.numel() == 0:
        raise ValueError("there are no weights")
    weights = weights.double()
    squares = weights.square().sum().item()
    return weights.sum().item() ** 2 / (weights.numel() * squares) if squares else 0.0
