"""AdamW, and its learning rate as a function of the step alone, so that a checkpoint needs no scheduler's state."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from rl.config import AdamSection


def make_optimizer(parameters: Iterable[torch.nn.Parameter], optim: AdamSection) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )


def learning_rate(optim: AdamSection, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`: linear learning-rate warm-up from lr / warmup_steps, then
    the schedule."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + float(np.cos(np.pi * progress)))}
    return optim.lr * factor[optim.schedule]
