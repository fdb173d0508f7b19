"""A small OpenAI-compatible server in a thread whose replies are scripted: what a real one does on a bad day."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rewards.judges.questions import Pair


@dataclass(frozen=True)
class Reply:
    """delay_s: before it. seconds_per_byte: it dribbles."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    seconds_per_byte: float = 0.0


@dataclass
class Call:
    """One request: its path, headers, JSON body, and the pair of answers in it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    pair: Pair
    time: float


Script = Callable[[Call, int], Reply]
"""Call and its number, from 0 -> reply."""


class ChatServer:
    def __init__(self, script: Script) -> None:
        self.calls: list[Call] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._script = script
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self.reply_to))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def reply_to(self, call: Call) -> Reply:
        with self._lock:
            number = len(self.calls)
            self.calls.append(call)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        reply = self._script(call, number)
        time.sleep(reply.delay_s)
        with self._lock:
            self._at_once -= 1
        return reply

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, reply_to: Callable[[Call], Reply], *of_the_request: Any) -> None:
        self._reply_to = reply_to
        super().__init__(*of_the_request)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        reply = self._reply_to(
            Call(self.path, dict(self.headers), body, pair_of(body["messages"][-1]["content"]), time.monotonic()))
        try:
            self._send(reply)
        except OSError:  # the client has hung up
            self.close_connection = True

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not reply.seconds_per_byte:
            self.wfile.write(reply.body)
            return
        for byte in reply.body:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(reply.seconds_per_byte)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the name that http.server gives it
        pass


def says(text: str | None, **fields: Any) -> Reply:
    """A chat completion with this text."""
    return Reply(
        json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode(), **fields)


def pair_of(prompt: str) -> Pair:
    """The two answers in the default prompt; empty ones for another prompt."""
    found = re.search(r"<first>\n(.*)\n</first>\n\n<second>\n(.*)\n</second>", prompt)
    return (found.group(1), found.group(2)) if found else ("", "")


def same(equal: Callable[[str, str], bool], **fields: Any) -> Script:
    """A judge that says Yes where equal(first, second)."""
    return lambda call, number: says("Yes" if equal(*call.pair) else "No", **fields)


def together(number: int) -> Script:
    """A judge that says No, to `number` calls at once: each waits for the others, and hangs up if they do not come."""
    barrier = threading.Barrier(number, timeout=30)

    def script(call: Call, _: int) -> Reply:
        barrier.wait()
        return says("No")

    return script


@contextmanager
def unused_url() -> Iterator[str]:
    """The URL of a server that has gone away."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = server.server_address[1]
    server.server_close()
    yield f"http://127.0.0.1:{port}/v1"
