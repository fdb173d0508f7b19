"""A teacher behind running `vllm serve` processes, one or many: the log-probabilities of a completion's tokens as those
of a prompt.

Nothing is brought to the servers: they serve a frozen model. Requests run in parallel over all servers; lost ones are
left out and taken back (rl/generate/servers/replicas.py), and while none answers the run waits, saved. Every rank asks
for its own share.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from rl.config import TeacherSection
from rl.errors import GeneratorError
from rl.generate.servers.checks import check_room, refuse_key, served_models
from rl.generate.servers.client import TEACHER, ServedModel, ServerClient, ServerLostError, ServerRefusedError
from rl.generate.servers.service import ServerService
from rl.generate.servers.start import pool_logprobs
from rl.records import PromptCompletion

NO_PROBABILITY = -9999.0
"""vLLM's stand-in for minus infinity, which JSON does not have."""


@dataclass(slots=True)
class ServedName:
    """The name under which every server has to serve the teacher. configured: what the configuration says. Where it
    says nothing, the server at first_url decides, by what it lists first, and the others wait for it: one name on every
    rank, whoever answers first. known: once the name is."""

    configured: str | None
    first_url: str
    value: str | None = None
    known: asyncio.Event = field(default_factory=asyncio.Event)

    async def find(self, url: str, models: Sequence[ServedModel]) -> ServedModel:
        """What of the models that the server at `url` lists is the teacher. Raises GeneratorError where none is."""
        self.value = self.value or self.configured
        if self.value is None and url == self.first_url:
            if not models:
                raise GeneratorError(f"{url} serves no model", where="teacher.urls", remedy="another url")
            self.value = models[0].name
        if self.value is not None:
            self.known.set()
        await self.known.wait()
        for model in models:
            if model.name == self.value:
                return model
        names = ", ".join(model.name for model in models) or "none"
        if self.configured is not None:
            raise GeneratorError(
                f"{self.value}, but {url} serves {names}", where="teacher.served_model",
                remedy="one of those, or another url")
        raise GeneratorError(
            f"{url} serves {names}, but the teacher is {self.value}, which {self.first_url} listed first at the start; "
            "one model has to score all tokens", where="teacher.urls",
            remedy="that model under that name (--served-model-name) on every server; or teacher.served_model=NAME of "
            "one that all of them serve")


class TeacherServer:
    """One server, as rl/generate/servers/replicas.py wants it. served: shared by all of them. probes: texts with the
    token ids that the student reads. max_tokens: of a prompt with its completion."""

    def __init__(
        self, client: ServerClient, served: ServedName, probes: Sequence[tuple[str, tuple[int, ...]]], max_tokens: int
    ) -> None:
        self.url = client.url
        self.model = ""
        self._client, self._served, self._probes, self._max_tokens = client, served, probes, max_tokens

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
        """Does it serve the teacher, with room for the longest completion and a token after it, and with the student's
        token ids?"""
        models = await served_models(self._client)
        found = await self._served.find(self.url, models)
        self.model = found.name
        # An adapter has the room of its base.
        rooms = [
            model.max_tokens for model in models
            if model.name in (self.model, found.parent) and model.max_tokens is not None]
        needed = self._max_tokens + 1
        check_room(self._client, rooms[0] if rooms else None, needed, f"--max-model-len {needed}")
        for text, ids in self._probes:
            if (there := await self._client.tokenize(self.model, text)) != ids:
                raise GeneratorError(
                    f"{self.url} serves {self.model} with another vocabulary than the student's: the text "
                    f"{text[:60]!r} is {list(ids[:8])} in the student and {list(there[:8])} there",
                    where="teacher.urls", remedy="a teacher with the student's tokenizer")

    async def logprobs(self, pair: PromptCompletion) -> tuple[float, ...]:
        """-inf where the server computes no probability."""
        try:
            found = await self._client.logprobs(self.model, pair, "teacher")
        except ServerRefusedError as error:
            refuse_key(self._client, error)
            raise
        return tuple(-math.inf if value <= NO_PROBABILITY else value for value in found)


class ServerTeacher(ServerService[TeacherServer]):
    """Teacher (rl/teacher/advantages.py) on vLLM servers. The constructor waits until every one of them answers.

    texts: tokenised by the server too, to tell another vocabulary. max_tokens: of the longest prompt with the longest
    completion."""

    def __init__(
        self, config: TeacherSection, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
    ) -> None:
        super().__init__(TEACHER, config, config.max_requests)
        probes = [(text, tuple(tokenizer(text, add_special_tokens=False)["input_ids"])) for text in texts]
        served = ServedName(config.served_model, self._urls[0])
        self._open(
            lambda client: TeacherServer(client, served, probes, max_tokens),
            f"vllm serve {config.path} --max-model-len {max_tokens + 1}")
        self.description = f"{self._servers_in_words}, {served.value}"

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        return self._loop.run(pool_logprobs(self._pool, pairs))
