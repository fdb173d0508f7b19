"""What a run will need in memory, estimated before the model is loaded: better refused now than out of memory at step
40.

An estimate from the shapes of the weights (rl/planning/shapes.py) and the configuration: the worst-case micro-batch
(rl/planning/activations.py), the sampler, the optimiser. The embedded sampler needs its cache at full length, a prompt
once for the completions that share it; a vLLM engine in the process its own copy of the weights and, on a GPU, the
cache of one sequence at least (it takes what is free); servers need nothing here. On the CPU the growth over the loaded
process is within 15% of what is measured (benchmarks/memory_peaks.py); the libraries themselves are counted in (0.5 to
0.7 GB on the CPU).
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from transformers import PretrainedConfig

from rewards.errors import named
from rl.config import GeneratorSection, RunConfig
from rl.errors import ConfigError
from rl.generate.generator_plan import (
    GPU_RESERVE,
    MERGE_BELOW_BYTES,
    cache_bytes,
    cache_bytes_per_token,
    engine_cache_bytes,
)
from rl.generate.growing_cache import keeps_all_tokens
from rl.planning.activations import activations_per_token
from rl.planning.shapes import WeightShapes, planned_config, weight_shapes
from rl.policy.float32_head import PIECE_BYTES
from rl.policy.logprobs import LOGITS_BUDGET_BYTES
from rl.policy.shared_prompts import KEPT_COPIES
from rl.records import Group, Prompt, Question, Rollout, ScoredGroup, TrainingGroup

Backend = Literal["transformers", "vllm", "vllm_server"]
LIBRARIES_BYTES = 600 * 2**20
M_MMAP_THRESHOLD = -3  # of malloc.h
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight: 4 bits, a scale of 8 bits for each 64, and of the scales one in float32 for each 256 (0.127 bits)."""
ANY_TOKEN = 0  # what the ids are changes neither time nor memory
NOTHING_IS_ENOUGH = (
    "no smaller micro-batch, cache or rank is enough: a larger card, a smaller model, or servers on another device "
    "(generator.backend=vllm_server)")


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of each part; num_parameters of the base, num_trained of what trains. sampler_copy and cache: of the
    sampler, 0 where that is elsewhere. backend: generator.backend. is_least_cache: the engine takes more where there is
    room. sleeps: the engine gives its memory back while training, so that it never meets activations and logits.
    teacher: a local teacher's weights. on_gpu: whether it is of a GPU."""

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
    on_gpu: bool = False

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

    def fits(self, available: int) -> bool:
        """Whether the run fits into so many bytes; an engine that takes what is left needs room for one sequence."""
        return self.total <= available and (not self.is_least_cache or self.room(available) >= 1)

    def room(self, available: int) -> int:
        """How many sequences of full length an engine that takes what is left holds together, with so many bytes
        free."""
        beside = self.kept_bytes if self.sleeps else self.trainer_bytes
        return max(0, int(GPU_RESERVE * (available - beside) - self.sampler_copy) // self.cache)

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


def estimate_memory(
    config: RunConfig, model_config: PretrainedConfig, longest_prompt: int, *, bytes_per_weight: int, on_gpu: bool,
    benchmark_tokens: int = 0, shapes: WeightShapes | None = None,
) -> MemoryEstimate:
    """longest_prompt in tokens; bytes_per_weight: 4 float32, 2 bfloat16; on_gpu: the device on which the run trains.
    benchmark_tokens: of the longest prompt with the longest completion among the run's benchmarks. shapes: of the
    weights, where they are known already."""
    shapes = weight_shapes(config.model, model_config) if shapes is None else shapes
    num_parameters = sum(map(math.prod, shapes.values()))
    adapted = [name for name, shape in shapes.items()
               if len(shape) == 2 and "layers." in name and _is_target(name, config.lora.targets)]
    num_trained = (
        config.lora.rank * sum(sum(shapes[name]) for name in adapted) if config.lora.enabled else num_parameters)
    # Full parameters are kept in float32, and their frozen reference is a second copy.
    frozen_copies = 1 if config.lora.enabled or config.loss.kl_weight > 0 else 0
    weights = _weights_bytes(config, shapes, bytes_per_weight)
    base = weights if config.lora.enabled else 4 * num_parameters
    generator = config.generator
    sampler_copy = _sampler_copy(config, weights, base, bytes_per_weight)
    cache = _cache_bytes(config, model_config, longest_prompt, benchmark_tokens, bytes_per_weight, on_gpu=on_gpu)
    kept_copies = KEPT_COPIES["elsewhere" if on_gpu else "cpu"]
    activations, logits = _pass_bytes(
        config, model_config, shapes, adapted, longest_prompt, bytes_per_weight, kept_copies)
    if config.model.head_dtype is not None and bytes_per_weight < 4 and not on_gpu:  # on a GPU no weight is cast
        logits += PIECE_BYTES
        if generator.backend == "vllm":  # in one piece, in every pass
            text = model_config.get_text_config()
            sampler_copy += 4 * text.vocab_size * text.hidden_size
    return MemoryEstimate(
        num_parameters=num_parameters, num_trained=num_trained,
        base=base * frozen_copies, sampler_copy=sampler_copy,
        # Weights, gradients, two moments; a moving average, and the weights that make room for it while it is sampled.
        trained=num_trained * 4 * (4 if config.votes is None else 6), activations=activations, logits=logits,
        cache=cache, backend=generator.backend,
        is_least_cache=generator.backend == "vllm" and on_gpu and generator.cache_gb is None,
        sleeps=on_gpu and generator.sleep != "off", teacher=_teacher_bytes(config, on_gpu=on_gpu),
        on_gpu=on_gpu)


def _weights_bytes(config: RunConfig, shapes: WeightShapes, bytes_per_weight: int) -> int:
    """Of the model without its adapter. In 4 bits are the linear layers between embedding and output layer, but the
    experts of a layer, which are none; the largest is dequantised for its product, one at a time."""
    plain = bytes_per_weight * sum(map(math.prod, shapes.values()))
    if config.model.quantization is None:
        return plain
    sizes = [math.prod(shape) for name, shape in shapes.items()
             if len(shape) == 2 and "layers." in name and "norm" not in name and ".experts." not in name]
    return plain + int(sum(sizes) * (NF4_BYTES - bytes_per_weight)) + bytes_per_weight * max(sizes, default=0)


def _pass_bytes(
    config: RunConfig, model_config: PretrainedConfig, shapes: WeightShapes, adapted: Sequence[str],
    longest_prompt: int, bytes_per_weight: int, kept_copies: int,
) -> tuple[int, int]:
    """Of the largest micro-batch: what is kept for the backward pass, and the logits. kept_copies: at most, of keys and
    values of prompts."""
    completion = config.sampling.max_completion_tokens
    longest = longest_prompt + completion
    tokens = max(config.optim.micro_batch_tokens, longest)
    # As in the batch that the rehearsal runs: one prompt, completions at the limit; with more copies none is kept.
    copies = min(kept_copies, 1 + longest_prompt * ((tokens - longest_prompt) // max(1, completion - 1)) / tokens)
    per_token = activations_per_token(config, model_config, shapes, adapted, longest, bytes_per_weight, copies)
    logits = 4 * min(tokens * model_config.get_text_config().vocab_size * 4, LOGITS_BUDGET_BYTES)
    # Under autocast the layers' weights in the computation's dtype are kept, too.
    casts = 0 if config.lora.enabled or bytes_per_weight == 4 else bytes_per_weight * sum(
        math.prod(shape) for name, shape in shapes.items() if "layers." in name)
    # The logits are gone before the first layer's gradients come.
    return tokens * per_token.kept + casts + max(0, tokens * per_token.gradients - logits), logits


def _teacher_bytes(config: RunConfig, *, on_gpu: bool) -> int:
    """Of a local teacher's weights; its activations are smaller than those of training. 0 where the model is not
    at hand."""
    if config.teacher is None or config.teacher.backend != "local":
        return 0
    model = config.teacher.as_model()
    try:
        shapes = weight_shapes(model, planned_config(model))
    except ConfigError:
        return 0
    bytes_per_weight = {"auto": 2 if on_gpu else 4, "float32": 4, "bfloat16": 2}[model.dtype]
    return bytes_per_weight * sum(map(math.prod, shapes.values()))


def _sampler_copy(config: RunConfig, weights: int, base: int, bytes_per_weight: int) -> int:
    """Of the weights that the sampler has beside the trainer's, as choose_sync chooses. weights: bytes of the model;
    base: as the trainer holds it."""
    if config.generator.backend != "transformers":
        return weights if config.generator.backend == "vllm" else 0
    rounds = config.lora.enabled and (bytes_per_weight < 4 or config.model.quantization is not None)
    sync = config.generator.sync
    merges = sync == "merge" or (sync == "auto" and base <= MERGE_BELOW_BYTES and not rounds)
    return weights if merges else 0


def _cache_bytes(
    config: RunConfig, model_config: PretrainedConfig, longest_prompt: int, benchmark_tokens: int,
    bytes_per_weight: int, *, on_gpu: bool,
) -> int:
    """Of the sampler's key/value cache, with what the embedded one holds of logits."""
    generator, bytes_per_token = config.generator, cache_bytes_per_token(model_config, bytes_per_weight)
    if generator.backend == "vllm_server":
        return 0
    if generator.backend == "vllm":
        longest = max(longest_prompt + config.sampling.max_completion_tokens, benchmark_tokens)
        fixed = engine_cache_bytes(generator, longest, bytes_per_token, on_gpu=on_gpu)
        return cache_bytes(1, longest, bytes_per_token) if fixed is None else fixed
    # The rows' cache grows, a layer at a time beside its old copy, into buffers half as large again; on a CPU their
    # spare room takes no memory before it is written.
    text, (prompts, own) = model_config.get_text_config(), _cached_tokens(
        config, model_config, longest_prompt, benchmark_tokens)
    # Attention reads a layer's part in float32: what is shared and has it already as it is, all else in a copy.
    copied = 0 if prompts and bytes_per_weight == 4 else (prompts + own) * 4 / bytes_per_weight
    tokens = prompts + own * (1.5 if on_gpu else 1.0) + (own + copied) / text.num_hidden_layers
    logits = 4 * 4 * generator.max_sequences * text.vocab_size  # and what is drawn from
    return int(tokens * bytes_per_token) + logits


def _cached_tokens(
    config: RunConfig, model_config: PretrainedConfig, longest_prompt: int, benchmark_tokens: int
) -> tuple[int, int]:
    """Tokens in the embedded sampler's cache, at most: of prompts that are shared, and of the rows themselves."""
    rows, completion = config.generator.max_sequences, config.sampling.max_completion_tokens
    copied = 0, rows * max(longest_prompt + completion, benchmark_tokens)
    evaluation = config.evaluation
    held_out = [min(evaluation.samples, evaluation.samples_during)] if evaluation.path is not None else []
    votes = [] if config.votes is None else [config.votes.samples]
    smallest = min([config.sampling.group_size, *held_out, *votes])
    shared = -(-rows // smallest) * longest_prompt, rows * completion
    shares = smallest > 1 and config.model.attention == "auto" and keeps_all_tokens(model_config)
    # A benchmark may ask for one completion of each question.
    return shared if shares and sum(shared) >= rows * benchmark_tokens else copied


def check_memory(
    config: RunConfig, estimate: MemoryEstimate, available: int, where: str, *, enough: Callable[[], str] | None = None
) -> None:
    """Refuse a run that cannot fit. Raises ConfigError with the largest part, and what makes it smaller.

    enough: finds a remedy with which the run fits, "" where none of its settings does; that is told instead."""
    if estimate.fits(available):
        return
    cache, sampler_copy = _sampler_remedies(config.generator, estimate)
    remedies = {
        "activations": "a lower optim.micro_batch_tokens or model.gradient_checkpointing=full", "cache": cache,
        "sampler_copy": sampler_copy, "base": f"{named('model.dtype', 'bfloat16')}",
        "trained": "lora.enabled=true or a lower lora.rank", "logits": "a lower optim.micro_batch_tokens",
        "teacher": "teacher.backend=vllm_server with servers on another device, or teacher.dtype=bfloat16"}
    share = "" if estimate.total > available else f", of which an engine gets {GPU_RESERVE:.0%} of what the rest leaves"
    largest = max(remedies, key=lambda name: int(getattr(estimate, name)))
    remedy = remedies[largest]
    if enough is not None:
        untried = f", or {remedy}" if largest in ("base", "teacher") else ""
        remedy = enough() or NOTHING_IS_ENOUGH + untried
    raise ConfigError(
        f"this run needs about {estimate.total / 1e9:.1f} GB and {where} has {available / 1e9:.1f} GB free{share}; "
        f"the largest part is {largest} with {getattr(estimate, largest) / 1e9:.1f} GB", remedy=remedy)


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


def available_memory(device: torch.device, num_processes: int = 1) -> int:
    """Bytes that the device can still give to each process of a run on this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available) // num_processes


def give_back_freed_memory(from_bytes: int = 16 * 2**20) -> None:
    """From here on blocks of so many bytes or more go back to the system when they are freed. By itself glibc comes to
    keep those below 32 MB, and the holes between them: as much again as a run of a real model on the CPU needs.
    Elsewhere than in glibc nothing is done.

    The default is for speed, because what comes back has its pages to be made anew: at 128 KB the tiny model's steps
    take half as long again, at 1 MB SmolLM2's update takes a quarter longer (benchmarks/README.md)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if (mallopt := getattr(libc, "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, from_bytes)  # set, it stays


def _is_target(name: str, targets: str | list[str]) -> bool:
    if targets == "all-linear":
        return "norm" not in name
    return any(f".{target}." in name for target in ([targets] if isinstance(targets, str) else targets))


def longest_groups(config: RunConfig, longest_prompt: int) -> list[TrainingGroup]:
    """The longest batch that the configuration allows, made up, for a rehearsal before the first step on a GPU
    (Updater.rehearse): out of memory then, not at step 40, when by chance the longest completions share a micro-batch.

    One group with completions at the length limit, enough to fill one micro-batch, each with tokens of its own: equal
    ones are computed once. longest_prompt in tokens."""
    length = config.sampling.max_completion_tokens
    size = max(1, config.optim.micro_batch_tokens // max(1, length - 1))
    rollouts = tuple(
        Rollout(tuple(number >> place & 1 for place in range(length)), (0.0,) * length, "", "length", policy_version=0,
                seed=0)
        for number in range(size))
    prompt = Prompt(Question("rehearsal", "", None, {}), "", (ANY_TOKEN,) * longest_prompt)
    scored = ScoredGroup(Group(prompt, rollouts), (0.0,) * size, {}, (None,) * size, tuple(range(size)), 0.0, {})
    # Advantages that are not zero: a group without one would be skipped.
    return [TrainingGroup(scored, (1.0,) * size)]
