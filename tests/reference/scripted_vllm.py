"""A small server in a thread that answers as `vllm serve` does, with scripted accidents: what a real one does on a bad
day.

Its "model" samples from the seed alone: a completion of seed s is the tokens of `tokens_of(s)`, each with
log-probability LOGPROB + the number of the version that it has (0 before the first), so that a completion by other
weights is told.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOGPROB = -9.0
STOP = 2


def tokens_of(seed: int) -> list[int]:
    return [3 + (seed + i) % 50 for i in range(1 + seed % 5)] + [STOP]


@dataclass(frozen=True)
class Accident:
    """Instead of the answer to a completion, where it has a status or a body. hang_s: no answer for so long. hang_up:
    none at all."""

    status: int = 200
    body: bytes = b""
    hang_s: float = 0.0
    hang_up: bool = False


Script = Callable[[dict[str, Any], int], Accident | None]
"""(body of a completion request, its number from 0) -> an accident, or None for the proper answer."""


def nothing(body: dict[str, Any], number: int) -> None:
    return None


class _ManyAtOnce(ThreadingHTTPServer):
    request_queue_size = 512  # http.server's 5 refuses connections that come together
    daemon_threads = True


@dataclass
class ScriptedVllm:
    """models: name -> max_model_len. key: the API key that it wants. has_lora, has_dev_mode: whether these endpoints
    are there. reports_raw: log-probabilities before the temperature. balanced: another server answers at the same
    address, in turn. tells_start: a server of one API process does. likeliest: log-probabilities of further tokens at
    each position of a prompt."""

    script: Script = nothing
    models: dict[str, int] = field(default_factory=lambda: {"tiny": 256})
    version: str = "0.32.0"
    key: str | None = None
    has_lora: bool = True
    has_dev_mode: bool = True
    is_healthy: bool = True
    answers_as_page: bool = False
    reports_raw: bool = True
    balanced: bool = False
    tells_start: bool = True
    likeliest: tuple[float, ...] = ()
    delay_s: float = 0.0
    adapters: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    process: int = 1
    bodies: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = 0
        self._server = _ManyAtOnce(("127.0.0.1", 0), type("Handler", (_Handler,), {"scripted": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ScriptedVllm:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def start_anew(self) -> None:
        """What a restart leaves: a new process with the weights that it was started with and no adapter."""
        self.process += 1
        self.adapters, self.weights = {}, ""

    def completions(self) -> list[dict[str, Any]]:
        """The bodies of the requests for samples, in the order of arrival, without those that find out about
        log-probabilities."""
        return [body for body in self.bodies if "seed" in body and body["temperature"] != 2.0]

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        route = path.split("?")[0]
        if route == "/health":
            return (200, "") if self.is_healthy else (503, "")
        if self.answers_as_page:
            return 200, "<html>welcome</html>"
        if route == "/version":
            return 200, {"version": self.version}
        if route == "/metrics":
            process = self.process + (self.calls.count("/metrics") % 2 if self.balanced else 0)
            return 200, f"# HELP\nprocess_start_time_seconds {process}\n" if self.tells_start else "# HELP\n"
        if route == "/v1/models":
            cards = [{"id": name, "parent": None, "max_model_len": room} for name, room in self.models.items()]
            return 200, {"data": [*cards, *({"id": name, "parent": "tiny"} for name in self.adapters)]}
        if route == "/v1/load_lora_adapter" and self.has_lora:
            if not Path(body["lora_path"]).is_dir():
                return 404, {"error": {"message": f"No adapter found for {body['lora_path']}"}}
            self.adapters[body["lora_name"]] = body["lora_path"]
            return 200, "Success"
        if route == "/v1/unload_lora_adapter" and self.has_lora:
            return (
                (200, "Success")
                if self.adapters.pop(body["lora_name"], None)
                else (404, {"error": {"message": "cannot be found"}}))
        if route == "/collective_rpc" and self.has_dev_mode:
            if not Path(body["kwargs"]["weights_path"]).is_dir():
                return 500, {"error": {"message": "Worker failed with error 'no such folder'"}}
            self.weights = body["kwargs"]["weights_path"]
            return 200, {"results": [None]}
        if route == "/reset_prefix_cache" and self.has_dev_mode:
            return 200, {"success": True}
        return 404, {"detail": "Not Found"}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in (*self.models, *self.adapters):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        path = self.adapters.get(body["model"], self.weights)
        logprob = LOGPROB + (int(path[-6:]) if path else 0)
        if "prompt_logprobs" in body:
            others = {str(-1 - i): {"logprob": other} for i, other in enumerate(self.likeliest)}
            prompt = [None, *({str(token): {"logprob": logprob}} | others for token in body["prompt"][1:])]
            return 200, {"choices": [{"prompt_logprobs": prompt}]}
        tokens = tokens_of(body["seed"])
        if body["temperature"] == 2.0 and not self.reports_raw:
            logprob += 1
        choice = {"token_ids": tokens, "logprobs": {"token_logprobs": [logprob] * len(tokens)}, "finish_reason": "stop"}
        return 200, {"choices": [choice]}

    def arrives(self, body: dict[str, Any]) -> int:
        """Count a request for a completion in; returns its number among the samples."""
        with self._lock:
            self.bodies.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            return len(self.completions()) - 1

    def leaves(self) -> None:
        with self._lock:
            self._at_once -= 1


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    scripted: ScriptedVllm

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}"))

    def _answer(self, body: dict[str, Any]) -> None:
        scripted, authorization = self.scripted, self.headers["Authorization"]
        scripted.calls.append(self.path)
        has_key = scripted.key is None or authorization == f"Bearer {scripted.key}"
        if self.path.startswith("/v1") and not has_key:
            self._send(401, json.dumps({"error": f"Unauthorized: {authorization}"}).encode())
        elif self.path == "/v1/completions":
            self._complete(body)
        else:
            status, reply = scripted.reply(self.path, body)
            self._send(status, (reply if isinstance(reply, str) else json.dumps(reply)).encode())

    def _complete(self, body: dict[str, Any]) -> None:
        scripted, number = self.scripted, self.scripted.arrives(body)
        is_sample = "seed" in body and body["temperature"] != 2.0
        accident = scripted.script(body, number) if is_sample else None
        time.sleep(accident.hang_s if accident else scripted.delay_s)
        status, reply = scripted.complete(body)
        scripted.leaves()
        if accident is not None and accident.hang_up:
            self.close_connection = True
        elif accident is not None and (accident.status != 200 or accident.body):
            self._send(accident.status, accident.body)
        else:
            self._send(status, json.dumps(reply).encode())

    def _send(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has hung up
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the name that http.server gives it
        pass
