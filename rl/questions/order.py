"""Turns a number of questions and a seed into the order in which they are sampled, which a checkpoint can take up
again.

Epoch e is a permutation that (seed, e) alone decides, so the state is a few numbers and not the order itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, slots=True)
class OrderState:
    """epoch and position: how far the order has come. postponed: indices of this epoch that are still to come. The
    others say which order it is."""

    num_questions: int
    seed: int
    shuffle: bool
    epoch: int
    position: int
    postponed: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of to_json. Raises: KeyError or ValueError where it is not one."""
        epoch, position, postponed = value["epoch"], value["position"], value["postponed"]
        if not (isinstance(epoch, int) and isinstance(position, int) and isinstance(postponed, list)):
            raise ValueError(
                f"saw epoch {epoch!r}, position {position!r}, postponed {postponed!r}; expected two whole numbers "
                "and a list")
        return cls(value["num_questions"], value["seed"], value["shuffle"], epoch, position, tuple(postponed))


class QuestionOrder:
    """Indices 0..N-1, each once per epoch, a new permutation each epoch (or 0, 1, 2, ... with shuffle=False).

    A call of next(n) may reach into the following epoch. It never returns one index twice as long as n <= N: what would
    come twice is postponed to the next call, still within its epoch."""

    def __init__(self, num_questions: int, seed: int, shuffle: bool) -> None:
        if num_questions < 1:
            raise ValueError(f"saw {num_questions} questions; expected at least 1")
        self.num_questions = num_questions
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self._position = 0
        self._postponed: list[int] = []
        self._permutation = self._permute()

    def next(self, n: int) -> list[int]:
        """The next n indices; n >= 1 (n > N repeats indices, as it must)."""
        if n < 1:
            raise ValueError(f"saw n = {n}; expected at least 1")
        chosen: list[int] = []
        taken: set[int] = set()
        while len(chosen) < n:
            index = self._draw(taken if n <= self.num_questions else set())
            chosen.append(index)
            taken.add(index)
        return chosen

    def state(self) -> OrderState:
        return OrderState(
            self.num_questions, self.seed, self.shuffle, self.epoch, self._position, tuple(self._postponed))

    def load_state(self, state: OrderState) -> None:
        """Continue where the state was taken. Raises: ValueError if it belongs to another number of questions, seed or
        mode."""
        for key in ("num_questions", "seed", "shuffle"):
            if getattr(state, key) != (own := getattr(self, key)):
                raise ValueError(
                    f"the checkpoint's data order has {key} = {getattr(state, key)!r}, this run {own!r}: it cannot be "
                    "continued. Use the questions and settings that the run began with, or start a new run")
        self.epoch, self._position, self._postponed = state.epoch, state.position, list(state.postponed)
        self._permutation = self._permute()

    def _permute(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.num_questions))
        return np.random.default_rng([self.seed, self.epoch]).permutation(self.num_questions).tolist()

    def _draw(self, avoided: set[int]) -> int:
        """The epoch's next index that is not in `avoided`; the first of the next epoch if this one has none left."""
        if self._position == self.num_questions and not self._postponed:
            self.epoch += 1
            self._position = 0
            self._permutation = self._permute()
        for place, index in enumerate(self._postponed):
            if index not in avoided:
                return self._postponed.pop(place)
        while self._position < self.num_questions:
            index = self._permutation[self._position]
            self._position += 1
            if index not in avoided:
                return index
            self._postponed.append(index)
        raise AssertionError("n <= N distinct indices always exist")
