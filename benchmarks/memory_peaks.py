"""The memory estimate beside what a process really takes: the growth of its resident memory over the loaded policy, in
training (an update of two of the longest micro-batches that the configuration allows) and in sampling (a full batch to
the length limit).

    python benchmarks/memory_peaks.py [--model models/smollm2-135m-instruct] [--tokens 900] [key=value ...]

Linux, on the CPU, a process for each measurement. The model's weights and the libraries are in memory before it begins.
What is freed goes back to the system, as in a run on the CPU; --heap leaves that out, to see the holes that glibc
keeps.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from rl.config import RunConfig
from rl.configuration.loading import load
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.memory.estimate import ANY_TOKEN, MemoryEstimate, estimate_memory, give_back_freed_memory, longest_groups
from rl.optimizer import make_optimizer
from rl.policy.forward import PolicyForward
from rl.policy.policy import Policy, load_policy, resolve_dtype
from rl.questions.inputs import load_model_config, load_tokenizer
from rl.records import Prompt, Question, TrainingGroup
from rl.update import Updater

PROMPT_TOKENS = 40
EVERY_BLOCK = 128 * 2**10  # bytes: where glibc begins
QUIET = ("model.dtype=float32", "sampling.max_completion_tokens=216", "sampling.group_size=8")
CASES: dict[str, tuple[str, ...]] = {
    "LoRA, float32": (),
    "LoRA, bfloat16": ("model.dtype=bfloat16",),
    "LoRA, float32, selective": ("model.gradient_checkpointing=selective",),
    "LoRA, bfloat16, selective": ("model.dtype=bfloat16", "model.gradient_checkpointing=selective"),
    "LoRA, float32, full": ("model.gradient_checkpointing=full",),
    "LoRA, bfloat16, full": ("model.dtype=bfloat16", "model.gradient_checkpointing=full"),
    "all parameters, float32": ("lora.enabled=false",),
    "all parameters, bfloat16": ("lora.enabled=false", "model.dtype=bfloat16"),
}


@dataclass(frozen=True, slots=True)
class Growth:
    """Bytes over the loaded policy, as estimated and as measured."""

    estimated: int
    measured: int

    @property
    def ratio(self) -> float:
        return self.estimated / self.measured


def training_growth(config: RunConfig) -> Growth:
    """Of an update of two such batches after a small one: AdamW's moments are there from the beginning, and gradients
    when the second batch is computed."""
    policy = _load(config)
    updater = _updater(config, policy)
    small, large = (_groups(config, tokens) for tokens in (1, 2 * config.optim.micro_batch_tokens))
    updater.rehearse(small)  # what a first pass loads belongs to the libraries
    before = restart_peak()
    for batch in (small, large):
        updater.update(batch, step=1, policy_version=0)
    estimate = _estimate(config)
    return Growth(estimate.trained - 4 * estimate.num_trained + estimate.activations + estimate.logits,
                  peak_bytes() - before)


def _groups(config: RunConfig, tokens: int) -> list[TrainingGroup]:
    """Of as many of the longest completions as so many tokens are."""
    optim = config.optim.model_copy(update={"micro_batch_tokens": tokens})
    return longest_groups(config.model_copy(update={"optim": optim}), PROMPT_TOKENS)


def sampling_growth(config: RunConfig) -> Growth:
    """Of a batch of generator.max_sequences completions that all reach the length limit."""
    policy = replace(_load(config), eos_token_ids=())
    generator = TransformersGenerator(policy, merge=False, max_sequences=config.generator.max_sequences)
    size = config.sampling.group_size
    prompts = [Prompt(Question(str(i), "", None, {}), "", (ANY_TOKEN,) * PROMPT_TOKENS)
               for i in range(config.generator.max_sequences // size)]
    sampling = SamplingParameters(1.0, 1.0, 0, config.sampling.max_completion_tokens)
    generator.generate([Request(prompts[0], (0,))], replace(sampling, max_completion_tokens=1))
    before = restart_peak()
    generator.generate([Request(prompt, tuple(range(size))) for prompt in prompts], sampling)
    return Growth(_estimate(config).cache, peak_bytes() - before)


def _load(config: RunConfig) -> Policy:
    return load_policy(config.model, config.lora, load_tokenizer(config.model), seed=0, device=torch.device("cpu"),
                       keep_reference=False)


def _updater(config: RunConfig, policy: Policy) -> Updater:
    accelerator = Accelerator(cpu=True)
    forward, optimizer = accelerator.prepare(
        PolicyForward(policy, temperature=1.0), make_optimizer(policy.trainable_parameters().values(), config.optim))
    return Updater(config, accelerator, forward, optimizer, pad_token_id=0)


def _estimate(config: RunConfig) -> MemoryEstimate:
    dtype = resolve_dtype(config.model.dtype, torch.device("cpu"))
    return estimate_memory(config, load_model_config(config.model), PROMPT_TOKENS, bytes_per_weight=dtype.itemsize,
                           on_gpu=False)


def restart_peak() -> int:
    """Bytes resident now, from which the kernel goes on to look for the largest."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(kind: str, overrides: Sequence[str], *, heap: bool = False) -> Growth:
    """kind: training or sampling. heap: with glibc's own way of keeping what is freed; otherwise even the small blocks
    of a small model are given back."""
    if not heap:
        give_back_freed_memory(EVERY_BLOCK)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    config = load(None, [*QUIET, *overrides])
    return training_growth(config) if kind == "training" else sampling_growth(config)


def measure_alone(kind: str, overrides: Sequence[str], *, heap: bool = False) -> Growth:
    """In a process of its own, whose memory nothing else has used: a fork, which imports nothing anew."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (kind, overrides), {"heap": heap})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny-arith", help="folder of a checkpoint (default: %(default)s)")
    parser.add_argument(
        "--tokens", type=int, default=8210,
        help="of a micro-batch; 40 of a prompt and 215 of each completion fill it (default: %(default)s)")
    parser.add_argument("--sequences", type=int, default=256, help="sampled together (default: %(default)s)")
    parser.add_argument("--heap", action="store_true", help="leave malloc as it is")
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    arguments = parser.parse_args()
    sizes = [f"model.path={arguments.model}", f"optim.micro_batch_tokens={arguments.tokens}",
             f"generator.max_sequences={arguments.sequences}", *arguments.overrides]
    print(f"| {arguments.model} | estimated, GB | measured, GB | ratio |\n|---|---|---|---|")
    sampled = {name: CASES[name] for name in ("LoRA, float32", "LoRA, bfloat16")}
    for kind, cases in (("training", CASES), ("sampling", sampled)):
        for name, overrides in cases.items():
            growth = measure_alone(kind, [*overrides, *sizes], heap=arguments.heap)
            print(f"| {kind}: {name} | {growth.estimated / 1e9:.3f} | {growth.measured / 1e9:.3f} "
                  f"| {growth.ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
