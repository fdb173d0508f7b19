"""What a run will need in memory, estimated before the model is loaded: better refused now than out of memory at step
40.

An estimate from the checkpoint's header and the configuration: the worst-case micro-batch, the sampler, the optimiser.
The embedded sampler needs its cache at full length; a vLLM engine in the process its own copy of the weights and, on a
GPU, the cache of one sequence at least (it takes what is free); servers need nothing here. Real use differs by the
allocator's waste and the libraries themselves (0.5 to 0.7 GB on the CPU, counted in).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import PretrainedConfig

from rewards.errors import named
from rl.config import GeneratorSection, ModelSection, RunConfig
from rl.errors import ConfigError
from rl.generate.generator_plan import MERGE_BELOW_BYTES, cache_bytes, cache_bytes_per_token, engine_cache_bytes
from rl.paths import resolve_path
from rl.records import Group, Prompt, Question, Rollout, ScoredGroup, TrainingGroup

Backend = Literal["transformers", "vllm", "vllm_server"]
LIBRARIES_BYTES = 600 * 2**20
ANY_TOKEN = 0  # what the ids are changes neither time nor memory


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of each part; num_parameters of the base, num_trained of what trains. sampler_copy and cache: of the
    sampler, 0 where that is elsewhere. backend: generator.backend. is_least_cache: the engine takes more where there is
    room. sleeps: the engine gives its memory back while training, so that it never meets activations and logits.
    teacher: a local teacher's weights."""

    num_parameters: int
    num_trained: int
    base: int
    sampler_copy: int
    trained: int
    activations: int
    logits: int
    cache: int
    backend: Backend = "transformers"
    is_least_cache: bool = False
    sleeps: bool = False
    teacher: int = 0

    @property
    def trainer_bytes(self) -> int:
        """Everything but the sampler."""
        return self.base + self.teacher + self.trained + self.activations + self.logits + LIBRARIES_BYTES

    @property
    def kept_bytes(self) -> int:
        """What of the trainer stays allocated while sampling: the base, a teacher, trained weights and AdamW's two
        moments, but no gradients."""
        return self.base + self.teacher + self.trained * 3 // 4

    @property
    def in_turns(self) -> int:
        """What sleeping saves: the smaller one of what only the sampler and what only training needs."""
        return min(self.sampler_copy + self.cache, self.activations + self.logits) if self.sleeps else 0

    @property
    def total(self) -> int:
        return self.trainer_bytes + self.sampler_copy + self.cache - self.in_turns

    def lines(self) -> list[str]:
        """For people: one aligned line per part."""
        copy, cache = ("vLLM's weights", "vLLM's key/value cache") if self.backend == "vllm" else (
            "sampler's merged copy", "sampler's key/value cache")
        parts = [
            ("frozen base", self.base), (copy, self.sampler_copy), ("trained weights, gradients, AdamW", self.trained),
            ("activations of the largest micro-batch", self.activations), ("logits of one chunk", self.logits),
            (cache + ", at least" * self.is_least_cache, self.cache), ("libraries", LIBRARIES_BYTES)]
        if self.teacher:
            parts.insert(1, ("frozen teacher", self.teacher))
        if self.backend == "vllm_server":
            parts = [(name, size) for name, size in parts if name not in (copy, cache)]
        if self.sleeps:
            parts.append(("less what generator.sleep gives back", -self.in_turns))
        parts.append(("total, about", self.total))
        return [f"{name:<42}{size / 1e9:8.2f} GB" for name, size in parts]


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Name and shape of every weight, from the safetensors headers in a folder; None where there are none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else []:
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                # A pointer of git-lfs is text: its first bytes make a length beyond any memory.
                if length > file.stat().st_size:
                    raise ValueError(
                        f"its header claims {length} bytes of {file.stat().st_size}; a git-lfs pointer needs `git lfs "
                        "pull`")
                header = json.loads(stream.read(length))
        except (struct.error, ValueError) as error:
            raise ConfigError(
                f"{named('model.path')}: {file} is no whole safetensors file ({error}). Remedy: copy or download the "
                "checkpoint again") from error
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes or None


def estimate_memory(
    config: RunConfig, model_config: PretrainedConfig, longest_prompt: int, *, bytes_per_weight: int, on_gpu: bool,
    benchmark_tokens: int = 0,
) -> MemoryEstimate | None:
    """None where the checkpoint's header is not at hand. longest_prompt in tokens; bytes_per_weight: 4 float32, 2
    bfloat16; on_gpu: the device on which the run trains. benchmark_tokens: of the longest prompt with the longest
    completion among the run's benchmarks."""
    folder = checkpoint_folder(config.model)
    shapes = weight_shapes(folder) if folder is not None else None
    if shapes is None:
        return None
    vocabulary = model_config.get_text_config().vocab_size
    num_parameters = sum(map(math.prod, shapes.values()))
    adapted = [shape for name, shape in shapes.items()
               if len(shape) == 2 and "layers." in name and _is_target(name, config.lora.targets)]
    num_trained = config.lora.rank * sum(sum(shape) for shape in adapted) if config.lora.enabled else num_parameters
    # Full parameters are kept in float32, and their frozen reference is a second copy.
    frozen_copies = 1 if config.lora.enabled or config.loss.kl_weight > 0 else 0
    bytes_per_base_weight = bytes_per_weight if config.lora.enabled else 4
    base = num_parameters * bytes_per_base_weight * frozen_copies
    generator = config.generator
    longest = longest_prompt + config.sampling.max_completion_tokens
    tokens = max(config.optim.micro_batch_tokens, longest)
    sampler_copy, cache = _sampler_bytes(
        generator, max(longest, benchmark_tokens), cache_bytes_per_token(model_config, bytes_per_weight),
        num_parameters * bytes_per_weight, num_parameters * bytes_per_base_weight, on_gpu=on_gpu)
    return MemoryEstimate(
        num_parameters=num_parameters, num_trained=num_trained, base=base, sampler_copy=sampler_copy,
        trained=num_trained * 4 * 4, activations=_activation_bytes(config, model_config, tokens, bytes_per_weight),
        logits=4 * min(tokens * vocabulary * 4, 256 * 2**20), cache=cache, backend=generator.backend,
        is_least_cache=generator.backend == "vllm" and on_gpu and generator.cache_gb is None,
        sleeps=on_gpu and generator.sleep != "off", teacher=_teacher_bytes(config, on_gpu=on_gpu))


def _activation_bytes(config: RunConfig, model_config: PretrainedConfig, tokens: int, bytes_per_weight: int) -> int:
    """Inputs of the linear layers, attention and the gated product, as autograd keeps them, counted on the Llama
    architecture. tokens: of one micro-batch."""
    text = model_config.get_text_config()  # of a multimodal model, the language model's
    hidden, layers = text.hidden_size, text.num_hidden_layers
    intermediate = getattr(text, "intermediate_size", None) or 4 * hidden
    adapter_inputs = 4 * (2 * hidden + intermediate) if config.lora.enabled else 0
    per_token_and_layer = (10 * hidden + 4 * intermediate) * bytes_per_weight + adapter_inputs
    if config.model.gradient_checkpointing:
        return int(tokens * per_token_and_layer + tokens * layers * hidden * bytes_per_weight)
    return int(tokens * layers * per_token_and_layer)


def _teacher_bytes(config: RunConfig, *, on_gpu: bool) -> int:
    """Of a local teacher's weights; its activations are smaller than those of training. 0 where its header is not at
    hand."""
    if config.teacher is None or config.teacher.backend != "local":
        return 0
    model = config.teacher.as_model()
    folder = checkpoint_folder(model)
    shapes = weight_shapes(folder) if folder is not None else None
    bytes_per_weight = {"auto": 2 if on_gpu else 4, "float32": 4, "bfloat16": 2}[model.dtype]
    return bytes_per_weight * sum(map(math.prod, (shapes or {}).values()))


def _sampler_bytes(
    generator: GeneratorSection, longest: int, bytes_per_token: int, weights: int, base: int, *, on_gpu: bool
) -> tuple[int, int]:
    """Of the sampler's copy of the weights and its cache. longest: tokens of the longest prompt with the longest
    completion; weights: bytes of the model as the sampler holds it; base: as the trainer does."""
    if generator.backend == "vllm_server":
        return 0, 0
    if generator.backend == "vllm":
        fixed = engine_cache_bytes(generator, longest, bytes_per_token, on_gpu=on_gpu)
        return weights, cache_bytes(1, longest, bytes_per_token) if fixed is None else fixed
    merges = generator.sync == "merge" or (generator.sync == "auto" and base <= MERGE_BELOW_BYTES)
    # Half as much again while the cache grows into a larger buffer.
    return weights if merges else 0, int(1.5 * generator.max_sequences * longest * bytes_per_token)


def check_memory(config: RunConfig, estimate: MemoryEstimate | None, available: int, where: str) -> None:
    """Refuse a run that cannot fit. Raises ConfigError with the largest part and what makes it smaller."""
    if estimate is None or estimate.total <= available:
        return
    cache, sampler_copy = _sampler_remedies(config.generator, estimate)
    remedies = {
        "activations": "a lower optim.micro_batch_tokens or model.gradient_checkpointing=true", "cache": cache,
        "sampler_copy": sampler_copy, "base": f"{named('model.dtype', 'bfloat16')}",
        "trained": "lora.enabled=true or a lower lora.rank", "logits": "a lower optim.micro_batch_tokens",
        "teacher": "teacher.backend=vllm_server with servers on another device, or teacher.dtype=bfloat16"}
    largest = max(remedies, key=lambda name: int(getattr(estimate, name)))
    raise ConfigError(
        f"this run needs about {estimate.total / 1e9:.1f} GB and {where} has {available / 1e9:.1f} GB free; the "
        f"largest part is {largest} with {getattr(estimate, largest) / 1e9:.1f} GB. Remedy: {remedies[largest]}")


def _sampler_remedies(generator: GeneratorSection, estimate: MemoryEstimate) -> tuple[str, str]:
    """Against a large cache, and against a large copy of the weights."""
    if generator.backend == "transformers":
        return f"a lower {named('generator.max_sequences')}", "generator.sync=shared"
    if generator.cache_gb is not None:
        cache = "a lower generator.cache_gb"
    else:
        cache = (
            f"a lower {named('sampling.max_completion_tokens')}"
            if estimate.is_least_cache
            else f"a lower {named('generator.max_sequences')}")
    sleep = "generator.sleep=offload, or " if estimate.is_least_cache and not estimate.sleeps else ""
    elsewhere = f"servers on another device ({named('generator.backend', 'vllm_server')})"
    return cache, f"{sleep}{named('model.dtype', 'bfloat16')}, or {elsewhere}"


def checkpoint_folder(model: ModelSection, cache: Path | None = None) -> Path | None:
    """The folder with the checkpoint's files: the one named, or a hub id's in the cache; None where nothing was
    downloaded yet."""
    path = resolve_path(model.path)
    if path.is_dir():
        return path
    if model.path.count("/") > 1:
        return None
    found = try_to_load_from_cache(model.path, "config.json", revision=model.revision, cache_dir=cache)
    return Path(found).parent if isinstance(found, str) else None


def available_memory(device: torch.device, num_processes: int = 1) -> int:
    """Bytes that the device can still give to each process of a run on this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // num_processes


def _is_target(name: str, targets: str | list[str]) -> bool:
    if targets == "all-linear":
        return "norm" not in name
    return any(f".{target}." in name for target in ([targets] if isinstance(targets, str) else targets))


def longest_groups(config: RunConfig, longest_prompt: int) -> list[TrainingGroup]:
    """The longest batch that the configuration allows, made up, for a rehearsal before the first step on a GPU
    (Updater.rehearse): out of memory then, not at step 40, when by chance the longest completions share a micro-batch.

    Completions at the length limit, enough to fill one micro-batch, each a group of its own: those of one group with
    the same tokens would share a row. longest_prompt in tokens."""
    length = config.sampling.max_completion_tokens
    rollout = Rollout((ANY_TOKEN,) * length, (0.0,) * length, "", "length", policy_version=0, seed=0)
    prompt = Prompt(Question("rehearsal", "", None, {}), "", (ANY_TOKEN,) * longest_prompt)
    scored = ScoredGroup(Group(prompt, (rollout,)), (0.0,), {}, (None,), (0,), 0.0, {})
    # An advantage that is not zero: a group without one would be skipped.
    return [TrainingGroup(scored, (1.0,))] * max(1, config.optim.micro_batch_tokens // (longest_prompt + length - 1))
