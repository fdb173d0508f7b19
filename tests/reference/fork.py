"""A command in a fork of the test's process: it may be killed, or be one of several ranks, and imports nothing anew,
which takes a new interpreter seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState

from rl.records import Json
from rl.runs.tracking import JsonLines


class Fork:
    """`run()` in a fork, on one thread; what it returns is the exit code. Its process is `process`."""

    def __init__(self, run: Callable[[], int], environment: Mapping[str, str] | None = None) -> None:
        self._outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
        self.process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(run, environment or {}), daemon=True)
        self.process.start()

    def wait(self, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Its end, as `subprocess.run` tells of it."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"the command has not ended after {timeout_s:g} s")
        texts = []
        for output in self._outputs:
            with os.fdopen(output) as file:
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess((), self.process.exitcode, *texts)

    def _run(self, run: Callable[[], int], environment: Mapping[str, str]) -> None:
        for number, output in enumerate(self._outputs, start=1):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.update(environment)
        # What a new process would not know: the modules of reward files count calls, accelerate knows its ranks.
        for name in [name for name in sys.modules if name.startswith("reward_file_")]:
            del sys.modules[name]
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(1)
        sys.exit(run())


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def forked_ranks(run: Callable[[], int], count: int = 2) -> list[subprocess.CompletedProcess[str]]:
    """`run()` in forks that are the ranks of one gloo group, to the end of all."""
    of_all = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    ranks = [Fork(run, {**of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]
    return [rank.wait() for rank in ranks]


@contextmanager
def signal_after_line(number: signal.Signals, line: Mapping[str, Json]) -> Iterator[None]:
    """This process gets the signal as soon as a line with these values stands in metrics.jsonl (or another file of
    JSON lines): always at the same place of a run."""
    append = JsonLines.append

    def append_and_signal(self: JsonLines, record: Mapping[str, Json]) -> None:
        append(self, record)
        if line.items() <= record.items():
            os.kill(os.getpid(), number)

    with patch.object(JsonLines, "append", append_and_signal):
        yield
