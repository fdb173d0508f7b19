"""What the run plans for its sampler: sizes and modes that are known before the first question is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PretrainedConfig

from rewards.errors import named
from rl.config import GeneratorSection, SamplingSection
from rl.errors import GeneratorError
from rl.generate.base_probe import BaseProbe

HIGHEST_TEMPERATURE = 2.0  # vLLM's own bound
GPU_RESERVE = 0.9  # of what is free, to the engine: the allocators of trainer and engine both waste some
CACHE_BLOCK = 128  # tokens: the largest block that vLLM fills the key/value cache by (on a CPU)
MERGE_BELOW_BYTES = 1 << 30
"""`generator.sync: auto` of the embedded sampler keeps a merged copy of models up to this size."""
LogprobsMode = Literal["processed_logprobs", "raw_logprobs"]


@dataclass(frozen=True, slots=True)
class GeneratorPlan:
    """max_tokens: of the longest prompt with the longest completion. cache_bytes_per_token: key/value cache of one
    token over all layers. trainer_bytes: what everything but the sampler will need on the device; kept_bytes: what of
    it stays allocated while sampling; both 0 where they cannot be estimated. base_path: folder or hub id of the base
    model, with its revision. logprobs_mode: see `logprobs_mode`. num_ranks: training processes. run_dir: the run's
    folder. base_probe: what servers are compared with at the start; None: they are not. float32_head: see
    model.head_dtype."""

    max_tokens: int
    cache_bytes_per_token: int
    trainer_bytes: int
    base_path: str
    revision: str | None
    trust_remote_code: bool
    logprobs_mode: LogprobsMode
    num_ranks: int
    seed: int
    run_dir: Path
    kept_bytes: int = 0
    base_probe: BaseProbe | None = None
    float32_head: bool = False


def cache_bytes_per_token(model_config: PretrainedConfig, bytes_per_value: int) -> int:
    """Keys and values of one token over all layers."""
    text = model_config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(text.num_hidden_layers * 2 * heads * head_width * bytes_per_value)


def cache_bytes(num_sequences: int, max_tokens: int, bytes_per_token: int) -> int:
    """Of vLLM's key/value cache that holds num_sequences of max_tokens: each in whole blocks, and one more for the
    token that vLLM generates after a completion whose log-probabilities are asked for."""
    return num_sequences * (-(-max_tokens // CACHE_BLOCK) + 1) * CACHE_BLOCK * bytes_per_token


def engine_cache_bytes(config: GeneratorSection, max_tokens: int, bytes_per_token: int, *, on_gpu: bool) -> int | None:
    """What the engine is told to allocate: cache_gb, on a CPU room for max_sequences of full length; on a GPU None,
    what the memory share leaves."""
    if config.cache_gb is not None:
        return int(config.cache_gb * 1e9)
    return None if on_gpu else cache_bytes(config.max_sequences, max_tokens, bytes_per_token)


def logprobs_mode(sampling: SamplingSection) -> LogprobsMode:
    """Which of vLLM's log-probabilities are those at the sampling temperature before top_p and top_k: processed where
    nothing is restricted, raw (before the temperature) where the temperature is 1. Raises GeneratorError where neither
    is, or vLLM refuses the temperature."""
    if sampling.temperature > HIGHEST_TEMPERATURE:
        raise GeneratorError(
            f"{sampling.temperature:g}, but vLLM samples at {HIGHEST_TEMPERATURE:g} at most",
            where="sampling.temperature",
            remedy=f"a lower sampling.temperature, or {named('generator.backend', 'transformers')}")
    if sampling.top_p == 1.0 and sampling.top_k == 0:
        return "processed_logprobs"
    if sampling.temperature == 1.0:
        return "raw_logprobs"
    raise GeneratorError(
        "vLLM reports log-probabilities before the temperature or after top_p and top_k; the trainer needs those in "
        "between",
        where=f"sampling.temperature={sampling.temperature:g} with top_p={sampling.top_p:g} and "
        f"top_k={sampling.top_k}",
        remedy="sampling.temperature=1, or sampling.top_p=1 sampling.top_k=0, or "
        f"{named('generator.backend', 'transformers')}")
