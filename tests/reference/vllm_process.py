"""A real vLLM server on models/tiny-arith in processes of its own, to be killed and started again.

It is the one that `vllm serve` runs, in a fork of a process that has imported vLLM: a start takes 3 s of a core, and 30
in new interpreters."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from unittest.mock import patch

MODEL = Path(__file__).parents[2] / "models" / "tiny-arith"
CACHE_BYTES = 2**27  # of keys and values, 32,768 tokens: vLLM fills all of it with zeros as it starts
START_TIMEOUT_S = 300.0

multiprocessing.set_forkserver_preload(["tests.reference.vllm_imports"])


class VllmProcess:
    """arguments, variables: beside those that every test wants. The port stays the same over restarts."""

    def __init__(self, log: Path, arguments: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = log
        self._words = [
            "--model", str(MODEL), "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(self._port),
            "--enforce-eager", "--dtype", "float32", "--kv-cache-memory-bytes", str(CACHE_BYTES), *arguments]
        self._variables = {
            "VLLM_NO_USAGE_STATS": "1",
            # The model in the engine's process: one of its own spins while it waits for the next step.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Several servers on the same cores: threads that spin while they wait would hold each other up.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **(variables or {})}
        self._process: ForkServerProcess | None = None

    def start(self) -> None:
        """Without waiting until it answers."""
        self._process = ForkServerContext().Process(target=_serve, args=(self._words, self._variables, self._log))
        # For the imports: the first start also starts the process that is forked.
        with patch.dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1"):
            self._process.start()

    @property
    def is_running(self) -> bool:
        """Whether its process is there; it may not answer yet."""
        return self._process is not None and self._process.is_alive()

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.is_running, f"vLLM ended:\n{self.output()[-2000:]}"
            if self.is_healthy():
                return
            time.sleep(0.25)
        raise AssertionError(f"vLLM was not ready after {START_TIMEOUT_S:g} s:\n{self.output()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, to all of its processes."""
        if self._process is None or not self._process.is_alive():
            return
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # in the moment before it has a group of its own
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join(60)
        while self._is_bound():  # by the engine's process, which is a moment longer in dying
            time.sleep(0.01)

    def _is_bound(self) -> bool:
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self._port)) == 0

    def restore_base(self) -> None:
        """The base's own weights again, where a run left merged ones. For a server in development mode."""
        self.post(
            "/collective_rpc",
            json.dumps({"method": "reload_weights", "kwargs": {"weights_path": str(MODEL)}}).encode())
        self.post("/reset_prefix_cache")

    def output(self) -> str:
        """All that it has written since its first start."""
        return self._log.read_text(errors="replace")

    def post(self, path: str, body: bytes = b"") -> None:
        """A call past the sampler."""
        request = urllib.request.Request(
            self.url + path, data=body, headers={"Content-Type": "application/json"}, method="POST")
        with urllib.request.urlopen(request, timeout=60):
            pass


def _serve(words: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
    """What `vllm serve` does with these words."""
    os.setsid()  # the engine's processes die with it
    os.environ.update(variables)
    with log.open("ab") as output:
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    sys.argv[1:] = words
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
