"""Log-probabilities of the same tokens under sampler, trainer and base -> does the sampler have the policy?

Agreement alone does not tell: as long as a policy has hardly moved, a sampler of its base agrees with it too (in
bfloat16 for hundreds of steps, whose numerics leave a bound of 0.1 nats). So the sampler is also asked on which side it
is: with m_t = trainer - base the policy's move at token t and s_t = sampler - base, its share of the move is sum s_t
m_t / sum m_t^2, 1 for a sampler that has the policy and 0 for one that has the base, whatever the size of the move; and
above 1/2 exactly where the sampler is closer (in squares) to the trainer. Both are judged by this middle, because
rounding that sampler and trainer do not have in common draws the share towards it, from either side alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

CLEAR = 5.0
"""Standard errors between the share and 1/2 from which on the side counts as known: by chance once in millions of
proofs."""

Verdict = Literal["policy", "base", "other", "open"]


@dataclass(frozen=True, slots=True)
class Distances:
    """Means over tokens of |difference|, in nats. agreement: sampler and trainer; from_base: sampler and base; moved:
    trainer and base.

    from_base, moved: None where there is no base to compare with (all parameters train, no reference is kept). share:
    of the policy's move that the sampler shows; share_error: its standard error; both None without a base or where the
    policy equals it."""

    num_tokens: int
    agreement: float
    from_base: float | None = None
    moved: float | None = None
    share: float | None = None
    share_error: float | None = None

    @property
    def is_on_base_side(self) -> bool:
        return self.share is not None and self.share_error is not None and self.share < 0.5 - CLEAR * self.share_error

    @property
    def is_on_policy_side(self) -> bool:
        return self.share is not None and self.share_error is not None and self.share > 0.5 + CLEAR * self.share_error

    def verdict(self, bound: float) -> Verdict:
        """What the sampler has. policy: it agrees within the bound and is on the policy's side. base: it does not, and
        agrees with the base within the bound. other: neither. open: it agrees, but the policy has moved too little to
        tell it from its base.

        Without a base, agreement is all there is: policy or other."""
        if not self.agreement <= bound or self.is_on_base_side:  # NaN is no agreement
            has_base = self.from_base is not None and self.from_base <= bound and self.from_base < self.agreement
            return "base" if has_base else "other"
        return "policy" if self.moved is None or self.is_on_policy_side else "open"


def distances(sampler_T: Tensor, trainer_T: Tensor, base_T: Tensor | None) -> Distances:
    """[T] each, T >= 1, the same tokens. The standard error takes the tokens as independent, and as noise what the
    nearer of the two (policy, base) does not explain."""
    sampler_T, trainer_T = sampler_T.double(), trainer_T.double()
    agreement = (sampler_T - trainer_T).abs().mean().item()
    if base_T is None:
        return Distances(len(sampler_T), agreement)
    shown_T, move_T = sampler_T - base_T.double(), trainer_T - base_T.double()
    squares = move_T.square().sum().item()
    from_base, moved = shown_T.abs().mean().item(), move_T.abs().mean().item()
    if squares == 0.0:
        return Distances(len(sampler_T), agreement, from_base, moved)
    share = (shown_T * move_T).sum().item() / squares
    noise_T = shown_T - move_T if share > 0.5 else shown_T
    error = math.sqrt((move_T * noise_T).square().sum().item()) / squares
    return Distances(len(sampler_T), agreement, from_base, moved, share, error)


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
        mean([part.moved for part in parts]), mean([part.share for part in parts]))


def effective_sample_share(weights: Tensor) -> float:
    """(sum w)^2 / (n sum w^2) of importance weights, any shape: the share of the samples that would tell as much if
    they were the trainer's own (Kish). In (0, 1], 1 for equal weights; 0 where every weight is 0.

    Raises: ValueError for no weights."""
    if weights.numel() == 0:
        raise ValueError("there are no weights")
    weights = weights.double()
    squares = weights.square().sum().item()
    return weights.sum().item() ** 2 / (weights.numel() * squares) if squares else 0.0
