"""A configuration -> its sampler and the requests of a step, as a run would make them, without a trainer."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from rl.config import RunConfig
from rl.generate.build import build_generator
from rl.generate.protocol import Generator, Request, SamplingParameters, request_seed, sampling_parameters
from rl.policy.policy import Policy
from rl.questions.inputs import Inputs, read_inputs
from rl.records import Group
from rl.run import Setup, generator_plan, load_run_policy
from rl.runs.folder import RunFolder

# What the benchmarks print is read by programs too; vLLM writes its log to standard output.
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")


@dataclass(frozen=True, slots=True)
class SamplerSide:
    config: RunConfig
    inputs: Inputs
    policy: Policy
    generator: Generator
    parameters: SamplingParameters

    def requests(self, round_number: int) -> list[Request]:
        """The first questions of the file, G seeds each; other seeds in every round."""
        sampling = self.config.sampling
        return [
            Request(
                prompt,
                tuple(
                    request_seed(self.config.seed, "benchmark", round_number, prompt.question.id, sample)
                    for sample in range(sampling.group_size)))
            for prompt in self.inputs.prompts[: sampling.questions_per_step]]

    def nudge(self) -> None:
        """Change the policy a little, as an update does, so that a new version is no copy of the one before."""
        with torch.no_grad():
            for parameter in self.policy.trainable_parameters().values():
                parameter.add_(torch.randn_like(parameter), alpha=1e-4)


@contextlib.contextmanager
def open_sampler(config: RunConfig) -> Iterator[SamplerSide]:
    inputs = read_inputs(config)
    accelerator = Accelerator(mixed_precision="no")
    policy = load_run_policy(config, inputs, accelerator)
    with tempfile.TemporaryDirectory() as folder:
        plan = generator_plan(Setup(config, inputs, accelerator, policy, RunFolder(Path(folder))))
        generator = build_generator(config.generator, policy, plan)
        try:
            yield SamplerSide(
                config, inputs, policy, generator,
                sampling_parameters(config.sampling, inputs.stop_strings, inputs.turn_end_ids))
        finally:
            generator.close()


def num_tokens(groups: Sequence[Group]) -> int:
    return sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
