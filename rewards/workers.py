"""Function calls in processes that can be killed: each item has a deadline, whatever the function does.

Computer algebra may hang in C code or eat all memory on an answer that a model made up, and alarm-based time-outs work in the
main thread only. Here a hung or dead worker is killed and replaced, and its item is reported as timed out or failed, never
silently as a value. A worker is `python -c` of this file's `serve`, speaking JSON lines over its pipes: it does not import the
caller's __main__ (safe in notebooks, under accelerate and without a main guard) and inherits neither threads nor CUDA.
Workers start on first use and end with the interpreter. POSIX only.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import resource
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Status = Literal["ok", "failed", "died", "timed_out"]

_START_S = 120.0  # a loaded machine imports sympy slowly; a start that takes longer is an error and no verdict
_ROOT = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True, slots=True)
class Outcome:
    """value: what the function returned if status is ok, otherwise None. failed: it raised. died: its process ended."""

    status: Status
    value: bool | float | None = None


@dataclass(slots=True, eq=False)
class _Worker:
    process: subprocess.Popen[bytes]
    deadline: float
    item: int | None = None  # index of the item it works on; None while it starts
    received: bytearray = field(default_factory=bytearray)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class WorkerPool:
    """Calls `function`, a "package.module:name" taking strings and returning a bool or a number, on many argument lists.

    deadline_s: seconds one item may take, its worker's start not included. memory_gb: address space of one worker.
    """

    def __init__(self, function: str, *, num_workers: int = 2, deadline_s: float = 5.0, memory_gb: float = 4.0) -> None:
        self._function, self._num_workers, self._deadline_s, self._memory_gb = function, num_workers, deadline_s, memory_gb
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        atexit.register(self.close)

    def call(self, items: Sequence[Sequence[str]]) -> list[Outcome]:
        """One outcome per item, in order. Raises RuntimeError if no worker can be started."""
        with self._lock:
            if self._pid != os.getpid():  # after a fork the pipes belong to the parent
                self._idle, self._pid = [], os.getpid()
            return self._call(items)

    def close(self) -> None:
        """Ends the idle workers; the pool starts new ones when it is used again."""
        if self._pid == os.getpid():
            while self._idle:
                self._idle.pop().kill()

    def _call(self, items: Sequence[Sequence[str]]) -> list[Outcome]:
        outcomes: list[Outcome | None] = [None] * len(items)
        waiting = deque(range(len(items)))
        busy: list[_Worker] = []
        selector = selectors.DefaultSelector()
        try:
            while waiting or any(worker.item is not None for worker in busy):
                while waiting and len(busy) < self._num_workers:
                    worker = self._idle.pop() if self._idle else self._start()
                    assert worker.process.stdout is not None
                    selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
                    busy.append(worker)
                    if worker.deadline == 0.0:  # it is ready
                        self._send(worker, waiting.popleft(), items)
                timeout = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
                for key, _ in selector.select(timeout):
                    worker = key.data
                    for message in self._receive(worker):
                        if worker.item is not None:
                            outcomes[worker.item] = message
                        if waiting:
                            self._send(worker, waiting.popleft(), items)
                        else:
                            self._release(worker, busy, selector)
                            self._idle.append(worker)
                    if worker in busy and worker.process.poll() is not None:
                        self._lose(worker, busy, selector, outcomes, Outcome("died"))
                for worker in [worker for worker in busy if worker.deadline <= time.monotonic()]:
                    self._lose(worker, busy, selector, outcomes, Outcome("timed_out"))
        finally:
            for worker in busy:  # still starting when the work ran out, or an exception passed through
                worker.kill()
            selector.close()
        return [outcome for outcome in outcomes if outcome is not None]

    def _start(self) -> _Worker:
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        arguments = (self._function, str(int(self._memory_gb * 2**30)))
        process = subprocess.Popen(
            [sys.executable, "-c", "from rewards.workers import serve; serve()", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"})
        return _Worker(process, time.monotonic() + _START_S)

    def _send(self, worker: _Worker, item: int, items: Sequence[Sequence[str]]) -> None:
        worker.item, worker.deadline = item, time.monotonic() + self._deadline_s
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a dead worker is noticed by its closed output
            worker.process.stdin.write(json.dumps(list(items[item])).encode() + b"\n")
            worker.process.stdin.flush()

    def _receive(self, worker: _Worker) -> list[Outcome]:
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), 65536)
        if not data:
            worker.process.kill()
            worker.process.wait()
            return []
        worker.received += data
        *lines, rest = bytes(worker.received).split(b"\n")
        worker.received = bytearray(rest)
        return [Outcome("ok", value) if isinstance(value := json.loads(line), bool | int | float) else Outcome("failed") for line in lines]

    @staticmethod
    def _release(worker: _Worker, busy: list[_Worker], selector: selectors.BaseSelector) -> None:
        assert worker.process.stdout is not None
        selector.unregister(worker.process.stdout)
        busy.remove(worker)
        worker.item, worker.deadline = None, 0.0

    def _lose(self, worker: _Worker, busy: list[_Worker], selector: selectors.BaseSelector, outcomes: list[Outcome | None],
              outcome: Outcome) -> None:
        item = worker.item
        self._release(worker, busy, selector)
        worker.kill()
        if item is None:
            raise RuntimeError(f"a worker for {self._function} did not start ({outcome.status}, exit code "
                               f"{worker.process.returncode}); try: {sys.executable} -c 'import {self._function.split(':')[0]}'")
        outcomes[item] = outcome


def serve() -> None:
    """A worker's whole life: one JSON list of arguments per line in, true, false, a number or null (it raised) out."""
    function_path, memory_bytes = sys.argv[1:]
    with contextlib.suppress(ValueError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_bytes), int(memory_bytes)))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    module, _, name = function_path.partition(":")
    function = getattr(importlib.import_module(module), name)
    print("null", file=answers, flush=True)  # ready
    for line in sys.stdin:
        try:
            value = function(*json.loads(line))
        except Exception:  # whatever a parser raises on an answer that nobody foresaw is this item's outcome: failed
            value = None
        print(json.dumps(value), file=answers, flush=True)
