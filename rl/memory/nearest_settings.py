"""A run that does not fit -> the nearest settings with which it does. In order of what they cost: smaller micro-batches
and a smaller cache cost speed, recomputing whole layers a third of it, a lower rank changes what is learnt, a base in 4
bits what it is learnt over.

Add a way to save memory in `_moves`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig

from rewards.errors import as_configured
from rl.config import RunConfig
from rl.memory.estimate import NOTHING_IS_ENOUGH, MemoryEstimate, estimate_memory
from rl.planning.shapes import weight_shapes
from rl.records import Json

Estimator = Callable[[RunConfig], MemoryEstimate]
Move = tuple[int, Mapping[str, Json]]
"""What it costs, and the settings that change."""

SMALLEST_MICRO_BATCH, SMALLEST_BATCH, SMALLEST_RANK = 1024, 8, 8
USEFUL_SEQUENCES = 16  # decoded together; an engine with room for fewer hardly uses the card
CHECKPOINTING = "model.gradient_checkpointing"
RECOMPUTATION = {"off": 0, "selective": 1, "full": 3}
"""What each of its values costs."""


@dataclass(frozen=True, slots=True)
class Fitting:
    """settings: to change, by key."""

    settings: Mapping[str, Json]
    estimate: MemoryEstimate

    @property
    def words(self) -> str:
        return " ".join(as_configured(key, str(value).lower()) for key, value in self.settings.items())


def estimator(
    model_config: PretrainedConfig, config: RunConfig, longest_prompt: int, *, bytes_per_weight: int, on_gpu: bool,
    benchmark_tokens: int = 0,
) -> Estimator:
    """estimate_memory of configurations that differ from this one in other settings than the model."""
    shapes = weight_shapes(config.model, model_config)
    return lambda changed: estimate_memory(
        changed, model_config, longest_prompt, bytes_per_weight=bytes_per_weight, on_gpu=on_gpu,
        benchmark_tokens=benchmark_tokens, shapes=shapes)


def nearest_fitting(config: RunConfig, estimate: Estimator, available: int) -> list[Fitting]:
    """The cheapest change with which the run fits into so many bytes with room to sample, and where it recomputes
    activations the cheapest without; [] where none does."""
    found: list[Fitting] = []
    unchanged = estimate(config)
    moves = _moves(config, takes_what_is_left=unchanged.is_least_cache, on_gpu=unchanged.on_gpu)
    for changes in sorted(itertools.product(*moves), key=lambda chosen: sum(cost for cost, _ in chosen)):
        settings = {key: value for _, changed in changes for key, value in changed.items()}
        if found and CHECKPOINTING in settings:
            continue
        wanted = _with_settings(config, settings)
        needed = estimate(wanted)
        if _serves(wanted, needed, available):
            found.append(Fitting(settings, needed))
            if CHECKPOINTING not in settings:
                return found
    return found


def render_fit(config: RunConfig, estimate: Estimator, available: int, where: str) -> str:
    """Whether the run fits into so many bytes, and where it does not, or hardly samples, what to change."""
    needed = estimate(config)
    fits = needed.fits(available)
    lines = [f"{'fits' if fits else 'does not fit'} into the {available / 1e9:.1f} GB of {where}"
             f"{_room(config, needed, available) if fits else ''}"]
    if _serves(config, needed, available):
        return lines[0]
    nearest = nearest_fitting(config, estimate, available)
    if not nearest:
        return "\n".join([*lines, NOTHING_IS_ENOUGH])
    settings = [f"  {fit.words:<70}  about {fit.estimate.total / 1e9:.1f} GB{_room(config, fit.estimate, available)}"
            for fit in nearest]
    return "\n".join([*lines, "nearest settings that fit:", *settings])


def enough(config: RunConfig, estimate: Estimator, available: int) -> str:
    """The remedy of a run that does not fit: changes with which it does, "" where there are none."""
    return ", or ".join(fit.words for fit in nearest_fitting(config, estimate, available))


def _serves(config: RunConfig, estimate: MemoryEstimate, available: int) -> bool:
    useful = min(USEFUL_SEQUENCES, config.generator.max_sequences)
    return estimate.fits(available) and (not estimate.is_least_cache or estimate.room(available) >= useful)


def _room(config: RunConfig, estimate: MemoryEstimate, available: int) -> str:
    if not estimate.is_least_cache:
        return ""
    sequences = min(estimate.room(available), config.generator.max_sequences)
    return f"; the engine holds {sequences} of {config.generator.max_sequences} sequences at full length"


def _moves(config: RunConfig, *, takes_what_is_left: bool, on_gpu: bool) -> list[list[Move]]:
    """Independent ways to need less, each with the ways to take it, the first being not to. takes_what_is_left: the
    engine's cache, however many sequences it may decode."""
    model, generator, lora = config.model, config.generator, config.lora
    moves: list[list[Move]] = [[(cost, {"optim.micro_batch_tokens": size} if cost else {})
              for cost, size in enumerate(_halves(config.optim.micro_batch_tokens, SMALLEST_MICRO_BATCH))]]
    present = config.model.gradient_checkpointing
    moves.append([(cost, {CHECKPOINTING: extent} if extent != present else {})
                  for extent, cost in RECOMPUTATION.items() if cost >= RECOMPUTATION[present]])
    if generator.backend != "vllm_server" and generator.cache_gb is None and not takes_what_is_left:
        moves.append([(cost, {"generator.max_sequences": size} if cost else {})
                      for cost, size in enumerate(_halves(generator.max_sequences, SMALLEST_BATCH))])
    if generator.cache_gb is not None:
        moves.append([(times, {"generator.cache_gb": generator.cache_gb / 2**times} if times else {})
                      for times in range(5)])
    if generator.backend == "transformers" and generator.sync != "shared":
        moves.append([(0, {}), (2, {"generator.sync": "shared"})])
    if generator.backend == "vllm" and generator.sleep == "off":
        moves.append([(0, {}), (4, {"generator.sleep": "offload"})])
    if lora.enabled:
        # The scale of the update, alpha / rank, stays.
        moves.append([(10 * times, {"lora.rank": rank, "lora.alpha": lora.alpha * rank / lora.rank} if times else {})
                      for times, rank in enumerate(_halves(lora.rank, SMALLEST_RANK))])
        refuses = model.dtype == "float32" or generator.sync == "merge" or generator.sleep == "discard"
        if on_gpu and model.quantization is None and not refuses:
            moves.append([(0, {}), (20, {"model.quantization": "nf4"})])
    else:
        moves.append([(0, {}), (100, {"lora.enabled": True})])
    return moves


def _halves(size: int, smallest: int) -> list[int]:
    """The size, its half, and so on, as long as they are not below the smallest."""
    sizes = [size]
    while sizes[-1] // 2 >= smallest:
        sizes.append(sizes[-1] // 2)
    return sizes


def _with_settings(config: RunConfig, settings: Mapping[str, Json]) -> RunConfig:
    values = config.model_dump(mode="json")
    for key, value in settings.items():
        section, name = key.split(".")
        values[section][name] = value
    return RunConfig.model_validate(values)
