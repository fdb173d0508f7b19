"""Functions of a program that starts a run and is told of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from rl.runs.tracking import Record

OnStep: TypeAlias = Callable[[Record], object]
OnRollouts: TypeAlias = Callable[[Sequence[Record]], object]


class Callbacks:
    """on_step: called after each training step with its line of metrics.jsonl. on_rollouts: with the lines that the
    step adds to rollouts.jsonl (tracking.rollouts_every), each a group with its completions. On the main rank.

    What one of them raises is kept: the step comes to its end, the run is saved and ends as after a signal, and
    `raise_kept` raises it. Called itself, it gives the error's name, or None, as what is asked for signals does."""

    def __init__(self, on_step: OnStep | None = None, on_rollouts: OnRollouts | None = None) -> None:
        self._on_step, self._on_rollouts = on_step, on_rollouts
        self._error: Exception | None = None

    def tell(self, metrics: Record, rollouts: Sequence[Record]) -> None:
        try:
            if self._on_rollouts is not None and rollouts:
                self._on_rollouts(rollouts)
            if self._on_step is not None:
                self._on_step(metrics)
        except Exception as error:  # whatever it is, the caller gets it
            self._error = error

    def __call__(self) -> str | None:
        return None if self._error is None else type(self._error).__name__

    def raise_kept(self) -> None:
        if self._error is not None:
            raise self._error


NOBODY = Callbacks()
"""Who looks on where nobody does."""
