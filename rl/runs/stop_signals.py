"""SIGINT and SIGTERM ask the run to stop after the present step; a second SIGINT stops it at once.

torchrun, with which `accelerate launch` starts several processes, kills them 30 s after it has handed a SIGTERM on; so
do schedulers of clusters. A step that lasts longer is told when there is still time to save (`call_when_late`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

LAUNCHER_ENDED = "launcher's end"
PATIENCE_S = 10.0  # leaves 20 s for writing a checkpoint


class StopSignals:
    """Call it for the name of the signal that arrived, or None. `close` gives the signals back to whoever had them
    before.

    `accelerate launch` hands no signal on to the one process that it starts: a launcher that has ended counts as a
    signal too, or the training would go on without anybody knowing. Outside the main thread, where Python lets nobody
    take them, the signals stay with whoever has them."""

    def __init__(self) -> None:
        self._received: str | None = None
        self._reminder: _Reminder | None = None
        self._when_late: Callable[[], None] | None = None
        taken = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        self._earlier = {number: signal.signal(number, self._receive) for number in taken}
        self._launcher = _launcher()

    def call_when_late(self, act: Callable[[], None]) -> None:
        """Have this done PATIENCE_S after a signal, and at each further SIGTERM: in the main thread, in the middle of
        whatever that does then, which goes on afterwards."""
        if self._earlier:
            self._when_late, self._reminder = act, _Reminder()

    def close(self) -> None:
        if self._reminder is not None:
            self._reminder.close()  # first: its signal would end the process
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number).name
            if self._reminder is not None:
                self._reminder.start()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        elif self._when_late is not None:
            with _without_alarm():
                self._when_late()

    def __call__(self) -> str | None:
        if self._received is None and self._launcher is not None and os.getppid() != self._launcher:
            return LAUNCHER_ENDED
        return self._received


@contextmanager
def _without_alarm() -> Iterator[None]:
    """A grader that times itself out by an alarm, in whose middle this may be, gets its time back afterwards: the alarm
    must not end what is done here, nor count against what it grades."""
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)


class _Reminder:
    """Sends this process a SIGTERM, PATIENCE_S after `start`. By a pipe: what a handler calls must take no lock that
    its own thread may hold, and the alarm is used by graders."""

    def __init__(self) -> None:
        self._to_read, self._to_write = os.pipe()
        self._lock = threading.Lock()
        self._is_closed = False
        threading.Thread(target=self._run, name="stop-reminder", daemon=True).start()

    def start(self) -> None:
        if not self._is_closed:
            os.write(self._to_write, b"s")

    def close(self) -> None:
        """From now on there is no signal any more."""
        with self._lock:
            self._is_closed = True
        os.close(self._to_write)

    def _run(self) -> None:
        if os.read(self._to_read, 1):
            select.select([self._to_read], [], [], PATIENCE_S)  # at once where it is closed
            with self._lock:
                if not self._is_closed:
                    os.kill(os.getpid(), signal.SIGTERM)
        os.close(self._to_read)


def _launcher() -> int | None:
    """Process id of the `accelerate launch` (or rl.launch) that started this process; None where something else did."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    is_launcher = any(os.path.basename(word) in ("accelerate", "rl.launch") for word in words[:3])
    return os.getppid() if is_launcher else None
