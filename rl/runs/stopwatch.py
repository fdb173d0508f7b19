"""How long the stages of something take, under the names that metrics.jsonl has for them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds by name, added up over their uses: `with watch("train_s"): ...`."""

    def __init__(self, **start: float) -> None:
        """start: seconds to begin with; these names are there even where nothing is timed."""
        self.seconds = dict(start)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds nothing where the stage fails."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """The seconds so far; begins anew with zeros."""
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken
