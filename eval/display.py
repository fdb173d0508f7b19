"""How far an evaluation is, on the terminal: one line that is written anew there, a line every few seconds
elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from rl.records import Group
from rl.runs.progress import Pace, format_duration

SECONDS_BETWEEN_LINES = 5.0


class Display:
    """Counts completions: questions of different benchmarks have different numbers of samples."""

    def __init__(self, total: int, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        """total, done: completions; done ones are from before."""
        self._total, self._done = total, done
        self._clock = clock
        self._started = self._last = clock()
        self._tokens = 0
        self._task, self._accuracy = "", "-"
        self._pace = Pace(total, done, self._started)
        self._rewrites = sys.stderr.isatty()
        self._is_open = False  # a line that is being rewritten has no end yet

    def message(self, text: str) -> None:
        self.end_line()
        print(text, file=sys.stderr, flush=True)

    def start(self) -> None:
        """The sampler is ready: rates and the time left count from here."""
        self._started = self._last = self._clock()
        self._pace = Pace(self._total, self._done, self._started)

    def begin(self, task: str) -> None:
        if task != self._task:
            self._task, self._accuracy = task, "-"

    def sampled(self, group: Group) -> None:
        """A question has all of its completions."""
        self._done += len(group.rollouts)
        self._tokens += sum(len(rollout.token_ids) for rollout in group.rollouts)
        self._pace.observe(self._done, self._clock())
        if self._rewrites or self._clock() - self._last >= SECONDS_BETWEEN_LINES:
            self._show()

    def graded(self, accuracy: float) -> None:
        """A chunk is graded and kept; accuracy: of the benchmark so far."""
        self._accuracy = f"{accuracy:.3f}"
        if self._done >= self._total or self._rewrites:
            self._show()
        if self._done >= self._total:
            self.end_line()

    def _show(self) -> None:
        now = self._last = self._clock()
        left, elapsed = self._pace.remaining_s(now), now - self._started
        times = f"{format_duration(elapsed)} elapsed  {'-:--' if left is None else format_duration(left)} left"
        line = (f"{self._task}  {self._done:,}/{self._total:,} completions  accuracy so far {self._accuracy}  "
                f"tok/s {self._tokens / max(elapsed, 1e-9):,.0f}  {times}")
        print(
            f"\r\x1b[K{line}" if self._rewrites else line, end="" if self._rewrites else "\n", file=sys.stderr,
            flush=True)
        self._is_open = self._rewrites

    def end_line(self) -> None:
        """What follows begins a line of its own."""
        if self._is_open:
            print(file=sys.stderr)
            self._is_open = False
