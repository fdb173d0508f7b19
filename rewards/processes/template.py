"""What runs outside the caller's process: a template, which imports the function once, and workers, which are forked
from it.

    caller -- "fork 7" and a socket --> template -- fork() --> worker 7 <-- JSON lines over that socket --> caller

The template is a fresh interpreter (never a fork of the caller, which may have threads and CUDA), stays single-threaded
and runs nothing but its warm-up, so a fork of it is safe, takes milliseconds and starts with everything imported. Only
the template kills and reaps workers: a process number cannot have gone to somebody else in between. Commands, a line
each: `fork N` (with the worker's socket), `slow N` (lower its priority), `kill N`. The template ends, and all workers
with it, when its socket closes or the caller is gone. Limits of a worker: memory, CPU time slightly above the deadline,
no core files, first choice of the out-of-memory killer. Used by rewards/processes/handles.py only. POSIX; a worker that
outlives a killed template is prevented on Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import inspect
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

START_S = 120  # a loaded machine imports sympy slowly; a start that takes longer is an error and no verdict
_LOOK_S = 1.0  # how often the template looks whether its caller is alive and reaps
_SLOW_NICE = 5  # a third of the weight; at 10, a tenth, slow but honest items would starve on busy cores
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """memory_bytes: on top of what the template occupies. cpu_s: CPU seconds of one item, rounded up to whole ones."""

    memory_bytes: int
    cpu_s: float


def run_template() -> None:
    """The template's whole life. Arguments: function, number of the control socket, the caller's process, memory in
    bytes, seconds."""
    function_path, control_fd, caller, memory_bytes, deadline_s = sys.argv[1:]
    control = socket.socket(fileno=int(control_fd))
    signal.alarm(START_S)  # its default action ends the process, also where the import hangs and nobody is left to wait
    try:
        function = _load_and_warm_up(function_path)
    except Exception as error:  # whatever an import raises is told to the caller, who raises it
        _tell(control, error=f"{type(error).__name__}: {error}")
        return
    signal.alarm(0)
    gc.collect()
    gc.freeze()  # a collection in a worker would otherwise touch, and so copy, every page
    occupied = _address_space()
    limits = Limits(occupied + int(memory_bytes), float(deadline_s) + 1.0)
    _tell(control, ready=True)
    _Template(control, int(caller), function, limits).run()


def _load_and_warm_up(function_path: str) -> Callable[..., object]:
    """The function, after its module's WARM_UP (argument lists; without one: "1" for each parameter) has been through
    it."""
    module_name, _, name = function_path.partition(":")
    module = importlib.import_module(module_name)
    function: Callable[..., object] = getattr(module, name)
    warm_up: Sequence[Sequence[str]] = getattr(module, "WARM_UP", [["1"] * len(inspect.signature(function).parameters)])
    for arguments in warm_up:
        with contextlib.suppress(Exception):  # only what it imports and caches is wanted here
            function(*arguments)
    return function


def _address_space() -> int:
    """Bytes of address space this process has; 0 where the system does not say (there the limit is not enforced
    either)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def _tell(control: socket.socket, **message: object) -> None:
    with contextlib.suppress(OSError):  # the caller is gone; the next read says so
        control.sendall(json.dumps(message).encode() + b"\n")


class _Template:
    def __init__(self, control: socket.socket, caller: int, function: Callable[..., object], limits: Limits) -> None:
        self._control, self._caller, self._function, self._limits = control, caller, function, limits
        self._pids: dict[int, int] = {}  # of workers that are not reaped yet, by their number
        self._prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def run(self) -> None:
        try:
            self._obey()
        finally:
            for number in self._pids:
                self._kill(number)
            for pid in self._pids.values():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)

    def _obey(self) -> None:
        received, sockets = b"", deque[int]()
        # A process that the caller forked may hold the caller's end open, so that a dead caller need not mean a closed
        # socket.
        while os.getppid() == self._caller:
            self._reap()
            if not select.select([self._control], [], [], _LOOK_S)[0]:
                continue
            try:
                data, new_sockets, _, _ = socket.recv_fds(self._control, 65536, 64)
            except ConnectionResetError:
                return
            if not data:
                return
            sockets.extend(new_sockets)
            *lines, received = (received + data).split(b"\n")
            for line in lines:
                command, number = line.decode().split()
                if command == "kill":
                    self._kill(int(number))
                elif command == "slow":
                    self._slow(int(number))
                elif not self._fork(int(number), sockets.popleft(), sockets):
                    return

    def _fork(self, number: int, channel_fd: int, others: Sequence[int]) -> bool:
        template = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _tell(self._control, error=f"no further process can be forked: {error}")
            return False
        if pid == 0:
            try:
                self._control.close()
                for other in others:
                    os.close(other)
                os.setpgid(0, 0)
                if self._prctl is not None:
                    self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() == template:
                    serve(socket.socket(fileno=channel_fd), self._function, self._limits)
            finally:
                os._exit(1)  # never the template's own clean-up
        with contextlib.suppress(OSError):  # both sides set the group, so that it exists whoever comes first
            os.setpgid(pid, pid)
        os.close(channel_fd)
        self._pids[number] = pid
        return True

    def _kill(self, number: int) -> None:
        """Kills the worker and what it may have started. One that has been reaped is not in the table any more."""
        if pid := self._pids.get(number):
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError):
                    kill(pid, signal.SIGKILL)

    def _slow(self, number: int) -> None:
        if pid := self._pids.get(number):
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + _SLOW_NICE))

    def _reap(self) -> None:
        while self._pids:
            try:
                reaped, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if reaped == 0:
                return
            self._pids = {number: pid for number, pid in self._pids.items() if pid != reaped}


def serve(channel: socket.socket, function: Callable[..., object], limits: Limits) -> None:
    """A worker's whole life: one JSON list of arguments per line in, {"value": ...} or {"error": name of what it
    raised} out.

    First it says {"pid": its number}; `cpu_s` in each line is the CPU time that it has used so far.
    """
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    answer: dict[str, object] = {"pid": os.getpid()}
    channel.sendall(json.dumps(answer | {"cpu_s": time.process_time()}).encode() + b"\n")
    for line in channel.makefile("rb"):
        _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + limits.cpu_s))
        answer = _answer(function, json.loads(line))
        channel.sendall(json.dumps(answer | {"cpu_s": time.process_time()}).encode() + b"\n")


def _limit(what: int, soft: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(function: Callable[..., object], arguments: list[str]) -> dict[str, object]:
    try:
        value = function(*arguments)
        if isinstance(value, bool | int | float):
            return {"value": value}
        name = f"returned {type(value).__name__}, neither bool nor number"
    # what a parser raises on an answer that nobody foresaw, SystemExit too, is this item's outcome
    except BaseException as raised:
        name = type(raised).__name__
    return {"error": name}  # after the clause has let go of the traceback, and of the memory that it holds
