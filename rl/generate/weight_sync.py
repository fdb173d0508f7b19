"""How a new version of the policy comes to the sampler: which way `generator.sync: auto` takes, and why.

shared: the sampler decodes with the trained module itself. adapter: only the LoRA adapter travels, a few MB, under a
fresh name and path per version (a reloaded name would find the old version's prefix cache). merge: base + BA, computed
in float32, is written into the sampler's copy in its dtype; `auto` never takes that way below float32, where rounding
takes away most of a small update (rl/policy/rounding.py). In float32 on a GPU it takes what `merge_pays` expects to be
shorter; the way is chosen at the start and stays, so that a run that goes on samples as it did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from rewards.errors import named
from rl.config import GeneratorSection
from rl.generate.generator_plan import MERGE_BELOW_BYTES
from rl.policy.policy import Policy, PolicyError, dtype_name, has_fused_experts

Way = Literal["shared", "adapter", "merge"]
ADAPTER_SLOWDOWN = 1.36
"""So many times as long vLLM decodes on a GPU with an adapter beside its base: 1.33 to 1.39."""
DECODED_READS, HAND_OVER_READS = 256, {"vllm": 20, "vllm_server": 3000}
"""What is expected before anything is measured, in times that a GPU takes to read all weights once, as each token of
the longest completion does: a step's decoding, and the hand-over of merged weights. In the process they are computed
and written where they are; to servers they go through a file, some thousand times slower than a GPU's memory."""


@dataclass(frozen=True, slots=True)
class Sync:
    """way: how versions travel. reason: why, in words that complete "new versions by {way}: "."""

    way: Way
    reason: str


def merge_pays(decode: float, hand_over: float) -> bool:
    """Whether a step is shorter with merged weights: what an adapter adds to its decoding, beside what handing over all
    weights takes. decode: of a step, without an adapter; both in one unit, such as seconds."""
    return decode * (ADAPTER_SLOWDOWN - 1) > hand_over


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
    if rounds:
        return Sync("adapter", f"a merge would round its change to {dtype_name(policy.dtype)}")
    if on_gpu if on_gpu is not None else policy.model.device.type == "cuda":
        # An engine in the process has other names for experts' weights.
        if has_fused_experts(policy) or not merge_pays(DECODED_READS, HAND_OVER_READS[config.backend]):
            return Sync("adapter", "only the adapter travels")
        return Sync("merge", f"on a GPU vLLM decodes about {ADAPTER_SLOWDOWN - 1:.0%} longer with an adapter")
    return Sync("merge", "on a CPU vLLM decodes with an adapter about three times slower than without")


def _beside_quantised(config: GeneratorSection, quantization: str) -> Sync:
    if config.sync == "merge":
        raise PolicyError(
            f"merge, but rounded to {quantization} base + BA would lose most of the adapter's change",
            where="generator.sync", remedy=f"generator.sync=auto, or {named('model.quantization', 'null')}")
    return Sync("shared" if config.backend == "transformers" else "adapter", f"{quantization} cannot hold a merge")
