"""Benchmarks that are evaluated while a run trains: what the trainer asks of them. The package eval has them
(eval/live_benchmarks.py).

rl imports nothing of eval: the composition root, rl/train.py, hands in what builds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rl.config import RunConfig
from rl.configuration.problems import closest
from rl.errors import ConfigError
from rl.generate.protocol import Generator
from rl.questions.inputs import Inputs
from rl.runs.intervals import Interval
from rl.runs.tracking import BENCHMARK_PREFIX


@dataclass(frozen=True, slots=True)
class BenchmarkValues:
    """One evaluation of one benchmark. intervals: "avg@4", "pass@4", "maj@4" with their 95% intervals over questions.
    others: further metrics by name. problem: why there are no values."""

    intervals: Mapping[str, Interval]
    others: Mapping[str, float]
    problem: str | None = None


class LiveBenchmarks(Protocol):
    """max_tokens: of the longest prompt with the longest completion, over all benchmarks. every: steps between
    evaluations by name.
    metrics: every number that `checkpoint.best_by` may name. notes: what people should know before the run.
    digests: of each benchmark's questions; a resumed run must have the same."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def every(self) -> Mapping[str, int]: ...

    @property
    def metrics(self) -> Sequence[str]: ...

    @property
    def notes(self) -> Sequence[str]: ...

    @property
    def digests(self) -> Mapping[str, str]: ...

    def evaluate(
        self, name: str, generator: Generator, step: int, *, folder: Path, rank: int, num_ranks: int
    ) -> BenchmarkValues:
        """Sample and grade with the present policy; collective over ranks. The main rank keeps the completions in
        `folder`."""
        ...


def benchmark_metrics(name: str, values: BenchmarkValues, evaluate_s: float) -> dict[str, float]:
    """For metrics.jsonl: benchmark/math500/avg@4 with its /low and /high, and benchmark/math500/truncated_share and the
    like."""
    prefix = f"{BENCHMARK_PREFIX}{name}/"
    numbers = {f"{prefix}evaluate_s": evaluate_s} | {f"{prefix}{key}": value for key, value in values.others.items()}
    for metric, interval in values.intervals.items():
        numbers |= {
            f"{prefix}{metric}": interval.value, f"{prefix}{metric}/low": interval.low,
            f"{prefix}{metric}/high": interval.high}
    return numbers


@dataclass(slots=True)
class BenchmarkHistory:
    """What a run remembers of its benchmarks. at: step of each one's last evaluation. before, latest: intervals by
    benchmark and metric, of the evaluations at step 0 and of the last ones."""

    at: dict[str, int] = field(default_factory=dict)
    before: dict[str, dict[str, Interval]] = field(default_factory=dict)
    latest: dict[str, dict[str, Interval]] = field(default_factory=dict)

    def due(self, every: Mapping[str, int], step: int, *, is_last: bool) -> list[str]:
        """Names of those to be evaluated after this step, each once: before the run and after it all of them."""
        return [name for name, steps in every.items()
                if self.at.get(name) != step and (step == 0 or is_last or (steps > 0 and step % steps == 0))]

    def add(self, name: str, step: int, values: BenchmarkValues) -> None:
        self.at[name] = step
        (self.before if step == 0 else self.latest)[name] = dict(values.intervals)

    def named_before(self) -> dict[str, Interval] | None:
        """{"math500 avg@4": interval}; None where there is none."""
        return _named(self.before) or None

    def named_after(self, step: int) -> dict[str, Interval] | None:
        """{"math500 avg@4": interval} of the evaluations after the run's last step, and of no earlier one; None where
        there is none."""
        return _named({name: values for name, values in self.latest.items() if self.at[name] == step}) or None

    def copy(self) -> BenchmarkHistory:
        return BenchmarkHistory(dict(self.at), dict(self.before), dict(self.latest))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BenchmarkHistory:
        """The inverse of to_json. Empty, of a version that evaluated no benchmarks: an empty history."""
        before, latest = (
            {name: {metric: Interval(**ends) for metric, ends in intervals.items()}
             for name, intervals in value.get(key, {}).items()}
            for key in ("before", "latest"))
        return cls(dict(value.get("at", {})), before, latest)


def _named(values: Mapping[str, Mapping[str, Interval]]) -> dict[str, Interval]:
    return {
        f"{name} {metric}": interval for name, intervals in values.items() for metric, interval in intervals.items()}


BuildBenchmarks = Callable[[RunConfig, Inputs], LiveBenchmarks]
"""Raises ConfigError that names the key under evaluation.benchmarks."""


def build_benchmarks(config: RunConfig, inputs: Inputs, build: BuildBenchmarks | None) -> LiveBenchmarks | None:
    """None where no benchmark is configured. Raises ConfigError, also where checkpoint.best_by names nothing that is
    evaluated."""
    live = None
    if config.evaluation.benchmarks:
        assert build is not None, "a run with benchmarks is built by rl/train.py"
        live = build(config, inputs)
    best_by = config.checkpoint.best_by
    known = ["held_out", *(live.metrics if live is not None else ())]
    if best_by not in known:
        near = closest(best_by, known)
        raise ConfigError(
            f"checkpoint.best_by: saw {best_by!r}{f'; did you mean {near}?' if near else ''} Expected one of: "
            f"{', '.join(known)} (benchmarks are named in evaluation.benchmarks)")
    return live
