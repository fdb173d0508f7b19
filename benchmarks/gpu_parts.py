"""The measurements of benchmarks/gpu.py, which runs each variant in a process of its own.

Models have random weights (benchmarks/random_models.py): speed does not depend on what the weights are, and lengths are
set by the number of stop tokens. A further measurement is a function here with a name in PARTS, and its variants in
gpu.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from gpu import Measurement
from our_side import open_trainer, prompts_in_training_order
from random_models import (
    SHAPES,
    drawn_lengths,
    made_up_groups,
    num_different_tokens,
    stop_token_ids,
    write_checkpoint,
    write_questions,
)
from sampler_side import num_tokens, open_sampler
from vllm_swap import measure as measure_swaps

from rl.config import RunConfig
from rl.configuration.loading import load
from rl.generate.protocol import Request
from rl.paths import project_root
from rl.policy.forward import PolicyForward
from rl.questions.inputs import read_inputs
from rl.run import load_run_policy
from rl.runs.folder import RunFolder
from rl.runs.summary import read_summary
from rl.update import Updater

REWARD = f"{Path(__file__).resolve().with_name('gpu_reward.py')}:length_and_position"
# Dense bfloat16 FLOP/s of the card's tensor cores, from NVIDIA's data sheets.
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclass(frozen=True, slots=True)
class Sizes:
    """questions x group_size completions a step; lengths in tokens; decode_tokens: of every completion in `decode`."""

    questions: int = 64
    group_size: int = 8
    prompt_tokens: int = 150
    mean_tokens: int = 400
    max_tokens: int = 1024
    rank: int = 32
    sequences: tuple[int, ...] = (64, 256, 512)
    decode_tokens: int = 256
    rounds: int = 3
    micro_batch_tokens: int = 8192


TINY = Sizes(
    questions=4, group_size=2, prompt_tokens=10, mean_tokens=12, max_tokens=24, rank=4, sequences=(4, 8),
    decode_tokens=8, rounds=2, micro_batch_tokens=512)


@dataclass(frozen=True, slots=True)
class Case:
    """What a part is measured on. model: a name in SHAPES."""

    model: str
    work: Path
    sizes: Sizes
    is_tiny: bool

    @property
    def on_gpu(self) -> bool:
        return torch.cuda.is_available()

    def config(self, *overrides: str) -> RunConfig:
        """A run on this model with random questions, every group of which trains."""
        sizes, shape = self.sizes, SHAPES[self.model]
        dtype = "bfloat16" if self.on_gpu else "float32"
        checkpoint = write_checkpoint(shape, self.work / f"{self.model}-{dtype}", dtype=getattr(torch, dtype))
        questions = write_questions(self.work / f"{self.model}.jsonl", count=64 if self.is_tiny else 4096,
                                    prompt_tokens=sizes.prompt_tokens)
        stops = stop_token_ids(shape, mean_tokens=sizes.mean_tokens, max_tokens=sizes.max_tokens)
        return load(
            None,
            [
                f"model={checkpoint}", f"model.dtype={dtype}", f"data={questions}", "prompt=question_line",
                "generator=vllm", f"generator.max_sequences={max(sizes.sequences)}", f"lora.rank={sizes.rank}",
                f"lora.alpha={sizes.rank}", f"sampling.questions_per_step={sizes.questions}",
                f"sampling.group_size={sizes.group_size}", f"sampling.max_completion_tokens={sizes.max_tokens}",
                f"sampling.stop_token_ids={stops}", f"rewards.0.use={REWARD}",
                f"optim.micro_batch_tokens={sizes.micro_batch_tokens}", "optim.lr=1e-6",
                f"model.gradient_checkpointing={self._checkpoints()}", f"run_dir={self.work / 'run'}",
                "evaluation.path=null", "watchdog.enabled=false", "tracking.progress=lines",
                "tracking.rollouts_every=0", *([] if self.on_gpu else ["generator.cache_gb=0.2"]), *overrides])

    def _checkpoints(self) -> str:
        """7B's activations do not fit beside the engine."""
        return "full" if SHAPES[self.model].hidden > 2048 else "off"

    def measured(self, part: str, setting: str, quantity: str, value: float | None, problem: str = "") -> Measurement:
        return Measurement(part, self.model, setting, quantity, value, problem)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def decode(case: Case, variant: str) -> Iterator[Measurement]:
    """All completions have the same length: no stop tokens, so that the number of sequences does not fall while they
    decode."""
    sizes = case.sizes
    way, rank = (
        ("merge", sizes.rank)
        if variant == "merged"
        else ("adapter", sizes.rank // 2 if variant == "half_rank" else sizes.rank))
    config = case.config(
        f"generator.sync={way}", f"lora.rank={rank}", f"lora.alpha={rank}", "sampling.stop_token_ids=[]")
    with open_sampler(config) as side:
        parameters = dataclasses.replace(side.parameters, max_completion_tokens=sizes.decode_tokens)
        for state in ("base weights", "merged weights") if way == "merge" else (f"adapter r{rank}",):
            if state != "base weights":
                side.nudge()
                side.generator.take_over(side.policy, 1)
            for count in sizes.sequences:
                speeds = []
                for number in range(sizes.rounds + 1):
                    requests = [
                        Request(
                            side.inputs.prompts[(number * count + i) % len(side.inputs.prompts)], (1000 * number + i,))
                        for i in range(count)]
                    started = time.perf_counter()
                    tokens = num_tokens(side.generator.generate(requests, parameters))
                    speeds.append(tokens / (time.perf_counter() - started))
                yield case.measured("decode", f"{state}, {count} sequences", "tokens/s", statistics.median(speeds[1:]))


def swap(case: Case, variant: str) -> Iterator[Measurement]:
    with open_sampler(case.config(f"generator.sync={variant}")) as side:
        found = measure_swaps(side, case.sizes.rounds)
    yield case.measured("swap", variant, "take over, s", found.take_over_s)
    yield case.measured("swap", variant, "first token after, s", found.first_token_s)
    yield case.measured("swap", variant, "token after that, s", found.next_token_s)


def train(case: Case, variant: str) -> Iterator[Measurement]:
    setting = {"lora": "LoRA", "padded": "LoRA, padded rows", "selective": "LoRA, selective recomputation",
               "recomputed": "LoRA, full recomputation", "full": "all weights"}[variant]
    if variant == "full" and SHAPES[case.model].hidden > 2048:
        yield case.measured("train", setting, "", None, "left out: 16 bytes a parameter do not fit one GPU")
        return
    overrides = {"padded": "model.attention=sdpa", "selective": "model.gradient_checkpointing=selective",
                 "recomputed": "model.gradient_checkpointing=full"}
    config = case.config(
        f"lora.enabled={str(variant != 'full').lower()}", overrides.get(variant, "model.attention=auto"))
    accelerator = Accelerator(mixed_precision="no", cpu=not case.on_gpu)
    policy = load_run_policy(config, read_inputs(config), accelerator)
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values(), lr=config.optim.lr, fused=True)
    forward, prepared = accelerator.prepare(PolicyForward(policy, temperature=1.0), optimizer)
    updater = Updater(config, accelerator, forward, prepared, pad_token_id=policy.eos_token_ids[0])
    sizes, vocabulary = case.sizes, SHAPES[case.model].vocabulary
    lengths = drawn_lengths(
        sizes.questions * sizes.group_size, mean_tokens=sizes.mean_tokens, max_tokens=sizes.max_tokens)
    groups = made_up_groups(sizes.questions, sizes.group_size, sizes.prompt_tokens, lengths, vocabulary)
    seconds = []
    for _ in range(case.sizes.rounds + 1):
        synchronize()
        started = time.perf_counter()
        updater.update(groups, step=0, policy_version=0)
        synchronize()
        seconds.append(time.perf_counter() - started)
    update_s = statistics.median(seconds[1:])
    num_tokens = num_different_tokens(groups)  # what is computed more than once is no use
    num_parameters = sum(p.numel() for name, p in policy.causal_lm.named_parameters() if "lora_" not in name)
    yield case.measured("train", setting, "different tokens/s, prompts included", num_tokens / update_s)
    yield case.measured("train", setting, "update, s", update_s)
    yield from _peaks(case, setting, (6 if variant == "full" else 4) * num_parameters * num_tokens / update_s)


def _peaks(case: Case, setting: str, flops: float) -> list[Measurement]:
    """Share of the card's peak, and memory; neither is known on a CPU."""
    if not case.on_gpu:
        return [case.measured("train", setting, "share of the bf16 peak", None, "no GPU")]
    name = torch.cuda.get_device_name()
    peak = next((value for card, value in PEAK_FLOPS.items() if all(word in name for word in card.split())), None)
    share = case.measured("train", setting, f"share of {name}'s bf16 peak", flops / peak) if peak else \
        case.measured("train", setting, "share of the bf16 peak", None, f"unknown for {name}: add it to PEAK_FLOPS")
    return [share, case.measured("train", setting, "peak memory, GB", torch.cuda.max_memory_allocated() / 1e9)]


def step(case: Case, variant: str) -> Iterator[Measurement]:
    config = case.config(f"steps={case.sizes.rounds + 1}")
    with open_trainer(config, cpu=not case.on_gpu) as ours:
        for _ in range(case.sizes.rounds + 1):
            ours.trainer.step()
        lines = [json.loads(line) for line in ours.parts.folder.metrics_file.read_text().splitlines()][1:]
        if case.on_gpu:
            yield case.measured("step", "", "trainer's peak memory, GB", torch.cuda.max_memory_allocated() / 1e9)
    for name in ("generate", "reward", "train", "sync", "step"):
        yield case.measured("step", "", f"{name}, s", statistics.median(line[f"{name}_s"] for line in lines))
    for name, key in (("completion tokens", "tokens/sampled"), ("groups trained", "groups/trained"),
                      ("mean of the trainer's - sampler's logprob, absolute", "mismatch/mean")):
        yield case.measured("step", "", name, statistics.mean(line[key] for line in lines))


def trl(case: Case, variant: str) -> Iterator[Measurement]:
    from gpu_trl import grpo_config, measure  # imports TRL, which takes its time

    setting = f"gradient checkpointing {variant}"
    if not case.on_gpu:
        yield case.measured(
            "trl", setting, "", None, "TRL 1.16's colocate mode fails on a CPU: it samples with transformers here")
    config = case.config()
    inputs = read_inputs(config)
    rounds = case.sizes.rounds + 1
    arguments = grpo_config(
        config, int(inputs.tokenizer.eos_token_id), steps=rounds, on_gpu=case.on_gpu, checkpointing=variant == "on",
        micro_batch=4 if case.is_tiny else 8, output_dir=case.work / "trl")
    found = measure(config, inputs.tokenizer, prompts_in_training_order(config, inputs, rounds), arguments)
    yield case.measured("trl", setting, "step, s", statistics.median(each.seconds for each in found[1:]))
    mean_tokens = statistics.mean(each.completion_tokens for each in found[1:])
    yield case.measured("trl", setting, "completion tokens", mean_tokens)
    if case.on_gpu:
        yield case.measured("trl", setting, "trainer's peak memory, GB", torch.cuda.max_memory_allocated() / 1e9)


def run(case: Case, variant: str) -> Iterator[Measurement]:
    """The shipped configurations as they are; tiny: two steps on models/tiny-arith."""
    folder = RunFolder(case.work / f"smollm2_{variant}")
    words = ["--config", f"configs/smollm2_{variant}.yaml", f"run_dir={folder.path}"]
    if case.is_tiny:
        words += [
            "steps=2", "model=models/tiny-arith", "prompt=tiny_chain_sum", "sampling.questions_per_step=4",
            "sampling.group_size=4", "sampling.max_completion_tokens=48", "evaluation.num_questions=8",
            "evaluation.samples=2", "generator.cache_gb=0.2"]
    subprocess.run([sys.executable, "-m", "rl.train", *words], cwd=project_root(), check=True, stdout=sys.stderr)
    summary = read_summary(folder)
    for name, held_out in (("before", summary.held_out_before), ("after", summary.held_out_after)):
        for metric, interval in (held_out or {}).items():
            yield case.measured("run", variant, f"{metric} {name}", interval.value)
    yield case.measured("run", variant, f"wall time of {summary.steps} steps and the evaluations, s", summary.wall_s)


PARTS = {"decode": decode, "swap": swap, "train": train, "step": step, "trl": trl, "run": run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("variant")
    parser.add_argument("model")
    parser.add_argument("rows_file", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    case = Case(arguments.model, arguments.work, TINY if arguments.tiny else Sizes(), arguments.tiny)
    with arguments.rows_file.open("a") as stream:
        for row in PARTS[arguments.part](case, arguments.variant):
            stream.write(json.dumps(dataclasses.asdict(row)) + "\n")
            stream.flush()  # what is measured is kept where the rest is cut


if __name__ == "__main__":
    main()
