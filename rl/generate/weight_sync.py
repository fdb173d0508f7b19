"""How a new version of the policy comes to the sampler: which way `generator.sync: auto` takes, and why.

shared: the sampler decodes with the trained module itself. adapter: only the LoRA adapter travels, a few MB, under a
fresh name and path per version (a reloaded name would find the old version's prefix cache). merge: base + BA, computed
in float32, is written into the sampler's copy in its dtype; `auto` never takes that way below float32, where rounding
takes away most of a small update (rl/policy/rounding.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from rewards.errors import named
from rl.config import GeneratorSection
from rl.generate.generator_plan import MERGE_BELOW_BYTES
from rl.policy.policy import Policy, PolicyError, dtype_name

Way = Literal["shared", "adapter", "merge"]


@dataclass(frozen=True, slots=True)
class Sync:
    """way: how versions travel. reason: why, in words that complete "new versions by {way}: "."""

    way: Way
    reason: str


def choose_sync(config: GeneratorSection, policy: Policy, *, on_gpu: bool | None = None) -> Sync:
    """on_gpu: where the policy will train; None: where it is. Raises PolicyError where the configuration asks for an
    adapter and there is none."""
    if policy.quantization is not None:
        return _beside_quantised(config, policy.quantization)
    rounds = policy.is_adapter and policy.dtype != torch.float32
    if config.backend == "transformers":
        if config.sync != "auto":
            return Sync("merge" if config.sync == "merge" else "shared", "as configured")
        if rounds:
            return Sync("shared", f"a merge would round the adapter's change to {dtype_name(policy.dtype)}")
        if policy.base_bytes <= MERGE_BELOW_BYTES:
            return Sync("merge", "the copy is small and decodes faster")
        return Sync("shared", f"a copy would take {policy.base_bytes / 1e9:.1f} GB")
    if not policy.is_adapter:
        if config.sync == "adapter":
            raise PolicyError(
                "adapter, but lora.enabled=false trains all parameters and there is no adapter",
                where="generator.sync", remedy="generator.sync=merge, or lora.enabled=true")
        return Sync("merge", "all parameters train")
    if config.sync != "auto":
        return Sync("merge" if config.sync == "merge" else "adapter", "as configured")
    if on_gpu if on_gpu is not None else policy.model.device.type == "cuda":
        return Sync("adapter", "only the adapter travels")
    if rounds:
        return Sync("adapter", f"a merge would round its change to {dtype_name(policy.dtype)}")
    return Sync("merge", "on a CPU vLLM decodes with an adapter about three times slower than without")


def _beside_quantised(config: GeneratorSection, quantization: str) -> Sync:
    if config.sync == "merge":
        raise PolicyError(
            f"merge, but rounded to {quantization} base + BA would lose most of the adapter's change",
            where="generator.sync", remedy=f"generator.sync=auto, or {named('model.quantization', 'null')}")
    return Sync("shared" if config.backend == "transformers" else "adapter", f"{quantization} cannot hold a merge")
