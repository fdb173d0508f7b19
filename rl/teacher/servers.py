"""A teacher behind running `vllm serve` processes, one or many: the log-probabilities of a completion's tokens as those
of a prompt.

Nothing is brought to the servers: they serve a frozen model. Requests run in parallel over all servers; lost ones are
left out and taken back (rl/generate/servers/replicas.py), and while none answers the run waits, saved. Every rank asks
for its own share.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from rl.config import TeacherSection
from rl.errors import GeneratorError
from rl.generate.servers.background_loop import BackgroundLoop
from rl.generate.servers.client import ServerClient, ServerLostError, ServerRefusedError, read_key
from rl.generate.servers.replicas import ReplicaPool
from rl.generate.servers.start import addresses, pool_logprobs, start_servers
from rl.records import PromptCompletion

NO_PROBABILITY = -9999.0
"""vLLM's stand-in for minus infinity, which JSON does not have."""


@dataclass(slots=True)
class ServedName:
    """The name under which every server has to serve the teacher. Where the configuration gives none, the server at
    first_url decides, by what it lists first, and the others wait for it: the same on every rank, whoever answers
    first."""

    first_url: str
    value: str | None
    known: asyncio.Event = field(default_factory=asyncio.Event)


class TeacherServer:
    """One server, as rl/generate/servers/replicas.py wants it. served: shared by all of them. probes: texts with the
    token ids that the student reads. max_tokens: of a row."""

    def __init__(
        self,
        client: ServerClient,
        config: TeacherSection,
        served: ServedName,
        probes: Sequence[tuple[str, tuple[int, ...]]],
        max_tokens: int,
    ) -> None:
        self.url = client.url
        self.model = ""
        self._client, self._config, self._served, self._probes, self._max_tokens = (
            client, config, served, probes, max_tokens)

    async def prepare(self) -> None:
        await self._client.check_health()
        await self.check()

    async def is_well(self) -> bool:
        try:
            await self._client.check_health()
            return self.model in [model.name for model in await self._client.models()]
        except (ServerLostError, ServerRefusedError):
            return False

    async def check(self) -> None:
        """Does it serve the teacher, with room for the longest row and a token after it, and with the student's token
        ids?"""
        try:
            models = await self._client.models()
        except ServerRefusedError as error:
            self._refuse_key(error)
            raise GeneratorError(
                f"teacher.urls: {self.url}/v1/models: {error}. Expected the address of a `vllm serve` process"
            ) from error
        names = ", ".join(model.name for model in models) or "none"
        if self._served.value is None and self.url == self._served.first_url and models:
            self._served.value = models[0].name
        if self._served.value is not None:
            self._served.known.set()
        elif self.url == self._served.first_url:
            raise GeneratorError(f"teacher.urls: {self.url} serves no model. Remedy: another url")
        await self._served.known.wait()
        asked = self._served.value
        found = [model for model in models if model.name == asked]
        if not found and self._config.served_model is not None:
            raise GeneratorError(
                f"teacher.served_model: {asked}, but {self.url} serves {names}. Remedy: one of those, or another url")
        if not found:
            raise GeneratorError(
                f"teacher.urls: {self.url} serves {names}, but the teacher is {asked}, which {self._served.first_url} "
                "listed first at the start; one model has to score all tokens. Remedy: that model under that name "
                "(--served-model-name) on every server; or teacher.served_model=NAME of one that all of them serve")
        self.model = found[0].name
        # An adapter has the room of its base.
        rooms = [
            model.max_tokens
            for model in models
            if model.name in (self.model, found[0].parent) and model.max_tokens is not None]
        if rooms and rooms[0] < self._max_tokens + 1:
            raise GeneratorError(
                f"teacher.urls: {self.url} takes at most {rooms[0]} tokens (max_model_len), but the longest prompt with"
                f" the longest completion and one token more are {self._max_tokens + 1}. Remedy: start it with "
                f"--max-model-len {self._max_tokens + 1}; or lower data.max_prompt_tokens or "
                "sampling.max_completion_tokens")
        for text, ids in self._probes:
            if (there := await self._client.tokenize(self.model, text)) != ids:
                raise GeneratorError(
                    f"teacher.urls: {self.url} serves {self.model} with another vocabulary than the student's: the text"
                    f" {text[:60]!r} is {list(ids[:8])} in the student and {list(there[:8])} there. Remedy: a teacher "
                    "with the student's tokenizer")

    async def logprobs(self, row: PromptCompletion) -> tuple[float, ...]:
        """-inf where the server computes no probability."""
        try:
            found = await self._client.logprobs(self.model, row, "teacher")
        except ServerRefusedError as error:
            self._refuse_key(error)
            raise
        return tuple(-math.inf if value <= NO_PROBABILITY else value for value in found)

    def _refuse_key(self, error: ServerRefusedError) -> None:
        if error.status in (401, 403):
            raise GeneratorError(
                f"teacher.api_key_env: {self.url} does not accept the API key ({error}). Remedy: "
                "teacher.api_key_env=NAME of an environment variable that holds the server's key") from error


class ServerTeacher:
    """Teacher (rl/teacher/advantages.py) on vLLM servers. The constructor waits until every one of them answers.

    texts: tokenised by the server too, to tell another vocabulary. max_tokens: of the longest row. on_outage,
    on_message: see rl/generate/servers/outages.py; without a listener, what they would be told is logged."""

    def __init__(
        self, config: TeacherSection, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
    ) -> None:
        self.on_outage: Callable[[str], None] | None = None
        self.on_message: Callable[[str], None] | None = None
        self._config, self._max_tokens = config, max_tokens
        self._urls, self._key = addresses(config.urls, "teacher"), read_key(config.api_key_env, "teacher")
        self._probes = [(text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]
        self._served = ServedName(self._urls[0], config.served_model)
        self._clients: list[ServerClient] = []
        self._pool: ReplicaPool[TeacherServer] | None = None
        self._is_closed = False
        self._loop = BackgroundLoop("vllm-teacher")
        try:
            self._loop.run(self._start())
        except BaseException:
            self.close()
            raise
        self.description = f"{len(self._urls)} vLLM server{'s' if len(self._urls) > 1 else ''}, {self._served.value}"

    def logprobs(self, rows: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        assert self._pool is not None
        return self._loop.run(pool_logprobs(self._pool, rows))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.on_outage = self.on_message = None  # a listener may raise, and nothing here is to be left out for that
        self._loop.drop_acts()
        try:
            self._loop.run(self._stop())
        finally:
            self._loop.close()

    async def _start(self) -> None:
        count = self._config.max_requests
        self._clients = [
            ServerClient(url, self._key, self._config.request_timeout_s, 2 * count + 8) for url in self._urls]
        servers = [
            TeacherServer(client, self._config, self._served, self._probes, self._max_tokens)
            for client in self._clients]
        self._pool = ReplicaPool(servers, count, self._say, self._outage, section="teacher", role="teacher")
        await start_servers(
            self._pool,
            self._config.start_timeout_s,
            self._say,
            f"start it with vllm serve {self._config.path} --max-model-len {self._max_tokens + 1}; or another url",
            section="teacher",
            role="teacher")

    async def _stop(self) -> None:
        if self._pool is not None:
            await self._pool.close()
        for client in self._clients:
            await client.close()

    def _say(self, text: str) -> None:
        self._loop.post(lambda: _tell(self.on_message, text))

    def _outage(self, text: str) -> None:
        self._loop.post(lambda: _tell(self.on_outage, text))


def _tell(listener: Callable[[str], None] | None, text: str) -> None:
    if listener is not None:
        listener(text)
    else:
        logging.getLogger(__name__).warning(text)
