"""An event loop in a thread of its own, for callers that must not run one: what they do meanwhile may block, or use
asyncio itself.

A coroutine in the loop can post what is to be done in the thread that waits for it, such as handing over a group as
soon as it is whole.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, TypeVar

END_TIMEOUT_S = 5.0  # for a cancelled coroutine to end

T = TypeVar("T")
Acts = queue.SimpleQueue[Callable[[], None] | None]  # None: the coroutine has ended

_acts_of_call: ContextVar[Acts] = ContextVar("acts_of_call")  # tasks inherit it from the call of `run` that began them


class BackgroundLoop:
    """name: of its thread, which ends with `close` or the process."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._waiting: list[Acts] = []  # one for each call of `run` under way
        self._unclaimed: Acts = queue.SimpleQueue()
        self._lock = threading.RLock()  # a signal's handler may post, or close, while its thread holds it
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def post(self, act: Callable[[], None]) -> None:
        """Have this done by the thread that waits in `run` for what posts it; from elsewhere, by one that waits, or the
        next that does."""
        with self._lock:
            own = _acts_of_call.get(None)
            if own is not None and own in self._waiting:
                own.put(act)
            else:
                (self._waiting[0] if self._waiting else self._unclaimed).put(act)

    def drop_acts(self) -> None:
        """Forget what was posted while nobody waited."""
        with self._lock:
            self._unclaimed = queue.SimpleQueue()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. What is posted is done in the order of posting. When that raises, the coroutine is
        cancelled, and what is still to be done is dropped."""
        acts: Acts = queue.SimpleQueue()
        has_ended = threading.Event()
        with self._lock:
            _move(self._unclaimed, acts)
            self._waiting.append(acts)
        try:
            future = self._begin(_ending(coroutine, has_ended), acts)
            try:
                while (act := acts.get()) is not None:
                    act()
                result = future.result()
            except BaseException:
                future.cancel()
                has_ended.wait(END_TIMEOUT_S)
                _move(acts, queue.SimpleQueue())
                raise
            return result
        finally:
            with self._lock:
                self._waiting.remove(acts)
                _move(acts, self._unclaimed)  # of tasks that go on after the coroutine

    def _begin(self, coroutine: Coroutine[Any, Any, T], acts: Acts) -> Future[T]:
        token = _acts_of_call.set(acts)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        finally:
            _acts_of_call.reset(token)
        future.add_done_callback(lambda _: acts.put(None))
        return future

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _ending(coroutine: Coroutine[Any, Any, T], has_ended: threading.Event) -> T:
    try:
        return await coroutine
    finally:
        has_ended.set()


def _move(acts: Acts, to: Acts) -> None:
    while not acts.empty():
        if (act := acts.get()) is not None:
            to.put(act)
