"""A moving average of what trains: a slow copy of the policy that gives labels (Co-rewarding-II, arXiv:2508.00410).

average <- decay * average + (1 - decay) * weights, after each step; before the first it is what training starts from.
With an adapter A and B are averaged by themselves, one small adapter more; the base stays as it is. The paper averages
all weights and lets its decay rise along a cosine; here it is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from rl.policy.policy import Policy


class MovingAverage:
    """Part of a run's state (`weights`, `load`). is_in_place: the policy is the average just now, and nothing may be
    saved of it; on_leaving is called once it is itself again."""

    def __init__(self, policy: Policy, decay: float) -> None:
        self.policy = policy
        self._decay = decay
        self.is_in_place = False
        self.on_leaving: Callable[[], None] = lambda: None
        self.weights: dict[str, torch.Tensor] = {
            name: parameter.detach().clone() for name, parameter in policy.trainable_parameters().items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        for name, parameter in self.policy.trainable_parameters().items():
            self.weights[name].mul_(self._decay).add_(parameter, alpha=1 - self._decay)

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The policy is the average here, and bit for bit what it was before afterwards."""
        kept = {name: parameter.detach().clone() for name, parameter in self.policy.trainable_parameters().items()}
        self.is_in_place = True
        try:
            self._set(self.weights)
            yield
        finally:
            self._set(kept)
            self.is_in_place = False
        self.on_leaving()

    @torch.no_grad()
    def _set(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.policy.trainable_parameters().items():
            parameter.copy_(weights[name])
