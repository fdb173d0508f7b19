"""An event loop in a thread of its own, for callers that must not run one: what they do meanwhile may block, or use asyncio itself.

A coroutine in the loop can post what is to be done in the thread that waits for it, such as handing over a group as soon as it is whole.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

END_TIMEOUT_S = 5.0  # for a cancelled coroutine to end

T = TypeVar("T")


class BackgroundLoop:
    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._acts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def post(self, act: Callable[[], None]) -> None:
        """Have this done by the thread that waits in `run`, or by the next one that does."""
        self._acts.put(act)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. What is posted is done in the order of posting. When that raises, the coroutine is cancelled, and what
        is still to be done is dropped."""
        has_ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_ending(coroutine, has_ended), self._loop)
        is_done = _nothing()
        future.add_done_callback(lambda _: self._acts.put(is_done))
        try:
            while (act := self._acts.get()) is not is_done:
                act()
            return future.result()
        except BaseException:
            future.cancel()
            has_ended.wait(END_TIMEOUT_S)
            while not self._acts.empty():
                self._acts.get()
            raise

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


def _nothing() -> Callable[[], None]:
    """Marks the end of one call; a leftover mark of another call does nothing."""
    return lambda: None
