"""The in-process vLLM sampler on models/tiny-arith, for tests; needs vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.config import GeneratorSection, ModelSection
from rl.generate.build import build_generator
from rl.generate.sampler_plan import SamplerPlan, cache_bytes_per_token
from rl.generate.vllm_generator import VllmGenerator
from rl.policy.policy import Policy
from rl.questions.inputs import load_model_config

TINY = "models/tiny-arith"


def sampler_plan(path: str = TINY, **changes: Any) -> SamplerPlan:
    """For prompts and completions of 160 tokens together, float32."""
    values: dict[str, Any] = dict(
        max_tokens=160, cache_bytes_per_token=cache_bytes_per_token(load_model_config(ModelSection(path=path)), 4),
        trainer_bytes=0, base_path=path, revision=None, trust_remote_code=False, logprobs_mode="processed_logprobs",
        num_ranks=1, seed=0, run_dir=Path())
    return SamplerPlan(**(values | changes))


def vllm_sampler(policy: Policy, plan: SamplerPlan | None = None, **settings: Any) -> VllmGenerator:
    """An engine with the policy's present weights; `settings` of GeneratorSection."""
    generator = build_generator(
        GeneratorSection(backend="vllm", max_sequences=64, **settings), policy, plan or sampler_plan())
    assert isinstance(generator, VllmGenerator)
    return generator
