"""What the sampler and the teacher behind servers do alike: reach the servers, tell of outages, stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic

from rl.config import GeneratorSection, TeacherSection
from rl.generate.servers.background_loop import BackgroundLoop
from rl.generate.servers.client import ServerClient, ServerRole, read_key
from rl.generate.servers.replicas import ReplicaPool
from rl.generate.servers.start import C, addresses, start_servers


class ServerService(Generic[C]):
    """on_outage, on_message: see rl/generate/servers/outages.py; without a listener, what they would be told is logged.

    max_requests: under way on one server at the same time."""

    _pool: ReplicaPool[C]  # from `_open` on, and only with clients

    def __init__(self, role: ServerRole, config: GeneratorSection | TeacherSection, max_requests: int) -> None:
        self.on_outage: Callable[[str], None] | None = None
        self.on_message: Callable[[str], None] | None = None
        self._role, self._config, self._max_requests = role, config, max_requests
        self._urls, self._key = addresses(config.urls, role), read_key(config.api_key_env, role)
        self._clients: list[ServerClient] = []
        self._is_closed = False
        self._logged = ""

    def close(self) -> None:
        """Stop what is under way; safe to call twice."""
        if not self._is_closed:
            self._is_closed = True
            self.on_outage = self.on_message = None  # a listener may raise, and nothing is to be left out for that
            self._shut()

    def _open(self, make_server: Callable[[ServerClient], C], start: str) -> None:
        """Wait until every server answers. start: the command that starts one, for messages."""
        self._loop = BackgroundLoop(f"vllm-{self._role.name}")
        try:
            self._loop.run(self._start(make_server, start))
        except BaseException:
            self.close()
            raise

    @property
    def _servers_in_words(self) -> str:
        return f"{len(self._urls)} vLLM server{'s' if len(self._urls) > 1 else ''}"

    async def _start(self, make_server: Callable[[ServerClient], C], start: str) -> None:
        num_connections = 2 * self._max_requests + 8
        clients = [
            ServerClient(url, self._key, self._config.request_timeout_s, num_connections, self._role)
            for url in self._urls]
        servers = [make_server(client) for client in clients]
        self._pool = ReplicaPool(servers, self._max_requests, self._say, self._outage, self._role)
        self._clients = clients
        await start_servers(
            self._pool, self._config.start_timeout_s, self._say, f"start it with {start}; or another url")

    def _shut(self) -> None:
        self._loop.drop_acts()  # what is under way may have ended by itself before it was told to
        try:
            self._loop.run(self._stop())
        finally:
            self._loop.close()

    async def _stop(self) -> None:
        if self._clients:
            await self._pool.close()
            await self._leave()
            await asyncio.gather(*(client.close() for client in self._clients))

    async def _leave(self) -> None:
        """What is to be taken off the servers at the end; nothing here."""

    def _say(self, text: str) -> None:
        self._loop.post(lambda: self._tell(self.on_message, text))

    def _outage(self, text: str) -> None:
        self._loop.post(lambda: self._tell(self.on_outage, text))

    def _tell(self, listener: Callable[[str], None] | None, text: str) -> None:
        if listener is not None:
            listener(text)
        elif text != self._logged:
            self._logged = text
            logging.getLogger(__name__).warning(text)
