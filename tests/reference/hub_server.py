"""A hub on this machine, for what huggingface_hub asks of one when a folder is uploaded: it keeps repositories in
memory, and speaks HTTP as the real one does (LFS by its basic transfer; without Xet, HF_HUB_DISABLE_XET=1)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml


@dataclass
class Hub:
    """repositories: name -> {file: content}. private: those that are. stored: contents by SHA-256. asked: what for.
    full: refuses commits."""

    token: str = "hf_secret"
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    stored: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    full: bool = False
    url: str = ""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        self.asked.append(f"{method} {path}")
        if method == "PUT":
            self.stored[path.rpartition("/")[2]] = body
            return 200, {}
        if token != f"Bearer {self.token}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/whoami-v2":
            return 200, {"name": "someone", "type": "user", "orgs": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{self.url}/store/{one['oid']}"}}}
                for one in json.loads(body)["objects"]]}
        name = "/".join(path.split("/")[3:5])
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            return 200, {"files": [{"path": one["path"], "shouldIgnore": False, "uploadMode": "lfs" if one["path"].
                                    endswith((".safetensors", ".png")) else "regular"}
                                   for one in json.loads(body)["files"]]}
        if "/commit/" in path:
            return self._commit(name, body)
        return 200, {"id": name, "private": name in self.private, "sha": "0" * 40, "tags": [], "downloads": 0,
                     "siblings": [{"rfilename": file} for file in self.repositories[name]]}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
        answer = {"url": f"{self.url}/{name}", "name": name}
        if name in self.repositories:
            return 409, {**answer, "error": "You already created this model repo"}
        self.repositories[name] = {}
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.private.add(name)
        return 200, answer

    def _validate(self, content: str) -> tuple[int, Any]:
        """As the hub: the front matter is YAML, and its known keys have the right form."""
        _, front, *_ = content.split("---\n")
        values = yaml.safe_load(front)
        wrong = [key for key in ("base_model", "library_name", "pipeline_tag", "license")
                 if key in values and not isinstance(values[key], str)]
        wrong += [key for key in ("tags", "datasets") if not isinstance(values.get(key, []), list)]
        errors = [{"message": f'"{key}" has a wrong form'} for key in wrong]
        return (400 if errors else 200), {"errors": errors, "warnings": []}

    def _commit(self, name: str, body: bytes) -> tuple[int, Any]:
        if self.full:
            return 403, {"error": "Private repository storage limit reached"}
        files = self.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        return 200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.url}/{name}/commit/{'1' * 40}"}


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, values = served.answer(
                self.command, self.path.partition("?")[0], body, self.headers.get("Authorization"))
            content = json.dumps(values).encode()
            self.send_response(code)
            if code >= 400:
                self.send_header("X-Error-Message", values.get("error", "invalid"))
                if code == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
