"""A policy that does not change on running `vllm serve` processes: brought once, as a training run brings each of its versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rl.config import GeneratorSection, LoraSection, ModelSection
from rl.config_loading import resolve_path
from rl.generate.base_probe import measure_base
from rl.generate.build import build_generator
from rl.generate.plan import SamplerPlan
from rl.generate.protocol import Generator
from rl.memory import cache_bytes_per_token
from rl.policy import explain_loading, load_policy, stored_lora

PROBE_BOUND = 0.5
"""Nats, mean over the probe's tokens. Wide, since the servers may compute in another dtype than the CPU here: it is for another model."""


def open_fixed_servers(
    model: ModelSection, config: GeneratorSection, tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, *, max_tokens: int,
    text: Sequence[int], scratch: Path,
) -> Generator:
    """model.path with model.adapter on the servers of config.urls; without an adapter, with one that changes nothing. The model is loaded
    here too, on the CPU: what is brought is made of it, and with sync adapter the servers' model is compared with it on `text` (token ids).

    max_tokens: of the longest prompt with the longest completion. scratch: folder for the files that the servers read, until the generator
    is closed; config.exchange_dir comes before it. Raises PolicyError or SamplerError with the remedy."""
    lora = LoraSection(rank=8) if model.adapter is None else stored_lora(resolve_path(model.adapter))
    with explain_loading(model.path):
        policy = load_policy(model, lora, tokenizer, seed=0, device=torch.device("cpu"), keep_reference=False)
    return build_generator(config, policy, SamplerPlan(
        max_tokens=max_tokens, cache_bytes_per_token=cache_bytes_per_token(model_config, policy.dtype.itemsize), trainer_bytes=0,
        base_path=str(resolve_path(model.path)), revision=model.revision, trust_remote_code=model.trust_remote_code,
        logprobs_mode="processed_logprobs", num_ranks=1, seed=0, run_dir=scratch,
        base_probe=measure_base(policy, text, bound=PROBE_BOUND)))
