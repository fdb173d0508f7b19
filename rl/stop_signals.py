"""SIGINT and SIGTERM ask the run to stop after the present step; a second SIGINT stops it at once."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignals:
    """Call it for the name of the signal that arrived, or None."""

    def __init__(self) -> None:
        self._received: str | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signal.Signals(number).name

    def __call__(self) -> str | None:
        return self._received
