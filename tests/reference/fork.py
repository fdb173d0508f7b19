"""A command in a fork of the test's process: it may be killed, or be one of several ranks, and imports nothing anew,
which takes a new interpreter seconds."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState

from rl.records import Json
from rl.runs.tracking import JsonLines
from tests.reference.whole_run import TOO_LONG_S


class Fork:
    """`run()` in a fork, on one thread; what it returns is the exit code. Asked, signalled and waited for as a
    `subprocess.Popen`. captured: its output is kept for `finished`, in the place of coming with this process's."""

    def __init__(
        self, run: Callable[[], int], environment: Mapping[str, str] | None = None, *, captured: bool = True
    ) -> None:
        self.returncode: int | None = None
        self._outputs = [os.memfd_create(name) for name in ("stdout", "stderr")] if captured else []
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self._begin(environment or {})
                code = run()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = TOO_LONG_S) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.01)
        return code

    def finished(self, timeout: float = TOO_LONG_S) -> subprocess.CompletedProcess[str]:
        """Its end, as `subprocess.run` tells of it."""
        try:
            code = self.wait(timeout)
        finally:
            self.kill()
        texts = []
        for output in self._outputs:
            with os.fdopen(output) as file:
                file.seek(0)
                texts.append(file.read())
        return subprocess.CompletedProcess((), code, *texts)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _begin(self, environment: Mapping[str, str]) -> None:
        for number, output in enumerate(self._outputs, start=1):
            os.dup2(output, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.update(environment)
        # What a new process would not know: the modules of reward files count calls, accelerate knows its ranks.
        for name in [name for name in sys.modules if name.startswith("reward_file_")]:
            del sys.modules[name]
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.set_num_threads(1)


class ForkedModule(Fork):
    """In the place of `subprocess.Popen` for `python -m MODULE WORDS`: a fork that calls the module's `main`."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], start_new_session: bool,
        preexec_fn: Callable[[], None] | None,
    ) -> None:
        _, option, module, *words = command
        assert option == "-m"

        def run() -> int:
            if start_new_session:
                os.setsid()
            if preexec_fn is not None:
                preexec_fn()
            os.environ.clear()
            os.environ.update(env)
            return int(importlib.import_module(module).main(words))

        super().__init__(run, captured=False)


def module_in_fork(
    command: Sequence[str], *, env: Mapping[str, str], **settings: object
) -> subprocess.CompletedProcess[str]:
    """In the place of `subprocess.run` for `python -m MODULE WORDS`, also where a thread calls it: in the fork that
    thread is the main one, which alone may handle signals."""
    _, option, module, *words = command
    assert option == "-m"
    return Fork(lambda: int(importlib.import_module(module).main(words)), env).finished()


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
    return [rank.finished() for rank in ranks]


@contextmanager
def after(
    owner: type, method: str, act: Callable[[], None], when: Callable[..., bool] = lambda *arguments: True
) -> Iterator[None]:
    """`act()` behind each call of the method whose arguments are those that `when` wants: an accident that comes always
    at the same place of a run. Forks made meanwhile inherit it."""
    original = getattr(owner, method)

    def call_and_act(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if when(*arguments):
            act()
        return result

    with patch.object(owner, method, call_and_act):
        yield


def after_line(line: Mapping[str, Json], act: Callable[[], None]) -> AbstractContextManager[None]:
    """`act()` as soon as a line with these values stands in metrics.jsonl, or another file of JSON lines."""
    return after(JsonLines, "append", act, lambda lines, record: line.items() <= record.items())


def signal_itself(number: int) -> Callable[[], None]:
    """To be done `after` something: the process sends itself the signal."""
    return lambda: os.kill(os.getpid(), number)
