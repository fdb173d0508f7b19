"""SIGINT and SIGTERM ask the run to stop after the present step; a second SIGINT stops it at once."""

from __future__ import annotations

import os
import signal
from types import FrameType

import psutil

LAUNCHER_ENDED = "launcher's end"


class StopSignals:
    """Call it for the name of the signal that arrived, or None. `close` gives the signals back to whoever had them
    before.

    `accelerate launch` hands no signal on to the one process that it starts: a launcher that has ended counts as a
    signal too, or the training would go on without anybody knowing."""

    def __init__(self) -> None:
        self._received: str | None = None
        self._earlier = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        self._launcher = _launcher()

    def close(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number).name

    def __call__(self) -> str | None:
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            return LAUNCHER_ENDED
        return self._received


def _launcher() -> int | None:
    """Process id of the `accelerate launch` that started this process; None where something else did."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    return os.getppid() if any(os.path.basename(word) == "accelerate" for word in words[:3]) else None
