"""Function calls in processes that can be killed: each item has a deadline, whatever the function does.

Computer algebra may hang in C code, eat all memory or overflow its stack on an answer that a model made up, and
alarm-based time-outs work in the main thread only. Here a hung or dead worker is killed and replaced, and its item is
reported as timed out, died or failed, never silently as a value. Workers are forked, in milliseconds, from a template
process that has imported the function (rewards/processes/template.py). The template starts with the first item, does
not import the caller's __main__ (safe in notebooks, under accelerate and without a main guard) and ends, with all
workers, when the pool is closed or the caller's process ends, however it ends. A fork of the caller starts a template
of its own. Calls from several threads take turns.

How many at once. `num_workers` items run together. One that has used `_PATIENCE_S` of CPU time, or has slept that long,
counts as slow: it gets a lower priority, and two more may run beside it (one in its place, one as it may not be the
last of its kind), up to `max_workers` in all. So a few hanging items hold nobody up: on 2 idle cores ten of them are
over within one deadline + 1 s, and short items beside them get most of the cores. Deadlines are wall-clock time. What
this costs: an item that is slow but honest shares the cores with what hangs. If all max_workers hang, it gets
num_workers / max_workers of a core's time, at the defaults an eighth of its deadline (0.6 s), and times out if it needs
more; fewer items at once would give each more, and all of them together longer.

How long a call may take. n hanging items are over within ceil(n / max_workers) deadlines + 1 s: 200 take 65 s with 16
workers. There is no bound on a call's total time, and the deadline does not shrink when many hang: on a busy machine
either would turn honest items into time-outs. Where that is too long, choose a shorter deadline.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from rewards.processes.handles import Template, Worker

Status = Literal["ok", "failed", "died", "timed_out"]

_PATIENCE_S = 0.05  # about what a new worker takes for its first item, in CPU time; later ones take a few milliseconds
_LOOK_S = 0.02  # how often an item that has run longer is looked at while others wait
_ITEMS_PER_WORKER = 500  # caches of the function must not add up to the memory limit
_MAX_TEMPLATES = 3  # per call; the template runs nothing of the items, so that its end is the machine's doing
_WANTS = {"MemoryError": "memory_errors", "RecursionError": "recursion_errors"}
_COUNTS = ("items", "timed_out", "died", "failed", *_WANTS.values(), "restarts")


@dataclass(frozen=True, slots=True)
class Outcome:
    """value: what the function returned if status is ok, otherwise None. failed: it raised; error is the exception's
    name. died: its process ended, by itself or for its memory. timed_out: it was killed at its deadline."""

    status: Status
    value: bool | float | None = None
    error: str = ""


@dataclass(slots=True)
class _Batch:
    """One call. outcomes: by item, None while it is open. waiting: items not started. running: workers with an item."""

    items: Sequence[Sequence[str]]
    outcomes: list[Outcome | None]
    waiting: deque[int]
    running: list[Worker]
    num_templates: int = 0


class WorkerPool:
    """Calls `function`, a "package.module:name" taking strings and returning a bool or a number, on many argument
    lists.

    num_workers: items that run together; the default is the number of cores for each process of torchrun or accelerate,
    2 to 8. max_workers: workers in all, 8 times as many by default. deadline_s: wall-clock seconds one item may take.
    memory_gb: what one worker may allocate on top of the imported modules; the worst case is max_workers times as much.
    To have lazy imports and caches ready in every worker, the function's module lists argument lists for a first call
    in WARM_UP; without it the function is called once with "1" for each parameter.
    """

    def __init__(
        self, function: str, *, num_workers: int | None = None, deadline_s: float = 5.0, memory_gb: float = 1.0,
        max_workers: int | None = None,
    ) -> None:
        self._function, self._deadline_s, self._memory_gb = function, deadline_s, memory_gb
        self._num_workers = _cores_per_process() if num_workers is None else num_workers
        self._max_workers = max(8 * self._num_workers if max_workers is None else max_workers, self._num_workers)
        if self._num_workers < 1 or deadline_s <= 0 or memory_gb <= 0:
            raise ValueError(f"a pool needs num_workers >= 1, deadline_s > 0 and memory_gb > 0, got {num_workers=}, "
                             f"{deadline_s=}, {memory_gb=}")
        self._idle: list[Worker] = []
        self._template: Template | None = None
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(_COUNTS, 0)
        _pools.add(self)

    @property
    def counts(self) -> dict[str, int]:
        """Since the pool was made: items; timed_out, died, failed; of the failed memory_errors and recursion_errors;
        restarts: workers and templates that were replaced because they hung, died or ran out of memory or stack."""
        return dict(self._counts)

    def call(self, items: Sequence[Sequence[str]]) -> list[Outcome]:
        """One outcome per item, in order. Raises RuntimeError if no worker can be started."""
        with self._lock:
            batch = _Batch(items, [None] * len(items), deque(range(len(items))), [])
            try:
                while batch.waiting or batch.running:
                    if self._template is None:
                        self._start_template(batch)
                    with self._watched(batch) as selector:
                        while self._template is not None and (batch.waiting or batch.running):
                            self._assign(batch, selector)
                            self._wait(batch, selector)
            finally:
                for worker in batch.running:  # an exception passed through
                    self._kill(worker)
                while len(self._idle) > self._num_workers:
                    self._kill(self._idle.pop(0))
            return [outcome for outcome in batch.outcomes if outcome is not None]

    def close(self) -> None:
        """Ends the template and the workers, and waits for their end; the pool starts new ones when it is used
        again."""
        with self._lock:
            self._drop_template()

    def _start_template(self, batch: _Batch) -> None:
        batch.num_templates += 1
        if batch.num_templates > _MAX_TEMPLATES:
            raise RuntimeError(
                f"the template of the workers for {self._function} was killed {_MAX_TEMPLATES} times in one call; "
                "is the machine out of memory?")
        self._template = Template(
            self._function, deadline_s=self._deadline_s, memory_bytes=int(self._memory_gb * 2**30))

    @contextlib.contextmanager
    def _watched(self, batch: _Batch) -> Iterator[selectors.BaseSelector]:
        assert self._template is not None and not batch.running
        with selectors.DefaultSelector() as selector:
            selector.register(self._template.control, selectors.EVENT_READ, None)
            yield selector

    def _assign(self, batch: _Batch, selector: selectors.BaseSelector) -> None:
        """Starts waiting items as the rule of the module docstring allows."""
        assert self._template is not None
        for worker in batch.running if batch.waiting else ():
            if not worker.is_slow and worker.has_spent(_PATIENCE_S):
                worker.is_slow = True
                self._template.slow(worker)
        num_slow = sum(worker.is_slow for worker in batch.running)
        num_at_once = min(self._num_workers + 2 * num_slow, self._max_workers)
        while batch.waiting and len(batch.running) < num_at_once:
            try:
                worker = self._idle.pop() if self._idle else self._template.fork()
            except OSError:
                return self._lose_template(batch)
            worker.item, worker.is_slow, worker.started_s = batch.waiting[0], False, time.monotonic()
            worker.deadline_s = worker.started_s + self._deadline_s
            try:
                worker.send(batch.items[worker.item])
            except OSError:
                if worker.num_items:  # it died while it was idle: no fault of this item
                    self._replace(worker)
                    continue  # otherwise its end will be read from its channel, or its time passes
            batch.waiting.popleft()
            selector.register(worker.channel, selectors.EVENT_READ, worker)
            batch.running.append(worker)

    def _wait(self, batch: _Batch, selector: selectors.BaseSelector) -> None:
        """Takes what has arrived, and only then looks at the deadlines: if the caller was stopped, answers still
        count."""
        if self._template is None:
            return
        now = time.monotonic()
        until = [worker.deadline_s for worker in batch.running]
        if batch.waiting:
            until += [
                max(worker.started_s + _PATIENCE_S, now + _LOOK_S) for worker in batch.running if not worker.is_slow]
        for key, _ in selector.select(max(0.0, min(until) - now)):
            if key.data is None:
                self._hear(batch)
                return
            worker: Worker = key.data
            answer = worker.receive()
            if answer != {}:
                selector.unregister(worker.channel)
                batch.running.remove(worker)
                self._finish(batch, worker, answer)
        now = time.monotonic()
        for worker in [worker for worker in batch.running if worker.deadline_s <= now]:
            selector.unregister(worker.channel)
            batch.running.remove(worker)
            self._record(batch, worker, Outcome("timed_out"))
            self._replace(worker)

    def _finish(self, batch: _Batch, worker: Worker, answer: dict[str, object] | None) -> None:
        """The item's outcome; the worker is kept unless it is dead, worn out, or damaged by want of memory or stack."""
        if answer is None:
            self._record(batch, worker, Outcome("died"))
            self._replace(worker)
            return
        error = str(answer.get("error", ""))
        self._record(
            batch, worker, Outcome("failed", None, error) if error else Outcome("ok", cast(float, answer["value"])))
        worker.num_items += 1
        if error in _WANTS:
            self._replace(worker)
        elif worker.num_items >= _ITEMS_PER_WORKER:
            self._kill(worker)
        else:  # those of low priority in front: the last to be used and the first to be let go
            self._idle.insert(0 if worker.is_slow else len(self._idle), worker)

    def _record(self, batch: _Batch, worker: Worker, outcome: Outcome) -> None:
        batch.outcomes[worker.item] = outcome
        self._counts["items"] += 1
        if outcome.status != "ok":
            self._counts[outcome.status] += 1
        if outcome.error in _WANTS:
            self._counts[_WANTS[outcome.error]] += 1

    def _replace(self, worker: Worker) -> None:
        self._counts["restarts"] += 1
        self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        if self._template is None:
            worker.channel.close()
        else:
            self._template.kill(worker)

    def _hear(self, batch: _Batch) -> None:
        """The template speaks when it cannot fork, which is an error and no verdict, or has ended."""
        assert self._template is not None
        message = self._template.read_message()
        if message is not None:
            self._drop_template()
            raise RuntimeError(f"the workers for {self._function}: {message['error']}")
        self._lose_template(batch)

    def _lose_template(self, batch: _Batch) -> None:
        """Somebody killed the template and so its workers: what they were at has died, the next items get a new
        template."""
        self._counts["restarts"] += 1
        self._drop_template()
        for worker in batch.running:
            self._record(batch, worker, Outcome("died"))
            worker.channel.close()
        batch.running.clear()

    def _drop_template(self) -> None:
        for worker in self._idle:
            worker.channel.close()
        self._idle.clear()
        if self._template is not None:
            template, self._template = self._template, None
            template.close()

    def _forget(self) -> None:
        """In a fork of the caller, where the processes and the lock's holder are the parent's: a pool as new."""
        for worker in self._idle:
            worker.channel.close()
        if self._template is not None:
            self._template.forget()
        self._idle, self._template, self._lock, self._counts = [], None, threading.Lock(), dict.fromkeys(_COUNTS, 0)

    def _close_at_exit(self) -> None:
        # a daemon thread may be in a call; the end of the process ends its workers too
        if self._lock.acquire(blocking=False):
            self._drop_template()


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


def total_counts() -> dict[str, int]:
    """`WorkerPool.counts` summed over this process's pools."""
    return {name: sum(pool.counts[name] for pool in _pools) for name in _COUNTS}


def _cores_per_process() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(2, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _forget_all() -> None:
    for pool in _pools:
        pool._forget()


@atexit.register
def _close_all() -> None:
    for pool in list(_pools):
        pool._close_at_exit()


os.register_at_fork(after_in_child=_forget_all)
