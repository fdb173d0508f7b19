"""One `vllm serve` process that samples from the policy: is it the right one, has it the present version, and what it
sampled.

adapter: each version is a LoRA adapter under a name of its own, so that a server that was started anew does not know
the name. merge: vLLM's workers read the merged checkpoint into the model that they serve. A server that was started
anew then serves its old weights under its old name; it is told by its process, before and after each completion.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from packaging.version import InvalidVersion, Version

from rewards.errors import named
from rl.errors import GeneratorError
from rl.generate.base_probe import BaseProbe
from rl.generate.completions import Completion
from rl.generate.generator_plan import LogprobsMode
from rl.generate.protocol import SamplingParameters
from rl.generate.servers.checks import check_room, refuse_key, served_models
from rl.generate.servers.client import ServerClient, ServerLostError, ServerRefusedError
from rl.generate.servers.head_probe import rounded_to_bfloat16
from rl.generate.vllm_versions import VLLM_VERSIONS, check_float32_head
from rl.records import PromptCompletion

NUM_PROBE_TOKENS = 16
NUM_LIKELIEST = 5  # at each of them, for the precision of the logits
NUM_ASKED_FOR_IDENTITY = 6
PROBE_TEMPERATURE = 2.0  # the highest that the server takes
PROBE_BOUND = 0.2
"""Nats, mean over the probe's tokens. Raw log-probabilities of generated tokens are those of the same tokens in a
prompt (to 0.07 in bfloat16); processed ones are those of a flatter distribution."""


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """One policy version. name: of no other version and no other run. path: a folder, an adapter or a merged
    checkpoint."""

    name: str
    path: str


@dataclass(slots=True)
class Wanted:
    """What all servers of a run must be. model: None takes the one that they list first. max_tokens: of a prompt with
    its completion. launch: the command that starts a right one. probe_token: any token id. base_probe: None: no
    comparison. files: the present version, None before the first. temperatures: those that the run has sampled at so
    far. float32_head: whether logits have to be computed in float32."""

    way: Literal["adapter", "merge"]
    model: str | None
    max_tokens: int
    logprobs_mode: LogprobsMode
    launch: str
    probe_token: int
    base_probe: BaseProbe | None = None
    files: PolicyFiles | None = None
    temperatures: set[float] = field(default_factory=set)
    float32_head: bool = False


@dataclass(frozen=True, slots=True)
class ReceivedCompletion:
    """A completion, by which process it was (merge only), and when it was there (the event loop's clock)."""

    completion: Completion
    server: PolicyServer
    process: str | None
    received_s: float


class PolicyServer:
    """Raises ServerLostError where it does not answer, ServerRefusedError or GeneratorError where no later call would
    do better."""

    def __init__(self, client: ServerClient, wanted: Wanted) -> None:
        self.url = client.url
        self.version = ""
        self.logprobs_mode: LogprobsMode | None = None
        self._client = client
        self._wanted = wanted
        self._model = ""
        self._files: PolicyFiles | None = None  # the version that it has
        self._adapters: set[str] = set()
        self._process: str | None = None  # the one that was given that version by merge
        self._asked_process = asyncio.Lock()
        self._seen_process: tuple[float, str] = (-1.0, "")  # when it was asked, and what it said
        self._bringing = asyncio.Lock()
        # On a CPU with LoRA enabled, vLLM's engine (0.32) ends when a prompt's log-probabilities are asked for beside
        # other requests.
        self._one_by_one = asyncio.Lock()

    async def prepare(self) -> None:
        await self._client.check_health()
        # A process that is the same, and was slow or out of reach, needs no check.
        if self._files is None or not await self.is_well():
            await self.check()
        await self.bring()

    async def is_well(self) -> bool:
        try:
            await self._client.check_health()
            if self._wanted.way == "adapter":
                return self._files is None or self._files.name in [model.name for model in await self._client.models()]
            return self._process is None or await self._client.process_identity() == self._process
        except (ServerLostError, ServerRefusedError):
            return False

    async def check(self) -> None:
        """Is it vLLM, of a version that we know, and does it serve the model, with room for the longest completion?"""
        await self._check_version()
        models = await served_models(self._client)
        bases = [model for model in models if model.parent is None]
        found = [model for model in bases if self._wanted.model in (None, model.name)]
        if not found:
            names = ", ".join(model.name for model in bases) or "none"
            key = "generator.served_model"
            raise GeneratorError(
                f"{self._wanted.model}, but {self.url} serves {names}", where=key,
                remedy=f"{key}={bases[0].name if bases else 'NAME'}, or another url")
        self._model = found[0].name
        needed = self._wanted.max_tokens + 1
        check_room(self._client, found[0].max_tokens, needed, self._wanted.launch)
        await self._check_is_one()
        await self._check_base()
        await self._check_logprobs(min(NUM_PROBE_TOKENS, needed - 3))

    async def bring(self) -> None:
        """Give it the present version, where it has another."""
        async with self._bringing:
            if self._files == self._wanted.files and await self.is_well():
                return
            while (files := self._wanted.files) is not None:
                # afterwards a 500 is about the files, not about an engine that died before
                await self._client.check_health()
                await (self._load_adapter(files) if self._wanted.way == "adapter" else self._load_merged(files))
                self._files = files
                if files == self._wanted.files:
                    return

    def assume(self, process: str | None) -> None:
        """Another rank brought the present version, to this process."""
        self._files, self._process = self._wanted.files, process
        if self._files is not None and self._wanted.way == "adapter":
            self._adapters.add(self._files.name)

    @property
    def process(self) -> str | None:
        return self._process

    async def leave(self) -> None:
        """Take off what the run has put there and can take off: the adapters. Merged weights stay until others are
        loaded."""
        for name in self._adapters:
            with suppress(ServerLostError, ServerRefusedError):
                await self._client.unload_adapter(name)

    async def complete(
        self, prompt: tuple[int, ...], seed: int, parameters: SamplingParameters, stop_token_ids: tuple[int, ...]
    ) -> ReceivedCompletion:
        files, process = self._files, self._process
        assert files is not None
        try:
            completion = await self._client.complete(
                self._served_name(), prompt, seed, parameters, stop_token_ids, self._cache_salt(files, process))
        except ServerRefusedError as error:
            raise self._or_lost(error) from error
        return ReceivedCompletion(completion, self, process, asyncio.get_running_loop().time())

    async def logprobs(self, pair: PromptCompletion) -> tuple[float, ...]:
        files, process = self._files, self._process
        assert files is not None
        try:
            async with self._one_by_one:
                logprobs = await self._client.logprobs(self._served_name(), pair, self._cache_salt(files, process))
        except ServerRefusedError as error:
            raise self._or_lost(error) from error
        if process is not None and await self._client.process_identity() != process:
            raise ServerLostError("it was started anew and has other weights")
        return logprobs

    async def confirm(self, process: str | None, received_s: float) -> bool:
        """Whether the process that had the version still ran at that time, as far as can be told."""
        if process is None:
            return True
        async with self._asked_process:
            asked_s, seen = self._seen_process
            if asked_s < received_s:  # otherwise another completion's question answers this one too
                asked_s = asyncio.get_running_loop().time()
                try:
                    seen = await self._client.process_identity()
                except (ServerLostError, ServerRefusedError):
                    return False
                self._seen_process = asked_s, seen
        return seen == process

    async def _load_adapter(self, files: PolicyFiles) -> None:
        try:
            await self._client.load_adapter(files.name, files.path)
        except (ServerLostError, ServerRefusedError) as error:
            if isinstance(error, ServerLostError) and error.status != 500:
                raise
            words = str(error)
            # By another rank, or by a call whose answer was lost.
            if "has already been loaded" not in words:
                raise self._adapter_refusal(files, error, words) from error
        self._adapters.add(files.name)
        for name in self._adapters - {files.name}:
            with suppress(ServerRefusedError):
                await self._client.unload_adapter(name)
            self._adapters.discard(name)

    def _adapter_refusal(
        self, files: PolicyFiles, error: ServerLostError | ServerRefusedError, words: str
    ) -> GeneratorError:
        if isinstance(error, ServerRefusedError):
            refuse_key(self._client, error)
        if error.status == 404 and "No adapter found" in words:
            return GeneratorError(
                f"the server {self.url} cannot see {files.path} ({words})", where="generator.exchange_dir",
                remedy="generator.exchange_dir=DIR, a folder that this machine and the server's see under the same "
                "path")
        if error.status in (404, 405):
            return GeneratorError(
                f"adapter, but {self.url} does not load adapters while it runs ({words})", where="generator.sync",
                remedy=f"start it with {self._wanted.launch}; or generator.sync=merge")
        return GeneratorError(
            f"adapter, but {self.url} cannot load the adapter in {files.path} ({words})", where="generator.sync",
            remedy=f"start it as the adapter needs it: {self._wanted.launch}; or generator.sync=merge")

    async def _load_merged(self, files: PolicyFiles) -> None:
        try:
            process = await self._client.process_identity()
            await self._client.reload_weights(files.path)
            await self._client.reset_prefix_cache()
        except ServerRefusedError as error:
            refuse_key(self._client, error)
            raise GeneratorError(
                f"merge, but {self.url} does not load weights while it runs ({error})", where="generator.sync",
                remedy=f"start it with {self._wanted.launch}; or generator.sync=adapter") from error
        except ServerLostError as error:
            if error.status != 500:
                raise
            raise GeneratorError(
                f"merge, but {self.url} could not load the weights in {files.path} ({error}). If it cannot see that "
                "folder: generator.exchange_dir=DIR, one that both machines see under the same path; it may also serve "
                "another model than model.path. A failed load ends vLLM's engine: start the server again: "
                f"{self._wanted.launch}", where="generator.sync") from error
        if await self._client.process_identity() != process:
            raise ServerLostError("it was started anew while it loaded weights")
        self._process = process

    async def _check_version(self) -> None:
        try:
            self.version = await self._client.version()
        except ServerRefusedError as error:
            refuse_key(self._client, error)
            raise GeneratorError(
                f"{self.url} is no vLLM server ({error}). Expected the address of a `vllm serve` process without a "
                "path, such as http://localhost:8000", where="generator.urls") from error
        lowest, above = VLLM_VERSIONS
        try:
            is_known = Version(lowest) <= Version(Version(self.version).base_version) < Version(above)
        except InvalidVersion:
            is_known = False
        if not is_known:
            raise GeneratorError(
                f"{self.url} runs vLLM {self.version}; this version of otherhalf works with >={lowest},<{above}",
                where="generator.urls", remedy="start it with a vLLM of that range")

    async def _check_is_one(self) -> None:
        """Is it one process that answers? A version is brought by one call: of several API processes one alone would
        know a new adapter; and a server that was started anew could not be told from another one."""
        # Together: each over a connection of its own, which may end at another process.
        asked = (self._client.process_identity() for _ in range(NUM_ASKED_FOR_IDENTITY))
        try:
            found = set(await asyncio.gather(*asked))
        except ServerRefusedError as error:
            raise GeneratorError(
                f"{self.url} has several API processes ({error}), of which a version of the policy would reach one",
                where="generator.urls",
                remedy="start it with --api-server-count 1 (with --data-parallel-size too)") from error
        if len(found) > 1:
            raise GeneratorError(
                f"several servers answer at {self.url}, and a version of the policy would reach one of them",
                where="generator.urls", remedy="the servers' own addresses in place of the balancer's")

    async def _check_logprobs(self, num_tokens: int) -> None:
        """Which log-probabilities it reports, by a few tokens at another temperature than 1."""
        prompt = (self._wanted.probe_token,) * 2
        sampled = await self._client.complete(
            self._model, prompt, 0, SamplingParameters(PROBE_TEMPERATURE, 1.0, 0, max(1, num_tokens)), (), "probe")
        raw = await self._client.logprobs(self._model, (prompt, sampled.token_ids), "probe")
        distance = sum(abs(a - b) for a, b in zip(sampled.logprobs, raw, strict=True)) / len(raw)
        if self._wanted.float32_head:
            await self._check_head((*prompt, *sampled.token_ids))
        self.logprobs_mode = "raw_logprobs" if distance < PROBE_BOUND else "processed_logprobs"
        if self._wanted.logprobs_mode == "raw_logprobs" and self.logprobs_mode == "processed_logprobs":
            raise GeneratorError(
                f"{self.url} reports log-probabilities after top_p and top_k; with sampling.top_p < 1 or "
                "sampling.top_k the trainer needs those before", where="generator.urls",
                remedy="start it with --logprobs-mode raw_logprobs")
        # One that comes back with another mode is left out, rather than ending the run at its next batch.
        for temperature in self._wanted.temperatures:
            self.refuse_temperature(temperature)

    async def _check_head(self, text: tuple[int, ...]) -> None:
        """Does it compute its logits in float32?"""
        check_float32_head(self.version, f"at {self.url}")
        found = await self._client.prompt_logprobs(self._model, text, NUM_LIKELIEST, "probe")
        if rounded_to_bfloat16([list(of_token.values()) for of_token in found]):
            raise GeneratorError(
                f"float32, but the logits of {self.url} are rounded to bfloat16", where=named("model.head_dtype"),
                remedy=f"start it with {self._wanted.launch}; or {named('model.head_dtype', 'null')}")

    async def _check_base(self) -> None:
        """Is what it serves under the right name the model that is trained?"""
        probe = self._wanted.base_probe
        if probe is None or self._wanted.way == "merge":
            return
        try:
            difference = probe.difference(await self._client.logprobs(self._model, probe.pair, "probe"))
        except ServerRefusedError as error:
            if error.status != 400:
                raise
            difference = f"it refuses a text of the trainer's tokens ({error})"  # ids that its vocabulary does not have
        if difference is not None:
            raise GeneratorError(
                f"{self.url} serves under the name {self._model} another model than model.path, or the same one in "
                f"another precision: {difference}", where="generator.urls",
                remedy=f"start it with {self._wanted.launch} and no other --quantization; or the model.path that it "
                "serves; or, if the difference is understood, a higher generator.max_mismatch")

    def refuse_temperature(self, temperature: float) -> None:
        """Raises GeneratorError where its log-probabilities are not those at this temperature."""
        modes = self.logprobs_mode, self._wanted.logprobs_mode
        if temperature != 1.0 and modes == ("raw_logprobs", "processed_logprobs"):
            raise GeneratorError(
                f"{self.url} reports log-probabilities before the temperature, and is to sample at temperature "
                f"{temperature:g}", where="generator.urls",
                remedy="start it with --logprobs-mode processed_logprobs")

    def _served_name(self) -> str:
        assert self._files is not None
        return self._files.name if self._wanted.way == "adapter" else self._model

    def _cache_salt(self, files: PolicyFiles, process: str | None) -> str:
        """No version reads the cache of another one, and no process that was given a version what it had cached
        before."""
        return f"{files.name} {process}"

    def _or_lost(self, error: ServerRefusedError) -> ServerLostError | ServerRefusedError:
        """A server that no longer knows its model was started anew; one that no longer knows the key has its own
        message."""
        refuse_key(self._client, error)
        if error.status == 404:
            return ServerLostError(f"it does not know the policy's version any more: {error}")
        return error
