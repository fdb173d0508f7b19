"""The caller's ends: of the template process (rewards/processes/template.py) and of the workers that it forks.

A handle belongs to the process that made it. After a fork the child forgets the handles (closes its copies and nothing
else).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rewards.processes.template import START_S

_ROOT = str(Path(__file__).resolve().parent.parent.parent)
_COMMAND_S = 30.0  # the template reads its commands at once unless it is stopped or the machine has come to a halt


class Worker:
    """One forked process. Of what it is doing: `item`, and when it began and must end, on the monotonic clock."""

    def __init__(self, number: int, channel: socket.socket) -> None:
        self.number, self.channel = number, channel
        self.item = -1
        self.started_s = self.deadline_s = 0.0
        self.is_slow = False
        self.num_items = 0
        self._pid: int | None = None
        self._cpu_s = 0.0  # what it had used before this item
        self._received = b""

    def send(self, arguments: Sequence[str]) -> None:
        """Raises OSError if the process is gone or does not read within the channel's time-out."""
        self.channel.sendall(json.dumps(list(arguments)).encode() + b"\n")

    def receive(self) -> dict[str, object] | None:
        """The answer, {} if there is none yet, None if the process has ended. Call it when the channel is readable."""
        try:
            data = self.channel.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        answer: dict[str, object] = {}
        for line in lines:
            answer = json.loads(line)
            self._cpu_s = float(cast(float, answer["cpu_s"]))
            if "pid" in answer:
                self._pid, answer = cast(int, answer["pid"]), {}
        return answer

    def has_spent(self, seconds: float) -> bool:
        """Whether the item has had this much CPU time, or as much time in which it wanted no CPU (it sleeps).

        Time in which other processes had the core does not count, so that a busy machine does not make an item look
        slow. Where the system does not tell (there is no /proc), time is wall-clock time.
        """
        if time.monotonic() - self.started_s < seconds:
            return False
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return self._pid is not None  # a process that has not begun has spent nothing
        state, user, system = fields[0], fields[11], fields[12]
        return state != "R" or (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") - self._cpu_s >= seconds


class Template:
    """The process that imports `function` once and forks workers. Raises RuntimeError if it does not come up."""

    def __init__(self, function: str, *, deadline_s: float, memory_bytes: int) -> None:
        self._function, self._deadline_s, self._last_number = function, deadline_s, 0
        self.control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-P", "-c", "from rewards.processes.template import run_template; run_template()",
                    function, str(theirs.fileno()), str(os.getpid()), str(memory_bytes), str(deadline_s)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is the caller's to handle
                env={
                    **os.environ,
                    "PYTHONPATH": _python_path(),
                    "PYTHONHASHSEED": "0",  # what iterates over sets must not answer differently in another run
                    # One thread: a fork copies the calling thread only, and a library's locks as they are.
                    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")})
        try:
            self.control.settimeout(START_S)
            message = self.read_message()
        except BaseException as error:
            self._process.kill()
            self.close()
            if isinstance(error, TimeoutError):
                raise RuntimeError(f"the workers' template for {function} was not ready after {START_S} s") from error
            raise
        if message is None or "error" in message:
            self.close()
            reason = message["error"] if message else f"it ended with exit code {self._process.returncode}"
            raise RuntimeError(f"the workers for {function} did not start: {reason}; "
                               f"try: {sys.executable} -c 'import {function.split(':')[0]}'")
        self.control.settimeout(_COMMAND_S)

    def read_message(self) -> dict[str, object] | None:
        """{"ready": true}, {"error": reason}, or None if the process has ended. Messages are short: one read has one
        whole."""
        try:
            data = self.control.recv(65536)
        except ConnectionResetError:
            data = b""
        message: dict[str, object] | None = json.loads(data) if data else None
        return message

    def fork(self) -> Worker:
        """A new worker; it need not run yet, what is sent to it waits. Raises OSError if the template is gone."""
        self._last_number += 1
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.control, [f"fork {self._last_number}\n".encode()], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.settimeout(self._deadline_s)
        return Worker(self._last_number, ours)

    def slow(self, worker: Worker) -> None:
        """Lowers the worker's priority, for good: only a privileged process could raise it again."""
        self._command(f"slow {worker.number}\n")

    def kill(self, worker: Worker) -> None:
        """Ends the worker, whatever it does. Does not wait for it."""
        worker.channel.close()
        self._command(f"kill {worker.number}\n")

    def close(self) -> None:
        """Ends the template and all its workers, and waits for it."""
        self.control.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:  # it is stopped or still importing; its workers end with it
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """In a fork of the caller: lets go of what belongs to the parent."""
        self.control.close()
        self._process.returncode = 0  # not this process's child: never to be waited for, nor warned about

    def _command(self, line: str) -> None:
        # a template that is gone has taken its workers along, and its closed socket tells
        with contextlib.suppress(OSError):
            self.control.sendall(line.encode())


def _python_path() -> str:
    """What the caller can import, the template can. This package's folder comes last, lest its neighbours hide a
    standard module."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(
        dict.fromkeys([*(entry or os.getcwd() for entry in sys.path), *filter(None, inherited), _ROOT]))
