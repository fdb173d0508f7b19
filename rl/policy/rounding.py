"""What of an adapter's change survives when base + BA is rounded to the dtype that holds it.

In bfloat16 neighbouring weights lie 2^-8 of their size apart. One update at a learning rate of 1e-5 changes a weight by
far less, so that rounding leaves most weights as they were: of the change as a whole 1% survives, 57% after 100 such
updates (LOG.md). Beside its base an adapter loses nothing.
"""

from __future__ import annotations

import torch

from rl.policy.policy import Policy, adapter_changes

MOST = 0.9
"""A share from which on rounding is no loss to speak of."""


@torch.no_grad()
def surviving_share(policy: Policy, dtype: torch.dtype | None = None) -> float:
    """sum (round(W + BA) - round(W)) BA / sum (BA)^2 over all adapted weights: of the adapter's change, what a merge
    that is stored in `dtype` (None: the policy's) shows. 1 where nothing is rounded away; about 0 where all is; 1 for
    no adapter, or one without a change. One weight at a time is held in float32."""
    kept = change = 0.0
    for weight, delta in adapter_changes(policy):
        merged, plain = (value.to(dtype or policy.dtype).float() for value in (weight.float() + delta, weight))
        kept += float(((merged - plain) * delta).sum(dtype=torch.float64))
        change += float(delta.square().sum(dtype=torch.float64))
    return kept / change if change else 1.0
