"""How long one training step takes, ours against TRL's GRPOTrainer: the same work, step by step in turn, in one
process.

    python benchmarks/step_vs_trl.py [--json] [--model tiny|smollm2] [--steps 10] [--questions 8] [--group-size 8]

--model smollm2 (`make smollm2`) is a real language model with few-shot prompts of about 180 tokens: 4 questions x 8 and
two steps by default, some minutes.

A step is sampling, rewards, loss, gradients and optimiser; ours also hands the new weights to its sampler and writes
metrics and rollouts. --json prints one line {"ours_s", "trl_s", "ratio"}: medians in seconds, ratio = ours / TRL. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from our_side import OurSide, open_trainer, prompts_in_training_order
from trl_side import TrlStep, num_trainable, train

from rl.config import RunConfig
from rl.configuration.loading import load

CONFIGS = {"tiny": Path("configs/tiny_grpo.yaml"), "smollm2": Path("configs/smollm2_grpo.yaml")}
DEFAULTS = {"tiny": {"steps": 10, "warmup": 2, "questions": 8}, "smollm2": {"steps": 2, "warmup": 1, "questions": 4}}
EVERY_GROUP_TRAINS = f"{Path(__file__).resolve().with_name('step_reward.py')}:accuracy_and_position"
ACCURACY = "rewards.accuracy:accuracy"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Medians over the measured steps, in seconds. tokens: mean completion tokens per step. trained: mean groups per
    step that trained on our side. between_s: mean time per step that is on neither clock."""

    ours_s: float
    trl_s: float
    our_tokens: float
    trl_tokens: float
    trained: float
    between_s: float

    @property
    def ratio(self) -> float:
        return self.ours_s / self.trl_s

    def as_json(self) -> dict[str, float]:
        return {"ours_s": round(self.ours_s, 5), "trl_s": round(self.trl_s, 5), "ratio": round(self.ratio, 4)}


def measure(config: RunConfig, *, steps: int, warmup: int, output_dir: Path) -> Measurement:
    """TRL's loop runs; after each of its steps one of ours runs on the same questions. The first `warmup` of each do
    not count."""
    rounds: list[tuple[TrlStep, float]] = []
    finished_s = 0.0
    num_sequences = config.sampling.questions_per_step * config.sampling.group_size
    with open_trainer(config) as ours:
        def one_of_ours(theirs: TrlStep) -> bool:
            nonlocal finished_s
            if not rounds:
                _check_same_size(ours, theirs)
            started_s = time.perf_counter()
            ours.trainer.step()
            finished_s = time.perf_counter()
            rounds.append((theirs, finished_s - started_s))
            return False

        train(
            config, ours.inputs.tokenizer, prompts_in_training_order(config, ours.inputs, warmup + steps),
            steps=warmup + steps, micro_batch=num_sequences, output_dir=output_dir, after_step=one_of_ours)
        lines = [json.loads(line) for line in ours.parts.folder.metrics_file.read_text().splitlines()]
    measured, metrics = rounds[warmup:], lines[warmup:]
    assert len(measured) == len(metrics) == steps
    on_a_clock_s = sum(theirs.seconds + ours_s for theirs, ours_s in measured)
    return Measurement(
        ours_s=statistics.median(ours_s for _, ours_s in measured),
        trl_s=statistics.median(theirs.seconds for theirs, _ in measured),
        our_tokens=statistics.mean(line["tokens/sampled"] for line in metrics),
        trl_tokens=statistics.mean(theirs.completion_tokens for theirs, _ in measured),
        trained=statistics.mean(line["groups/trained"] for line in metrics),
        between_s=(finished_s - measured[0][0].started_s - on_a_clock_s) / steps)


def _check_same_size(ours: OurSide, theirs: TrlStep) -> None:
    sizes = num_trainable(ours.parts.policy.model), num_trainable(theirs.model)
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"we train {sizes[0]:,} parameters and TRL {sizes[1]:,}: the two sides do not do the same work")


def configuration(arguments: argparse.Namespace, reward: str, run_dir: Path) -> RunConfig:
    return load(
        CONFIGS[arguments.model],
        [
            "generator=transformers", "optim.warmup_steps=0", "watchdog.enabled=false", f"run_dir={run_dir}",
            f"steps={arguments.warmup + arguments.steps}",
            f"sampling.questions_per_step={arguments.questions}", f"sampling.group_size={arguments.group_size}",
            f"optim.lr={arguments.lr}", f"rewards.0.use={reward}", "model.dtype=float32", "optim.schedule=constant",
            "evaluation.path=null", "tracking.progress=off"])


def table(rows: dict[str, Measurement], config: RunConfig, arguments: argparse.Namespace) -> str:
    sampling = config.sampling
    lines = [
        (
            f"{config.model.path}, {sampling.questions_per_step} questions x {sampling.group_size} completions of at "
            f"most {sampling.max_completion_tokens} tokens, LoRA r{config.lora.rank}, float32, "
            f"{torch.get_num_threads()} threads, medians of {arguments.steps} steps after {arguments.warmup}"),
        "",
        (
            f"{'reward':<22} {'ours s':>8} {'TRL s':>8} {'ratio':>7} {'our tokens':>11} {'TRL tokens':>11} "
            f"{'trained groups':>15} {'between s':>10}"),
    ]
    for name, row in rows.items():
        lines.append(
            f"{name:<22} {row.ours_s:8.3f} {row.trl_s:8.3f} {row.ratio:7.3f} {row.our_tokens:11.0f} "
            f"{row.trl_tokens:11.0f} {row.trained:11.1f} of {sampling.questions_per_step} {row.between_s:9.4f}")
    return "\n".join(
        [*lines, "", "ratio = ours / TRL; tokens: sampled per step; between: mean time per step on neither clock"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", action="store_true", help="one line of JSON, of the reward under which every group trains")
    parser.add_argument("--model", choices=CONFIGS, default="tiny", help="which configuration's model (default tiny)")
    parser.add_argument("--steps", type=int, help="measured steps of each side (default 10; smollm2: 2)")
    parser.add_argument("--warmup", type=int, help="steps of each side before those (default 2; smollm2: 1)")
    parser.add_argument("--questions", type=int, help="questions per step (default 8; smollm2: 4)")
    parser.add_argument("--group-size", type=int, default=8, help="completions per question (default 8)")
    parser.add_argument(
        "--lr", type=float, default=1e-6,
        help="of both sides (default 1e-6, TRL's own: both policies stay what "
        "they were, so that both sides sample from the same distribution at every step)")
    arguments = parser.parse_args()
    for name, value in DEFAULTS[arguments.model].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    if arguments.steps < 1:
        parser.error(f"--steps {arguments.steps}: expected at least 1")
    rewards = {"every group trains": EVERY_GROUP_TRAINS}
    if not arguments.json and arguments.model == "tiny":
        rewards["accuracy alone"] = ACCURACY
    rows: dict[str, Measurement] = {}
    # TRL prints a summary of its training.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for number, (name, reward) in enumerate(rewards.items()):
            config = configuration(arguments, reward, Path(folder) / f"ours{number}")
            rows[name] = measure(
                config, steps=arguments.steps, warmup=arguments.warmup, output_dir=Path(folder) / f"trl{number}")
    same_work = rows["every group trains"]
    if same_work.trained != arguments.questions:
        raise RuntimeError(
            f"only {same_work.trained} of {arguments.questions} groups trained on our side: not the same work as TRL's")
    print(json.dumps(same_work.as_json()) if arguments.json else table(rows, config, arguments))


if __name__ == "__main__":
    main()
