"""The learning rate as a function of the step alone, so that a checkpoint needs no scheduler state."""

from __future__ import annotations

import numpy as np

from rl.config import AdamSection, RunConfig


def learning_rate(config: RunConfig, step: int) -> float:
    """The learning rate of training step `step` (from 0): linear warm-up from lr / warmup_steps, then the schedule.

    A function of the step alone, so that a checkpoint needs no scheduler state."""
    return scheduled_rate(config.optim, step, config.steps)


def scheduled_rate(optim: AdamSection, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) by an optimiser's section; steps: of the whole training."""
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    factor = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + float(np.cos(np.pi * progress)))}
    return optim.lr * factor[optim.schedule]
