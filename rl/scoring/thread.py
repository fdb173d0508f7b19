"""Groups that the sampler has finished -> scored groups, in a thread of their own, while it decodes the others.

Scoring takes all groups that wait as one batch, so that rewards which ask a service still ask about many at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rl.records import Group, ScoredGroup

Score = Callable[[Sequence[Group]], list[ScoredGroup]]


class ScoringThread:
    """`take` is a generator's `finished`; `results` waits for what is not scored yet. Leaving the block ends the
    thread; where an exception leaves it, without waiting for the batch that is being scored."""

    def __init__(self, score: Score) -> None:
        self._score = score
        self._waiting: queue.SimpleQueue[tuple[int, Group] | None] = queue.SimpleQueue()
        self._scored: dict[int, ScoredGroup] = {}
        self._error: BaseException | None = None
        self._busy_s = 0.0
        self._batch_started: float | None = None
        # A daemon: a reward that hangs must not keep a process alive that has failed elsewhere.
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)

    def take(self, index: int, group: Group) -> None:
        self._waiting.put((index, group))

    def busy_s(self) -> float:
        """Seconds of scoring so far."""
        started = self._batch_started
        return self._busy_s + (0.0 if started is None else time.perf_counter() - started)

    def results(self) -> dict[int, ScoredGroup]:
        """Every group taken, scored, by its index. Raises what a reward raised."""
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._scored

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._batch_started = started = time.perf_counter()
                scored = self._score([group for _, group in batch])
                self._scored |= zip((index for index, _ in batch), scored, strict=True)
                self._batch_started = None
                self._busy_s += time.perf_counter() - started
        except BaseException as error:  # the thread that asks for the results gets it
            self._error = error

    def _next_batch(self) -> list[tuple[int, Group]]:
        """Waits for a group and takes what else is there; empty after the last."""
        batch: list[tuple[int, Group]] = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return batch
        if batch:
            self._waiting.put(None)  # the end mark, to be found again after this batch
        return batch
