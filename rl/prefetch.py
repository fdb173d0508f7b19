"""One call at a time in a thread of its own: the sampling of step k+1 while step k trains (generator.max_staleness:
1)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

POLL_S = 0.2  # how often the thread that waits looks whether something is to be said or saved

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`start` begins a call, `join` waits for it. The call must use no collective: those belong to the main thread, in
    one order."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._result: T | None = None
        self._error: BaseException | None = None

    @property
    def in_flight(self) -> bool:
        """Whether a call was started and not yet joined."""
        return self._thread is not None

    def start(self, call: Callable[[], T]) -> None:
        assert self._thread is None
        # A daemon: a run that fails while a sampler is waited for must end.
        self._thread = threading.Thread(target=self._run, args=(call,), name="prefetch", daemon=True)
        self._thread.start()

    def join(self, poll: Callable[[], None]) -> T:
        """What the call returned, or raises what it raised; `poll` is called in this thread while it waits, and once at
        the end."""
        assert self._thread is not None
        while self._thread.is_alive():
            poll()
            self._thread.join(POLL_S)
        self._thread = None
        poll()
        error, result = self._error, self._result
        self._error = self._result = None
        if error is not None:
            raise error
        assert result is not None
        return result

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._result = call()
        except BaseException as error:  # the thread that joins gets it
            self._error = error
