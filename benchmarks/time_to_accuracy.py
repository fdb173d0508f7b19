"""How long training takes to a held-out accuracy, ours against TRL's GRPOTrainer, both with the settings of
configs/tiny_grpo.yaml.

    python benchmarks/time_to_accuracy.py [--json] [--side both] [--target 0.95] [--seeds 0 1 2]

Both sides see the same questions in the same order and are evaluated by our evaluator with the same random numbers
(TRL's adapter is merged into our sampler's copy of the model). Evaluation is off the clock, and so are imports, loading
and TRL's preparation: seconds are those of the training steps alone. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from our_side import OurSide, open_trainer, prompts_in_training_order
from trl_side import TrlStep, train

from rl.config import RunConfig
from rl.configuration.loading import load

CONFIG = Path("configs/tiny_grpo.yaml")


@dataclass(frozen=True, slots=True)
class Run:
    """seconds: of the training steps until the evaluation that reached the target, or of all steps where none did (then
    reached is False). accuracy: of the last evaluation."""

    side: str
    seed: int
    reached: bool
    steps: int
    seconds: float
    accuracy: float


class Judge:
    """Adds up the training seconds and evaluates every few steps; says when to stop."""

    def __init__(self, ours: OurSide, target: float, every: int, last: int) -> None:
        self._ours = ours
        self._target, self._every, self._last = target, every, last
        self.steps, self.seconds, self.accuracy = 0, 0.0, 0.0

    def is_enough(self, seconds: float, hand_over: Callable[[], None]) -> bool:
        """Counts a step that took `seconds`. hand_over: brings the present weights to the evaluator's sampler."""
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds
        if self.steps % self._every == 0 or self.steps == self._last:
            hand_over()
            held_out, generator = self._ours.parts.held_out, self._ours.parts.generator
            assert held_out is not None
            self.accuracy = held_out.evaluate(generator, samples=2).accuracy.value
        return self.accuracy >= self._target or self.steps == self._last

    def verdict(self, side: str, seed: int) -> Run:
        return Run(side, seed, self.accuracy >= self._target, self.steps, self.seconds, self.accuracy)


def run_ours(config: RunConfig, target: float, every: int) -> Run:
    with open_trainer(config) as ours:
        judge = Judge(ours, target, every, config.steps)
        enough = False
        while not enough:
            started_s = time.perf_counter()
            ours.trainer.step()
            # The step itself has handed the new weights to the sampler, on the clock.
            enough = judge.is_enough(time.perf_counter() - started_s, hand_over=lambda: None)
        return judge.verdict("ours", config.seed)


def run_trl(config: RunConfig, target: float, every: int, micro_batch: int, output_dir: Path) -> Run:
    """Our side is built too, for its evaluator and its sampler; it does not train."""
    with open_trainer(config) as ours:
        judge = Judge(ours, target, every, config.steps)

        def after_step(theirs: TrlStep) -> bool:
            policy = dataclasses.replace(ours.parts.policy, model=theirs.model)
            return judge.is_enough(
                theirs.seconds, hand_over=lambda: ours.parts.generator.take_over(policy, theirs.number))

        train(
            config, ours.inputs.tokenizer, prompts_in_training_order(config, ours.inputs, config.steps),
            steps=config.steps, micro_batch=micro_batch, output_dir=output_dir, after_step=after_step)
        return judge.verdict("trl", config.seed)


def ratio(runs: list[Run]) -> float | None:
    """Median seconds of ours / median seconds of TRL's; None unless both sides ran and all runs reached the target."""
    seconds = {side: [run.seconds for run in runs if run.side == side] for side in ("ours", "trl")}
    if not all(seconds.values()) or not all(run.reached for run in runs):
        return None
    return statistics.median(seconds["ours"]) / statistics.median(seconds["trl"])


def table(runs: list[Run], arguments: argparse.Namespace) -> str:
    lines = [
        (
            f"held-out accuracy (avg@2) of {arguments.target}, evaluated every {arguments.every} steps, at most "
            f"{arguments.steps} steps"),
        "", f"{'side':<6} {'seed':>4} {'reached':>8} {'steps':>6} {'training s':>11} {'accuracy':>9}"]
    lines += [
        f"{run.side:<6} {run.seed:4} {'yes' if run.reached else 'no':>8} {run.steps:6} {run.seconds:11.1f} "
        f"{run.accuracy:9.3f}"
        for run in runs]
    value = ratio(runs)
    return "\n".join([*lines, "", "ratio of the medians, ours / TRL: " + ("none" if value is None else f"{value:.3f}")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--side", choices=("ours", "trl", "both"), default="both")
    parser.add_argument("--target", type=float, default=0.95, help="held-out accuracy to reach (default 0.95)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60, help="most training steps (default 60)")
    parser.add_argument("--every", type=int, default=5, help="steps between evaluations (default 5)")
    parser.add_argument("--questions", type=int, default=256, help="held-out questions (default 256)")
    parser.add_argument(
        "--trl-micro-batch", type=int, default=256, help="sequences per forward pass of TRL (default 256: all)")
    arguments = parser.parse_args()
    sides = ("ours", "trl") if arguments.side == "both" else (arguments.side,)
    runs: list[Run] = []
    # TRL prints a summary of its training.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for seed in arguments.seeds:
            for side in sides:
                place = Path(folder) / f"{side}-{seed}"
                config = load(
                    CONFIG,
                    [
                        f"run_dir={place}", f"seed={seed}", f"steps={arguments.steps}", "model.dtype=float32",
                        "optim.schedule=constant", "tracking.progress=off",
                        f"evaluation.num_questions={arguments.questions}"])
                run = (run_ours(config, arguments.target, arguments.every) if side == "ours" else
                       run_trl(config, arguments.target, arguments.every, arguments.trl_micro_batch, place / "trl"))
                print(run)
                runs.append(run)
    if arguments.json:
        print(
            json.dumps(
                {"target": arguments.target, "ratio": ratio(runs), "runs": [dataclasses.asdict(run) for run in runs]}))
    else:
        print(table(runs, arguments))


if __name__ == "__main__":
    main()
