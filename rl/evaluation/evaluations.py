"""The evaluations of a run that trains: when they are due, what is remembered of them, and which checkpoint is the best
by them.

Held-out questions (rl/evaluation/held_out.py) and benchmarks (rl/evaluation/benchmarks.py) are measured with the run's
own sampler. What they need of the run is handed in: the hand-over of the present version to the sampler, and saving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from rl.config import RunConfig
from rl.evaluation.benchmarks import BenchmarkHistory, LiveBenchmarks, benchmark_metrics
from rl.evaluation.held_out import Evaluation, HeldOut
from rl.generate.protocol import Generator
from rl.runs.intervals import Interval
from rl.runs.progress import Progress
from rl.runs.stopwatch import Stopwatch
from rl.runs.summary import Best
from rl.runs.tracking import MetricsLog
from rl.runs.watchdog import Alarm, Watchdog

BEST_CHECKPOINT = "checkpoints/best"


@dataclass(frozen=True, slots=True)
class EvaluationTools:
    """What is evaluated, by which sampler, and who is told of it. folder: the run's. metrics: None on ranks other than
    the main one."""

    held_out: HeldOut | None
    benchmarks: LiveBenchmarks | None
    generator: Generator
    watchdog: Watchdog
    metrics: MetricsLog | None
    progress: Progress
    folder: Path
    rank: int
    num_ranks: int


@dataclass(frozen=True, slots=True)
class EvaluationsState:
    """before, after: held-out accuracy before the first and after the last step, as {"avg@8": interval}.
    goals_since: what the run raises, of each step since the last evaluation on held-out questions. is_due: the
    evaluation after the last finished step is not complete. best: the best checkpoint so far. right_before: held-out
    questions whose majority was right before the first step; None where that is not known."""

    before: Mapping[str, Interval] | None
    after: Mapping[str, Interval] | None
    goals_since: tuple[float, ...]
    is_due: bool
    benchmarks: BenchmarkHistory
    best: Best | None
    right_before: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "rewards_since_evaluation": list(self.goals_since), "held_out_after": _intervals_to_json(self.after),
            "evaluation_due": self.is_due, "benchmarks": self.benchmarks.to_json(),
            "best": None if self.best is None else asdict(self.best),
            "held_out_before": _intervals_to_json(self.before),
            **({} if self.right_before is None else {"held_out_right_before": list(self.right_before)})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            before=_intervals_from_json(value["held_out_before"]), after=_intervals_from_json(value["held_out_after"]),
            goals_since=tuple(value["rewards_since_evaluation"]), is_due=value.get("evaluation_due", False),
            benchmarks=BenchmarkHistory.from_json(value.get("benchmarks", {})),
            best=None if value["best"] is None else Best(**value["best"]),
            right_before=None if (right := value.get("held_out_right_before")) is None else tuple(right))


class Evaluations:
    """Collective over ranks. hand_over: brings the present version to the sampler. save: writes a checkpoint, the best
    one where it is told so. changed: is called when what a checkpoint holds has changed. repeatable: what is done in it
    leaves the state as it is, which may be saved meanwhile: resumed from there, the run evaluates again."""

    def __init__(
        self, config: RunConfig, tools: EvaluationTools, *, hand_over: Callable[[], None],
        save: Callable[[bool], object], changed: Callable[[], None],
        repeatable: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._config, self._tools = config, tools
        self._hand_over, self._save, self._changed, self._repeatable = hand_over, save, changed, repeatable
        self._every = tools.benchmarks.every if tools.benchmarks is not None else {}
        self.load_state(EvaluationsState(None, None, (), False, BenchmarkHistory(), None))

    def state(self) -> EvaluationsState:
        return EvaluationsState(
            self.before, self.after, tuple(self._goals_since), self.is_due, self.benchmarks.copy(), self.best,
            self._right_before)

    def load_state(self, state: EvaluationsState) -> None:
        self._right_before = state.right_before
        self.before, self.after, self.is_due, self.best = state.before, state.after, state.is_due, state.best
        self._goals_since, self.benchmarks = list(state.goals_since), state.benchmarks.copy()
        if self.best is not None and not self._is_chosen_by(self.best.metric):
            self._tools.progress.message(
                f"checkpoints are chosen by {self._config.checkpoint.best_by} from now on; the best so far was "
                f"chosen by {self.best.metric}")
            self.best = None

    def note_goal(self, value: float) -> None:
        """value: what the run raises, in one step."""
        self._goals_since.append(value)

    def step_begins(self) -> None:
        """What was measured after the last step is not that of the run's end."""
        self.after = None

    def step_ends(self, step: int) -> None:
        """step: how many are done."""
        self.is_due = step < self._config.steps and (
            self._is_held_out_due(step) or bool(self.benchmarks.due(self._every, step, is_last=False)))

    def before_run(self) -> None:
        self._evaluate_benchmarks(0)
        if result := self._evaluate_held_out(0, self._config.evaluation.samples):
            self.before = result[0].intervals
            self._right_before = tuple(sorted(result[0].majority_right))
            self._keep_if_best_held_out(0, result[0])
        self._save(False)

    def during_run(self, step: int) -> Alarm | None:
        """All that is due after this step."""
        # Benchmarks first, and while the evaluation counts as due: a run that is saved behind them goes on with the
        # held-out questions.
        self._evaluate_benchmarks(step)
        result = (self._evaluate_held_out(step, self._config.evaluation.samples_during)
                  if self._is_held_out_due(step) else None)
        self.is_due = False
        if result is None:
            return None
        self._keep_if_best_held_out(step, result[0])
        return result[1]

    def after_run(self, step: int) -> Alarm | None:
        """Nothing where a run that had ended is resumed: metrics.jsonl has this evaluation already."""
        self._evaluate_benchmarks(step, is_last=True)
        if self.after is not None or (result := self._evaluate_held_out(step, self._config.evaluation.samples)) is None:
            return None
        self.after = result[0].intervals
        self._keep_if_best_held_out(step, result[0])
        return result[1]

    def _is_held_out_due(self, step: int) -> bool:
        every = self._config.evaluation.every
        return self._tools.held_out is not None and every > 0 and step % every == 0

    def _evaluate_held_out(self, step: int, samples: int) -> tuple[Evaluation, Alarm | None] | None:
        tools, watch = self._tools, Stopwatch()
        if tools.held_out is None:
            return None
        self.after = None
        self._hand_over()
        with watch("evaluate_s"), self._repeatable():
            evaluation = tools.held_out.evaluate(tools.generator, samples)
        self._changed()
        interval = evaluation.accuracy
        goal = sum(self._goals_since) / len(self._goals_since) if self._goals_since else None
        self._goals_since = []
        alarm = tools.watchdog.observe_evaluation(
            step, interval.value, goal, noise=(interval.high - interval.low) / 2)
        # Not "reward": the training step of the same number has one, and a service would show both as one curve.
        rewards = {} if goal is None or not self._config.rewards else {"reward_since_evaluation": goal}
        since = {} if self._right_before is None else evaluation.since(self._right_before)
        if tools.metrics is not None:
            tools.metrics.log(step, "eval", evaluation.metrics() | since | rewards | watch.seconds)
        tools.progress.held_out(step, interval.value, interval.low, interval.high)
        return evaluation, alarm

    def _evaluate_benchmarks(self, step: int, *, is_last: bool = False) -> None:
        """Those that are due after the step, each once, also where the run is resumed between two of them."""
        for name in self.benchmarks.due(self._every, step, is_last=is_last):
            self._evaluate_benchmark(name, step)

    def _evaluate_benchmark(self, name: str, step: int) -> None:
        tools, watch = self._tools, Stopwatch()
        assert tools.benchmarks is not None
        self._hand_over()
        with watch("evaluate_s"), self._repeatable():
            values = tools.benchmarks.evaluate(
                name, tools.generator, step, folder=tools.folder, rank=tools.rank, num_ranks=tools.num_ranks)
        self._changed()
        self.benchmarks.add(name, step, values)
        if values.problem is not None:
            tools.progress.message(f"{name} at step {step}: not evaluated: {values.problem}")
            return
        if tools.metrics is not None:
            tools.metrics.log(step, "eval", benchmark_metrics(name, values, watch.seconds["evaluate_s"]))
        shown = "  ".join(
            f"{metric} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for metric, one in values.intervals.items())
        tools.progress.message(f"{name} at step {step}: {shown}")
        for metric, interval in values.intervals.items():
            if f"{name}/{metric}" == self._config.checkpoint.best_by:
                self._keep_if_best(step, interval.value, f"{name}/{metric}")

    def _keep_if_best_held_out(self, step: int, evaluation: Evaluation) -> None:
        """By the samples that all evaluations of the run have in common: avg@8 of one step does not compete with avg@2
        of another."""
        if self._config.checkpoint.best_by == "held_out":
            self._keep_if_best(step, evaluation.comparable, f"avg@{evaluation.comparable_samples}")

    def _keep_if_best(self, step: int, value: float, metric: str) -> None:
        if self.best is None or value > self.best.value:
            self.best = Best(step=step, value=value, checkpoint=BEST_CHECKPOINT, metric=metric)
            self._save(True)

    def _is_chosen_by(self, metric: str) -> bool:
        """Whether a best checkpoint of this metric (`Best.metric`) competes with those to come."""
        best_by = self._config.checkpoint.best_by
        return "/" not in metric if best_by == "held_out" else metric == best_by


def _intervals_to_json(intervals: Mapping[str, Interval] | None) -> dict[str, dict[str, float]] | None:
    return None if intervals is None else {name: asdict(interval) for name, interval in intervals.items()}


def _intervals_from_json(value: Mapping[str, Mapping[str, float]] | None) -> dict[str, Interval] | None:
    return None if value is None else {name: Interval(**ends) for name, ends in value.items()}
