"""The parts of a run on models/tiny-arith, built as rl/run.py builds them, for tests of what surrounds the model."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from rl.collect import Collected, Collector
from rl.config import RunConfig
from rl.configuration.loading import load
from rl.generate.protocol import Generator, Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.forward import PolicyForward
from rl.policy.policy import Policy, load_policy
from rl.questions.inputs import Inputs, read_inputs
from rl.records import Group, Prompt, ScoredGroup, TrainingGroup
from rl.runs.folder import RunFolder
from rl.runs.progress import open_progress
from rl.runs.tracking import MetricsLog
from rl.runs.watchdog import Watchdog
from rl.scoring.rewarding import build_rewards
from rl.selection import Selection
from rl.trainer import Parts, Trainer
from rl.update import Updater

ANSWERED = "models/tiny-arith/questions/train_with_answers.jsonl"
HELD_OUT = "models/tiny-arith/questions/held_out.jsonl"


def tiny_config(*overrides: str) -> RunConfig:
    """GRPO with gold answers on a few questions, float32; `overrides` as on the command line."""
    return load(
        None,
        [
            f"data.path={ANSWERED}", "data.limit=24", "rewards.0.use=rewards.accuracy:accuracy", "model.dtype=float32",
            "lora.rank=4", "sampling.questions_per_step=4", "sampling.group_size=4",
            "sampling.max_completion_tokens=24", "steps=4", *overrides])


@functools.cache
def inputs() -> Inputs:
    """Tokenizer, rewards and prompts of the tiny configuration, held-out ones included."""
    return read_inputs(tiny_config(f"evaluation.path={HELD_OUT}", "evaluation.num_questions=8"))


def prompts(count: int) -> list[Prompt]:
    """The first training prompts; their lengths differ."""
    return list(inputs().prompts[:count])


def tiny_policy(config: RunConfig | None = None, *, adapter_scale: float = 0.0) -> Policy:
    """The policy of a run's start; with an `adapter_scale` its adapter's B is drawn from N(0, scale) in the place of
    0."""
    config = config or tiny_config()
    policy = load_policy(
        config.model, config.lora, inputs().tokenizer, seed=config.seed, device=torch.device("cpu"),
        keep_reference=config.loss.kl_weight > 0)
    if adapter_scale:
        change_adapter(policy, adapter_scale)
    return policy


@torch.no_grad()
def change_adapter(policy: Policy, scale: float, seed: int = 7) -> None:
    """Overwrite the adapter's B with numbers from N(0, scale)."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in policy.trainable_parameters().items():
        if "lora_B" in name:
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))


def sampled_groups(
    policy: Policy, count: int, *, size: int = 4, max_tokens: int = 24, version: int = 0, temperature: float = 1.0
) -> list[Group]:
    """`count` groups that the policy itself sampled; the same on each call."""
    generator = TransformersGenerator(policy, merge=False, max_sequences=64)
    generator.take_over(policy, version)
    requests = [Request(prompt, tuple(range(100 * i, 100 * i + size))) for i, prompt in enumerate(prompts(count))]
    return generator.generate(requests, SamplingParameters(temperature, 1.0, 0, max_tokens))


def with_advantages(groups: Sequence[Group], *, zero: Sequence[int] = (), seed: int = 3) -> list[TrainingGroup]:
    """Training groups with random advantages of mean 0; those whose number is in `zero` get zeros."""
    numbers = random.Random(seed)
    batch = []
    for index, group in enumerate(groups):
        size = len(group.rollouts)
        raw = [numbers.gauss(0.0, 1.0) for _ in range(size)]
        mean = sum(raw) / size
        scored = ScoredGroup(group, tuple(raw), {}, (None,) * size, tuple(range(size)), 0.0, {})
        batch.append(TrainingGroup(scored, (0.0,) * size if index in zero else tuple(value - mean for value in raw)))
    return batch


def as_collected(groups: Sequence[Group]) -> Collected:
    """A step in which exactly these groups were sampled and kept."""
    scored = tuple(item.scored for item in with_advantages(groups))
    return Collected(scored, Selection(scored, ()), scored, 0)


def make_updater(config: RunConfig, policy: Policy, accelerator: Accelerator | None = None) -> Updater:
    """An Updater with AdamW over the policy's trainable parameters, prepared by accelerate."""
    accelerator = accelerator or Accelerator(cpu=True)
    forward = PolicyForward(policy, temperature=config.sampling.temperature)
    optimizer = torch.optim.AdamW(
        policy.trainable_parameters().values(), lr=config.optim.lr, betas=config.optim.betas, eps=config.optim.eps,
        weight_decay=config.optim.weight_decay)
    prepared_forward, prepared_optimizer = accelerator.prepare(forward, optimizer)
    return Updater(
        config, accelerator, prepared_forward, prepared_optimizer, pad_token_id=policy.eos_token_ids[0])


def make_trainer(
    config: RunConfig, policy: Policy, generator: Generator, folder: Path, *, metrics: MetricsLog | None = None,
    questions: Sequence[Prompt] | None = None,
) -> Trainer:
    """A trainer of `policy` that samples with `generator`, on all questions of the tiny configuration; no evaluation,
    no display."""
    accelerator = Accelerator(cpu=True)
    updater = make_updater(config, policy, accelerator)
    rewards = build_rewards(config.rewards, config.sampling.max_completion_tokens)
    asked = replace(inputs(), prompts=tuple(questions or inputs().prompts), rewards=rewards, stop_strings=())
    with open_progress("off", "test", config.steps, first_step=0, is_main=True) as progress:
        return Trainer(
            config,
            Parts(
                accelerator=accelerator, policy=policy, generator=generator, teacher=None,
                optimizer=updater._optimizer, updater=updater,
                collector=Collector(config, asked, generator, rank=0, num_ranks=1), held_out=None, benchmarks=None,
                watchdog=Watchdog(config.watchdog), data={}, folder=RunFolder(folder), metrics=metrics, rollouts=None,
                progress=progress, stop_requested=lambda: None))


def trained(policy: Policy) -> dict[str, torch.Tensor]:
    """A copy of every trained weight by name."""
    return {name: parameter.detach().clone() for name, parameter in policy.trainable_parameters().items()}


@torch.no_grad()
def literal_logprobs(
    policy: Policy, prompt: Sequence[int], completion: Sequence[int], temperature: float = 1.0
) -> torch.Tensor:
    """ln softmax(logits / temperature) of each completion token, from one full forward without cache or padding:
    [T]."""
    was_training = policy.model.training
    policy.model.eval()
    logits_LV = policy.causal_lm(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].float()
    policy.model.train(was_training)
    logprobs_LV = torch.log_softmax(logits_LV / temperature, dim=-1)
    return torch.stack([logprobs_LV[len(prompt) - 1 + i, token] for i, token in enumerate(completion)])
