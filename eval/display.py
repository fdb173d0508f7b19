"""How far an evaluation is, on the terminal: one line that is written anew there, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rl.progress import Pace, format_duration

SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Counts completions: questions of different benchmarks have different numbers of samples."""

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        """total, done: completions; done ones are from before."""
        self._total, self._done = total, done
        self._clock = clock
        self._started = self._last = clock()
        self._tokens = 0
        self._pace = Pace(total, done, self._started)
        self._rewrites = sys.stderr.isatty()

    def message(self, text: str) -> None:
        self._end_line()
        print(text, file=sys.stderr, flush=True)

    def advance(self, task: str, completions: int, tokens: int, accuracy: float) -> None:
        """A chunk of `task` is done, whose accuracy so far is `accuracy`."""
        self._done += completions
        self._tokens += tokens
        now = self._clock()
        self._pace.observe(self._done, now)
        is_last = self._done >= self._total
        if not (self._rewrites or is_last or now - self._last >= SECONDS_BETWEEN_LINES):
            return
        self._last = now
        left = self._pace.remaining_s(now)
        elapsed = now - self._started
        times = f"{format_duration(elapsed)} elapsed  {'-:--' if left is None else format_duration(left)} left"
        line = (f"{task}  {self._done:,}/{self._total:,} completions  accuracy so far {accuracy:.3f}  "
                f"tok/s {self._tokens / max(elapsed, 1e-9):,.0f}  {times}")
        if self._rewrites:
            print(f"\r\x1b[K{line}", end="\n" if is_last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _end_line(self) -> None:
        if self._rewrites and 0 < self._done < self._total:
            print(file=sys.stderr)
