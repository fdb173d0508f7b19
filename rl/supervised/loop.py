"""What happens around each update of a warm-up: metrics, display, held-out loss and accuracy, and what a checkpoint
needs beside TRL's own files. A callback of the transformers Trainer; the update itself is TRL's
(rl/supervised/trainer.py).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from rl.evaluation.held_out import Evaluation, HeldOut
from rl.generate.protocol import Generator
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.policy import Policy
from rl.ranks import first_given, gather_shares, share_of_rank
from rl.runs.folder import write_atomically
from rl.runs.intervals import Interval
from rl.runs.progress import Progress
from rl.runs.tracking import HELD_OUT_ACCURACY, HELD_OUT_LOSS, LOSS, TRAINED_TOKENS_PER_S, MetricsLog
from rl.supervised.config import WarmupConfig
from rl.supervised.solutions import SolutionRow

STATE_FILE = "warmup_state.json"
"""In each checkpoint, written last: a checkpoint without it was cut by a kill."""


@dataclass(frozen=True, slots=True)
class HeldOutResult:
    """loss: nats per completion token. Each None where there is nothing to compute it from."""

    loss: float | None
    accuracy: dict[str, dict[str, float]] | None

    @property
    def intervals(self) -> dict[str, Interval] | None:
        return None if self.accuracy is None else {name: Interval(**ends) for name, ends in self.accuracy.items()}


@dataclass(frozen=True, slots=True)
class WarmupState:
    """step: updates done. position: bytes of metrics.jsonl at that step. digest: of the data. teacher: digests of its
    weights."""

    step: int
    position: int
    digest: str
    before: dict[str, Any] | None
    teacher: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoopParts:
    """metrics: None on ranks other than the main one. stop_requested: the name of a signal that asked the warm-up to
    stop, or None."""

    policy: Policy
    generator: Generator | None
    held_out: HeldOut | None
    held_out_rows: Sequence[SolutionRow]
    calculator: LogprobCalculator
    metrics: MetricsLog | None
    progress: Progress
    digest: str
    teacher: dict[str, str]
    stop_requested: Callable[[], str | None]
    rank: int
    num_ranks: int


@dataclass(slots=True)
class Seen:
    """What the loop has found so far. stopped_by: the signal that ended it early."""

    before: HeldOutResult | None = None
    after: HeldOutResult | None = None
    stopped_by: str | None = None
    num_tokens: float = 0.0
    step_began: float = field(default_factory=time.perf_counter)


class WarmupLoop(TrainerCallback):
    def __init__(self, config: WarmupConfig, parts: LoopParts, resumed: WarmupState | None = None) -> None:
        self._config, self._parts = config, parts
        self.seen = Seen(before=None if resumed is None or resumed.before is None else HeldOutResult(**resumed.before))
        self._is_resumed = resumed is not None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._is_resumed:
            self.seen.before = self._evaluate(0, self._config.evaluation.samples)
        self.seen.step_began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        """After each update: the Trainer reports every step (logging_steps=1), before it saves."""
        if logs is None or "loss" not in logs:
            return control
        parts, seen, step = self._parts, self.seen, state.global_step
        step_s = time.perf_counter() - seen.step_began
        numbers = {LOSS: logs["loss"], "optim/grad_norm": logs["grad_norm"], "optim/lr": logs["learning_rate"],
                   "policy/token_entropy": logs["entropy"], "loss/token_accuracy": logs["mean_token_accuracy"]}
        metrics = {name: float(value) for name, value in numbers.items()}
        if not (math.isfinite(metrics[LOSS]) and math.isfinite(metrics["optim/grad_norm"])):
            raise FloatingPointError(
                f"step {step}: the loss is {metrics[LOSS]} and the gradient's norm {metrics['optim/grad_norm']}; "
                "expected finite numbers. Remedy: a lower optim.lr, or optim.warmup_steps")
        metrics |= {TRAINED_TOKENS_PER_S: (float(logs["num_tokens"]) - seen.num_tokens) / step_s, "step_s": step_s}
        seen.num_tokens = float(logs["num_tokens"])
        if parts.metrics is not None:
            parts.metrics.log(step, "train", metrics)
        parts.progress.step(step, metrics)
        every = self._config.evaluation.every
        if step == state.max_steps:
            seen.after = self._evaluate(step, self._config.evaluation.samples)
        elif every and step % every == 0:
            self._evaluate(step, self._config.evaluation.samples_during)
        signal = first_given(parts.stop_requested(), parts.num_ranks, "end the update")
        if signal is not None and step < state.max_steps:
            seen.stopped_by, control.should_save, control.should_training_stop = signal, True, True
        seen.step_began = time.perf_counter()
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._parts.metrics is not None:
            before = None if self.seen.before is None else asdict(self.seen.before)
            saved = WarmupState(
                state.global_step, self._parts.metrics.position(), self._parts.digest, before, self._parts.teacher)
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / STATE_FILE, json.dumps(asdict(saved)) + "\n")

    def _evaluate(self, step: int, samples: int) -> HeldOutResult:
        """Held-out loss and accuracy of the present weights, into metrics and display; collective over ranks."""
        parts, started = self._parts, time.perf_counter()
        loss = held_out_loss(parts.calculator, parts.held_out_rows, parts.rank, parts.num_ranks)
        evaluation: Evaluation | None = None
        if parts.held_out is not None:
            assert parts.generator is not None
            parts.generator.take_over(parts.policy, step)
            evaluation = parts.held_out.evaluate(parts.generator, samples)
        metrics = ({} if loss is None else {HELD_OUT_LOSS: loss}) | ({} if evaluation is None else evaluation.metrics())
        if metrics and parts.metrics is not None:
            parts.metrics.log(step, "eval", metrics | {"evaluate_s": time.perf_counter() - started})
        if loss is not None:
            parts.progress.message(f"held-out loss at step {step}: {loss:.4f}")
        if evaluation is not None:
            interval = evaluation.accuracy
            assert metrics[HELD_OUT_ACCURACY] == interval.value
            parts.progress.held_out(step, interval.value, interval.low, interval.high)
        accuracies = None if evaluation is None else {
            name: asdict(interval) for name, interval in evaluation.intervals.items()}
        return HeldOutResult(loss, accuracies)


def held_out_loss(
    calculator: LogprobCalculator, rows: Sequence[SolutionRow], rank: int = 0, num_ranks: int = 1
) -> float | None:
    """- sum of ln pi(token) / number of tokens, over the completion tokens of all rows, in nats; None without rows.

    calculator: at temperature 1."""
    if not rows:
        return None
    share = share_of_rank(rows, rank, num_ranks)
    found = calculator.logprobs([(row.prompt.token_ids, row.completion_ids) for row in share])
    mine = [
        (float(item.logprobs_N.double().sum()), len(row.completion_ids))
        for row, item in zip(share, found, strict=True)]
    sums = gather_shares(mine, num_ranks, "compute the held-out loss")
    return -sum(total for total, _ in sums) / sum(count for _, count in sums)
