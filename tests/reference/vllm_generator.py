"""The in-process vLLM sampler on models/tiny-arith, for tests; needs vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl.config import GeneratorSection, ModelSection
from rl.generate.build import build_generator
from rl.generate.generator_plan import GeneratorPlan, cache_bytes_per_token
from rl.generate.vllm_generator import VllmGenerator
from rl.policy.policy import Policy
from rl.questions.inputs import load_model_config

TINY = "models/tiny-arith"


def generator_plan(path: str = TINY, **changes: Any) -> GeneratorPlan:
    """For prompts and completions of 160 tokens together, float32."""
    values: dict[str, Any] = dict(
        max_tokens=160, cache_bytes_per_token=cache_bytes_per_token(load_model_config(ModelSection(path=path)), 4),
        trainer_bytes=0, base_path=path, revision=None, trust_remote_code=False, logprobs_mode="processed_logprobs",
        num_ranks=1, seed=0, run_dir=Path())
    return GeneratorPlan(**(values | changes))


def vllm_generator(policy: Policy, plan: GeneratorPlan | None = None, **settings: Any) -> VllmGenerator:
    """An engine with the policy's present weights; `settings` of GeneratorSection."""
    generator = build_generator(
        GeneratorSection(backend="vllm", max_sequences=64, **settings), policy, plan or generator_plan())
    assert isinstance(generator, VllmGenerator)
    return generator
