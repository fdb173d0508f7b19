"""A sampler whose weights do not change: what evaluation, answering and rejection sampling sample from. No trainer's
copy stands beside a vLLM engine.

In float32 an adapter is merged from the pristine base, as in training: into the embedded sampler's weights, which
nobody else needs, or into a checkpoint in `scratch` that vLLM then loads, which decodes faster than with an adapter
beside the base. Below float32 and over a base in 4 bits it stays beside it, since rounding would take away most of a
small one. Running servers, whose dtype is theirs, are brought it once, as a training run brings each of its versions.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rewards.errors import named
from rl.config import GeneratorSection, LoraSection, ModelSection
from rl.errors import ConfigError
from rl.generate.base_probe import measure_base
from rl.generate.build import build_generator
from rl.generate.generator_plan import (
    GPU_RESERVE,
    GeneratorPlan,
    cache_bytes,
    cache_bytes_per_token,
    engine_cache_bytes,
)
from rl.generate.protocol import Finished, Generator, Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.generate.vllm_engine import Engine, EngineSettings, check_version
from rl.generate.vllm_generator import sample_groups
from rl.generate.vllm_versions import check_nf4
from rl.paths import resolve_path
from rl.policy.adapter_place import adapter_folder
from rl.policy.float32_head import wants_float32_head
from rl.policy.merging import Source, write_plain
from rl.policy.policy import (
    Policy,
    default_device,
    dtype_name,
    end_of_sequence_ids,
    explain_loading,
    load_frozen,
    load_generation_config,
    load_policy,
    lora_rank,
    lora_targets,
    resolve_dtype,
    stored_lora,
)
from rl.records import Group, PromptCompletion

CACHE_SHARE = 0.4  # of the memory that is free, at most, for vLLM's key/value cache on a CPU

PROBE_BOUND = 0.5
"""Nats, mean over the probe's tokens. Wide, since the servers may compute in another dtype than the CPU here: it is for
another model."""


def open_frozen_generator(
    model: ModelSection, config: GeneratorSection, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig,
    *, max_tokens: int, scratch: Path,
) -> Generator:
    """A sampler of model.path with model.adapter, where there is one, on the GPU where there is one.

    max_tokens: of the longest prompt with the longest completion. scratch: folder for a merged checkpoint, which is
    removed. Raises PolicyError or GeneratorError with the remedy."""
    if config.backend == "vllm":
        version = check_version(float32_head=wants_float32_head(model, resolve_dtype(model.dtype, default_device())))
        if model.quantization is not None:
            check_nf4(version, on_gpu=default_device().type == "cuda")
        with explain_loading(model.path):
            return _FrozenVllm(model, config, tokenizer, model_config, max_tokens, scratch)
    if config.backend != "transformers":
        raise ConfigError(
            f"{config.backend}", where=named("generator.backend"),
            expected="transformers or vllm, which load the model themselves")
    with explain_loading(model.path):
        policy = load_frozen(model, tokenizer, default_device())
    return TransformersGenerator(policy, merge=False, max_sequences=config.max_sequences)


def open_frozen_servers(
    model: ModelSection, config: GeneratorSection, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig,
    *, max_tokens: int, text: Sequence[int], scratch: Path,
) -> Generator:
    """model.path with model.adapter on the servers of config.urls; without an adapter, with one that changes nothing.
    The model is loaded here too, on the CPU: what is brought is made of it, and with sync adapter the servers' model is
    compared with it on `text` (token ids).

    max_tokens: of the longest prompt with the longest completion. scratch: folder for the files that the servers read,
    until the generator is closed; config.exchange_dir comes before it. Raises PolicyError or GeneratorError with the
    remedy."""
    lora = LoraSection(rank=8) if model.adapter is None else stored_lora(adapter_folder(model.adapter))
    with explain_loading(model.path):
        policy = load_policy(model, lora, tokenizer, seed=0, device=torch.device("cpu"), keep_reference=False)
    plan = GeneratorPlan(
        max_tokens=max_tokens, cache_bytes_per_token=cache_bytes_per_token(model_config, policy.dtype.itemsize),
        trainer_bytes=0, base_path=str(resolve_path(model.path)), revision=model.revision,
        trust_remote_code=model.trust_remote_code, logprobs_mode="processed_logprobs", num_ranks=1, seed=0,
        run_dir=scratch, base_probe=measure_base(policy, text, bound=PROBE_BOUND),
        # Whatever the dtype here: the servers' is theirs.
        float32_head=model.head_dtype is not None)
    if config.sync == "auto" and model.adapter is not None:
        config = config.model_copy(update={"sync": "adapter"})
    return build_generator(config, policy, plan)


class _FrozenVllm:
    """Generator (rl/generate/protocol.py) on an engine that loads a checkpoint from the disk and keeps it."""

    def __init__(
        self, model: ModelSection, config: GeneratorSection, tokenizer: PreTrainedTokenizerBase,
        model_config: PretrainedConfig, max_tokens: int, scratch: Path,
    ) -> None:
        self.policy_version = 0
        self._tokenizer = tokenizer
        path = str(resolve_path(model.path))
        self._eos_token_ids = end_of_sequence_ids(load_generation_config(path, model.revision), tokenizer, path)
        device = default_device()
        dtype, on_gpu = resolve_dtype(model.dtype, device), device.type == "cuda"
        bytes_per_token = cache_bytes_per_token(model_config, dtype.itemsize)
        # Beside its base or merged: see the module's docstring.
        merges = dtype == torch.float32 and model.quantization is None
        beside = None if model.adapter is None or merges else adapter_folder(model.adapter)
        rank, targets = (None, ()) if beside is None else _checked_adapter(model, beside, tokenizer)
        if beside is not None:
            model = model.model_copy(update={"adapter": None})
        with _checkpoint(model, dtype, scratch) as (checkpoint, revision):
            self._engine = Engine(
                EngineSettings(
                    model=checkpoint, revision=revision, trust_remote_code=model.trust_remote_code, dtype=dtype,
                    max_tokens=max_tokens, max_sequences=config.max_sequences, lora_rank=rank, lora_targets=targets,
                    logprobs_mode="raw_logprobs", memory_share=_memory_share(config, device) if on_gpu else None,
                    cache_bytes=_engine_cache(config, max_tokens, bytes_per_token, on_gpu=on_gpu),
                    eager=config.eager if config.eager is not None else not on_gpu, can_sleep=False, num_ranks=1,
                    seed=0, float32_head=wants_float32_head(model, dtype), nf4=model.quantization is not None))
        if beside is not None:
            self._engine.load_adapter("policy", 1, beside)
        self.description = f"sampler: vLLM {self._engine.version} in this process"

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        return sample_groups(
            self._engine, requests, parameters, self._tokenizer, self._eos_token_ids, self.policy_version, finished)

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        return self._engine.logprobs(pairs)

    def rest(self) -> None:
        """Nothing else needs the memory."""

    def take_over(self, policy: Policy, version: int) -> None:
        raise AssertionError("the weights of this sampler do not change")

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._engine.close()


def _checked_adapter(
    model: ModelSection, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, tuple[str, ...]]:
    """Rank and targets of the adapter, loaded over its base on the CPU: vLLM takes one of another base of this shape,
    and passes over weights that have no place. Raises PolicyError."""
    policy = load_policy(
        model, stored_lora(folder), tokenizer, seed=0, device=torch.device("cpu"), keep_reference=False)
    return lora_rank(policy), lora_targets(policy)


@contextmanager
def _checkpoint(model: ModelSection, dtype: torch.dtype, scratch: Path) -> Iterator[tuple[str, str | None]]:
    """Path and revision of what vLLM loads: the model itself, or a checkpoint with its adapter merged into it, which
    lies in `scratch` until the context is left."""
    if model.adapter is None:
        yield str(resolve_path(model.path)), model.revision
        return
    merged = scratch / "merged"
    shutil.rmtree(merged, ignore_errors=True)  # of an evaluation that was killed
    base = model.model_copy(update={"adapter": None})
    write_plain(Source(base, adapter_folder(model.adapter), base), merged, dtype_name(dtype))
    try:
        yield str(merged), None
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _memory_share(config: GeneratorSection, device: torch.device) -> float:
    """Of the GPU's memory."""
    if config.memory_share is not None:
        return config.memory_share
    free, total = torch.cuda.mem_get_info(device)
    return GPU_RESERVE * free / total


def _engine_cache(config: GeneratorSection, max_tokens: int, bytes_per_token: int, *, on_gpu: bool) -> int | None:
    """`engine_cache_bytes`, on a CPU within a share of the memory that is free: evaluations allow long completions,
    which few reach, and with less cache the engine lets some sequences wait."""
    cache = engine_cache_bytes(config, max_tokens, bytes_per_token, on_gpu=on_gpu)
    if cache is None or config.cache_gb is not None:
        return cache
    available = int(CACHE_SHARE * psutil.virtual_memory().available)
    return max(cache_bytes(1, max_tokens, bytes_per_token), min(cache, available))
