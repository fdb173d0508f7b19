"""While a sampler or a teacher in other processes does not answer: say so, save the run, and let a signal end it.

A generator calls in whichever thread it was called from. The thread that trains acts at once; calls from another thread
(sampling ahead, rl/prefetch.py) are noted, and the training thread acts on them in `poll`, which it calls while it
waits for that thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from rl.generate.servers.outages import Outages

REPEAT_S = 60.0
"""The same news is not told again earlier: a generator may tell it every second, so that a signal is soon seen."""


class StoppedWaitingError(Exception):
    """A signal asked the run to stop while it waited for a sampler or a teacher. signal: its name."""

    def __init__(self, signal: str) -> None:
        super().__init__(f"stopped by {signal} while waiting for servers")
        self.signal = signal


class Waiting:
    """save: writes a checkpoint of the state from which the interrupted step can be repeated and returns what to tell
    about it.

    stop_requested: the name of a signal that asked the run to stop, or None. Made in the thread that trains."""

    def __init__(
        self, *, say: Callable[[str], None], save: Callable[[], str], stop_requested: Callable[[], str | None]
    ) -> None:
        self._say, self._save, self._stop_requested = say, save, stop_requested
        self._thread = threading.get_ident()
        self._told, self._told_at = "", -REPEAT_S
        self._noted: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()

    def watch(self, service: object) -> None:
        """From now on hear what a generator or a teacher tells; nothing where it has nothing to tell."""
        if isinstance(service, Outages):
            service.on_outage, service.on_message = self._on_outage, self._on_message

    def poll(self) -> None:
        """Act on what other threads have noted."""
        while not self._noted.empty():
            self._act(*self._noted.get())

    def _on_outage(self, text: str) -> None:
        self._tell(text, saves=True)
        self._stop_if_asked()

    def _on_message(self, text: str) -> None:
        self._tell(text, saves=False)
        self._stop_if_asked()

    def _stop_if_asked(self) -> None:
        if (signal := self._stop_requested()) is not None:
            self._tell("", saves=True)  # an outage has saved already; other waiting has not
            raise StoppedWaitingError(signal)

    def _tell(self, text: str, *, saves: bool) -> None:
        if threading.get_ident() == self._thread:
            self._act(text, saves)
        else:
            self._noted.put((text, saves))

    def _act(self, text: str, saves: bool) -> None:
        news = text
        if text == self._told and time.monotonic() - self._told_at < REPEAT_S:
            news = ""
        elif text:
            self._told, self._told_at = text, time.monotonic()
        if saves:
            news = "; ".join(filter(None, (news, self._save())))
        if news:
            self._say(news)
