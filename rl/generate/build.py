"""Which class serves `generator.backend`. Each back end is imported only when it is asked for."""

from __future__ import annotations

import warnings

from rewards.errors import named
from rl.config import GeneratorSection, SamplingSection
from rl.errors import GeneratorError
from rl.generate.generator_plan import GeneratorPlan, logprobs_mode
from rl.generate.protocol import Generator
from rl.generate.vllm_engine import INSTALL_ON_GPU, check_version, installed_version, room_for_rank
from rl.generate.vllm_versions import check_nf4
from rl.generate.weight_sync import choose_sync
from rl.policy.policy import Policy, has_fused_experts, lora_rank

ENGINE_FROM_PARAMETERS = 500_000_000  # from here on the embedded sampler on a GPU is told to be slow


def check_generator(
    config: GeneratorSection, sampling: SamplingSection, policy: Policy, *, on_gpu: bool
) -> None:
    """Raises what `build_generator` would raise, as far as it can be told without starting or reaching anything.
    on_gpu: where the policy, which need not have weights, trains."""
    sync = choose_sync(config, policy, on_gpu=on_gpu)
    if config.backend != "transformers" and sync.way == "adapter":
        room_for_rank(lora_rank(policy))
    if config.backend == "vllm" and sync.way == "merge" and has_fused_experts(policy):
        raise GeneratorError(
            "merge, but this model is a mixture of experts, whose weights have other names in the trainer than in vLLM",
            where="generator.sync", remedy=(
                f"{'generator.sync=adapter, or ' if policy.is_adapter else ''}generator.backend=vllm_server, which "
                "reads a checkpoint"))
    if config.backend == "vllm" and policy.quantization is not None:
        check_nf4(installed_version(), on_gpu=on_gpu)
        if config.sleep == "discard":
            raise GeneratorError(
                "discard, but the trainer's weights in 4 bits are not those that vLLM reads", where="generator.sleep",
                remedy=f"generator.sleep=offload, or {named('model.quantization', 'null')}")
    check_backend(config, sampling, float32_head=policy.has_float32_head)
    warn_of_slow_sampler(config, policy.causal_lm.num_parameters(), on_gpu=on_gpu)


def warn_of_slow_sampler(config: GeneratorSection, num_parameters: int, *, on_gpu: bool) -> None:
    """Warns where a GPU decodes a large model without an engine."""
    if config.backend == "transformers" and on_gpu and num_parameters > ENGINE_FROM_PARAMETERS:
        warnings.warn(
            f"{named('generator.backend', 'transformers')} decodes {num_parameters / 1e9:.1f}B parameters without an "
            f"engine, many times slower than vLLM. Remedy: {named('generator.backend', 'vllm')} ({INSTALL_ON_GPU})",
            stacklevel=2)


def check_backend(config: GeneratorSection, sampling: SamplingSection, *, float32_head: bool) -> None:
    """Raises GeneratorError where what is installed and set on this machine does not serve the back end; needs no
    model. float32_head: whether model.head_dtype asks for one."""
    if config.backend == "transformers":
        return
    logprobs_mode(sampling)
    if config.backend == "vllm":
        check_version(float32_head=float32_head)
    else:
        from rl.generate.servers.client import read_key

        read_key(config.api_key_env)


def build_generator(config: GeneratorSection, policy: Policy, plan: GeneratorPlan | None = None) -> Generator:
    """The generator that the configuration names, sampling from `policy`'s present weights as version 0.

    plan: for vLLM. Raises GeneratorError or PolicyError, with the remedy, where it cannot be had."""
    generator = open_generator(config, policy, plan)
    try:
        generator.take_over(policy, 0)
    except BaseException:
        generator.close()
        raise
    return generator


def open_generator(config: GeneratorSection, policy: Policy, plan: GeneratorPlan | None = None) -> Generator:
    """The generator that the configuration names, before it is given any weights: engine or servers are there, and
    nothing was written. plan: for vLLM. Raises GeneratorError or PolicyError, with the remedy, where it cannot be had.
    """
    sync = choose_sync(config, policy)
    generator: Generator
    if config.backend == "transformers":
        from rl.generate.transformers_generator import TransformersGenerator

        generator = TransformersGenerator(policy, merge=sync.way == "merge", max_sequences=config.max_sequences)
    elif config.backend == "vllm":
        from rl.generate.vllm_generator import VllmGenerator

        assert plan is not None
        generator = VllmGenerator(config, policy, plan, sync)
    else:
        from rl.generate.servers.generator import ServerGenerator

        assert plan is not None
        generator = ServerGenerator(config, policy, plan, sync)
    return generator
