"""What a running training shows on the terminal: a live block there, one line per step elsewhere.

`open_progress` chooses the display by `tracking.progress`; the trainer calls `step`, `held_out` and `message` on it and
knows nothing of the terminal. It draws on the main rank only. To show another number: `_cells`. To add a display: a
subclass of `Progress`, named in `open_progress`.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO

from rl.runs.tracking import (
    ACCURACY,
    KEPT_SHARE,
    LOSS,
    NORMALISED_ENTROPY,
    REFUSED_PREFIX,
    REVERSE_KL,
    REWARD,
    TOKENS_PER_S,
    TRAINED_TOKENS_PER_S,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Mode = Literal["auto", "live", "lines", "off"]
Clock = Callable[[], float]

ETA_WINDOW = 20
"""Steps over which the pace is measured: evaluations are averaged in, a slow first step (compilation) is soon
forgotten."""


class Pace:
    """Time left = steps left * mean time per step over the last ETA_WINDOW steps, evaluations among them included."""

    def __init__(self, num_steps: int, first_step: int, started_s: float) -> None:
        """first_step: steps already done when this process began (a resumed run)."""
        self._num_steps = num_steps
        self._marks: deque[tuple[int, float]] = deque([(first_step, started_s)], maxlen=ETA_WINDOW + 1)

    def observe(self, step: int, now_s: float) -> None:
        self._marks.append((step, now_s))

    def remaining_s(self, now_s: float) -> float | None:
        """Seconds until the last step ends, never negative; None before the first step is done.

        The time since the last step is subtracted, so that a countdown runs on within a long step."""
        (first, since), (last, until) = self._marks[0], self._marks[-1]
        if last <= first:
            return None
        return max(0.0, (self._num_steps - last) * (until - since) / (last - first) - (now_s - until))


class Progress:
    """Counts and displays nothing: also the display of other ranks and of `tracking.progress: off`."""

    def __init__(self, title: str, num_steps: int, first_step: int = 0, clock: Clock = time.monotonic) -> None:
        self._title = title
        self._num_steps = num_steps
        self._clock = clock
        self._started_s = clock()
        self._step = first_step
        self._metrics: Mapping[str, float] = {}
        self._held_out: tuple[float, float | None, float | None] | None = None
        self._message = ""
        self._pace = Pace(num_steps, first_step, self._started_s)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """A training step is done; metrics by the names of rl/runs/tracking.py, each of which may be missing."""
        self._step, self._metrics = step, dict(metrics)
        self._pace.observe(step, self._clock())
        self._show_step()

    def held_out(self, step: int, accuracy: float, low: float | None = None, high: float | None = None) -> None:
        """An evaluation is done: accuracy and its 95% interval."""
        self._held_out = (accuracy, low, high)
        interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
        self.message(f"held-out accuracy at step {step}: {accuracy:.3f}{interval}")

    def message(self, text: str) -> None:
        """Something to tell, such as a saved checkpoint."""
        self._message = text
        self._show_message(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was found, however the block ended."""

    def _show_step(self) -> None:
        pass

    def _show_message(self, text: str) -> None:
        pass

    def _times(self) -> tuple[str, str]:
        now_s = self._clock()
        remaining_s = self._pace.remaining_s(now_s)
        return format_duration(now_s - self._started_s), "-:--" if remaining_s is None else format_duration(remaining_s)

    def _cells(self) -> list[tuple[str, str]]:
        """(name, value) of what is shown of the last step; equally wide at every step."""
        metrics = self._metrics
        held_out = ("held-out", _number(None if self._held_out is None else self._held_out[0]))
        if REWARD not in metrics and LOSS in metrics:  # a supervised warm-up
            return [
                ("loss", _number(metrics[LOSS])), held_out,
                ("tok/s", f"{metrics.get(TRAINED_TOKENS_PER_S, 0.0):7,.0f}")]
        if KEPT_SHARE in metrics:  # rejection sampling, whose steps are chunks of questions
            return [("reward", _number(metrics[REWARD])), ("kept", f"{metrics[KEPT_SHARE]:4.0%}"),
                    ("tok/s", f"{metrics[TOKENS_PER_S]:7,.0f}")]
        refused = [value for name, value in metrics.items() if name.startswith(REFUSED_PREFIX)]
        return [
            ("reward", _number(metrics.get(REWARD))),
            *([("accuracy", _number(metrics[ACCURACY]))] if ACCURACY in metrics else []),
            *([("teacher kl", _number(metrics[REVERSE_KL]))] if REVERSE_KL in metrics else []), held_out,
            ("entropy", _number(metrics.get(NORMALISED_ENTROPY))),
            ("refused", f"{sum(refused):4.0%}" if refused else "   -"),
            ("tok/s", f"{metrics[TOKENS_PER_S]:7,.0f}" if TOKENS_PER_S in metrics else "      -")]


class LinesProgress(Progress):
    """One aligned line per step, for log files and pipes."""

    def __init__(self, title: str, num_steps: int, first_step: int = 0, clock: Clock = time.monotonic,
                 stream: TextIO | None = None) -> None:
        super().__init__(title, num_steps, first_step, clock)
        self._stream = stream

    def _show_step(self) -> None:
        width = len(str(self._num_steps))
        elapsed, remaining = self._times()
        cells = "  ".join(f"{name} {value}" for name, value in self._cells())
        self._print(f"step {self._step:>{width}}/{self._num_steps}  {cells}  {elapsed:>7} elapsed  {remaining:>7} left")

    def _show_message(self, text: str) -> None:
        self._print(text)

    def _print(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)


class LiveProgress(Progress):
    """A block of three lines that is drawn anew; what others print appears above it."""

    def __init__(self, title: str, num_steps: int, first_step: int = 0, clock: Clock = time.monotonic,
                 console: Console | None = None) -> None:
        super().__init__(title, num_steps, first_step, clock)
        from rich.console import Console

        self._console = console or Console()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Gives the cursor and the streams back, and leaves the last state on the screen.
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show_step(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _show_message(self, text: str) -> None:
        if self._live is not None:
            self._live.refresh()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        elapsed, remaining = self._times()
        head = Table.grid(padding=(0, 2))
        head.add_row(Text(self._title, style="bold"), f"step {self._step}/{self._num_steps}",
                     ProgressBar(total=self._num_steps, completed=self._step, width=28),
                     f"{elapsed} elapsed", f"{remaining} left")
        numbers = Text()
        for name, value in self._cells():
            numbers.append(f"{name} ", style="dim").append(f"{value.strip()}   ", style="bold")
        return Group(head, numbers, Text(self._message, style="dim", no_wrap=True, overflow="ellipsis"))


def open_progress(mode: Mode, title: str, num_steps: int, *, first_step: int = 0, is_main: bool = True) -> Progress:
    """The display that `tracking.progress` asks for, to be used as a context manager; `auto` is live on a terminal."""
    if not is_main or mode == "off":
        return Progress(title, num_steps, first_step)
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if mode == "live" or (mode == "auto" and on_terminal):
        return LiveProgress(title, num_steps, first_step)
    return LinesProgress(title, num_steps, first_step)


def format_duration(seconds: float) -> str:
    """61 -> 1:01, 3661 -> 1:01:01."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_counts(counts: Mapping[str, int]) -> str:
    """{"too long": 3, "duplicates": 0} -> "3 too long"; "" where nothing was counted."""
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def _number(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}" if value >= 0 else f"{value:5.2f}"
