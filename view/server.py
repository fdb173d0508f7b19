"""The page and its data over HTTP, for the person at this machine alone.

Bound to 127.0.0.1. Every address begins with a secret, so that other users of the machine see nothing; a Host that is
no name of this machine is refused (DNS rebinding). Files are served from a list, not by path. What models wrote travels
as JSON and is put into the page as text; a Content-Security-Policy forbids scripts and addresses from elsewhere.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import parse_qsl, urlsplit

from rewards.errors import UserError
from view.index import Query
from view.library import Library
from view.sources import ViewError

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "dom.js", "data.js", "charts.js", "table.js", "curves.js", "lists.js", "group.js", "views.js", "app.js")
"""The page's modules, each behind those that it imports."""
LIBRARY_SCRIPT = "uPlot.iife.min.js"
STYLES = ("uPlot.min.css", "style.css")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".json": "application/json"}
HOSTS = ("127.0.0.1", "localhost", "[::1]")
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
MAX_ROWS = 500

Parameters = Mapping[str, str]
ANSWERS: dict[str, Callable[[Library, Parameters], Any]] = {
    "overview": lambda library, given: library.overview(),
    "curves": lambda library, given: library.curves(_text(given, "source")),
    "groups": lambda library, given: library.groups(
        _text(given, "source"), query_of(given), _number(given, "offset", 0),
        min(_number(given, "limit", 100), MAX_ROWS)),
    "group": lambda library, given: library.group(_text(given, "source"), _number(given, "id")),
    "histograms": lambda library, given: library.histograms(_text(given, "source")),
    "configuration": lambda library, given: library.configuration(_text(given, "source")),
    "results": lambda library, given: library.results(_text(given, "source")),
    "glossary": lambda library, given: library.glossary(),
}


class PageServer(ThreadingHTTPServer):
    """url: what to open."""

    daemon_threads = True

    def __init__(self, library: Library, port: int = 0) -> None:
        """port: 0 for a free one. Raises OSError where the port is taken."""
        self.library = library
        self.secret = secrets.token_urlsafe(16)
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has gone away is none."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{self.secret}/"

    def serve(self) -> None:
        """Serve and index, until `shutdown` or Ctrl-C."""
        indexing = threading.Thread(target=self.library.index_until_closed, daemon=True)
        indexing.start()
        try:
            self.serve_forever(poll_interval=0.2)
        finally:
            self.library.close()
            indexing.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in HOSTS:
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", b"this page is served to this machine alone\n")
        address = urlsplit(self.path)
        secret, _, name = address.path.removeprefix("/").partition("/")
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            return self._send(
                HTTPStatus.NOT_FOUND, "text/plain", b"open the address that the command printed, as a whole\n")
        if name.startswith("api/"):
            return self._answer(name.removeprefix("api/"), dict(parse_qsl(address.query)))
        name = name or "index.html"
        if name not in ("index.html", LIBRARY_SCRIPT, *SCRIPTS, *STYLES):
            return self._send(HTTPStatus.NOT_FOUND, "text/plain", b"there is no such file\n")
        self._send(HTTPStatus.OK, TYPES[Path(name).suffix], (STATIC / name).read_bytes())

    def _answer(self, name: str, given: Parameters) -> None:
        status, value = HTTPStatus.OK, None
        try:
            if name not in ANSWERS:
                raise ViewError(f"there is no {name!r}", expected=f"one of {', '.join(ANSWERS)}")
            value = ANSWERS[name](self.server.library, given)
        except (UserError, OSError) as error:
            status, value = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        self._send(status, TYPES[".json"], encoded(value))

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"), ("Content-Security-Policy", POLICY), ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"), ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """The terminal belongs to the person, who has the page."""


def encoded(value: Any) -> bytes:
    """JSON of ASCII alone: a lone surrogate of a completion, which no UTF-8 holds, travels too."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def query_of(given: Parameters) -> Query:
    """Raises ViewError that names the parameter."""
    values: dict[str, Any] = {}
    types = get_type_hints(Query)
    for field in fields(Query):
        if not (text := given.get(field.name, "")):
            continue
        if types[field.name] is str:
            values[field.name] = text
        elif types[field.name] is bool:
            values[field.name] = text == "true"
        else:
            values[field.name] = _number(given, field.name) if "step" in field.name else _real(given, field.name)
    return Query(**values)


def _text(given: Parameters, name: str) -> str:
    if name not in given:
        raise ViewError(f"{name} is missing")
    return given[name]


def _number(given: Parameters, name: str, default: int | None = None) -> int:
    if default is not None and name not in given:
        return default
    text = _text(given, name)
    if not text.lstrip("-").isdecimal() or len(text) > 18:
        raise ViewError(where=name, seen=repr(text[:40]), expected="a whole number")
    return int(text)


def _real(given: Parameters, name: str) -> float:
    try:
        return float(given[name])
    except ValueError:
        raise ViewError(where=name, seen=repr(given[name][:40]), expected="a number") from None
