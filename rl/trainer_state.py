"""The part of a run's state that is not tensors, as records, and as the state.json of a checkpoint.

Each part is a record beside the class that owns it, and knows its own JSON; `TrainerState` puts them together under the
keys of state.json, which stay as they are: runs of earlier versions go on. A part that an earlier version did not write
has a default in its `from_json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rl.collect import CollectorState
from rl.evaluation.evaluations import EvaluationsState
from rl.proof.proof import ProofState
from rl.runs.watchdog import WatchdogState

KEYS = frozenset({
    "step", "policy_version", "num_ranks", "order", "watchdog", "memory", "data", "best", "held_out_before",
    "positions", "surplus", "ahead", "anchors", "flips", "totals"})


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a run has ended: `completed`, `watchdog`, or a signal's name; message: what to tell about it."""

    reason: str
    message: str | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Since the run's first step. sampled_tokens: completions of training, over all ranks."""

    wall_s: float = 0.0
    sampled_tokens: float = 0.0

    def plus(self, *, wall_s: float = 0.0, sampled_tokens: float = 0.0) -> Totals:
        return Totals(self.wall_s + wall_s, self.sampled_tokens + sampled_tokens)


@dataclass(frozen=True, slots=True)
class Positions:
    """Bytes of metrics.jsonl and rollouts.jsonl that belong to the state."""

    metrics: int
    rollouts: int


@dataclass(frozen=True, slots=True)
class TrainerState:
    """step: training steps done. policy_version: optimiser updates done. data: digests of the training and held-out
    questions, and of a local teacher's weights. stop: of a run that has ended. flips: what the run remembers of its
    questions' majorities; None where it need not."""

    step: int
    policy_version: int
    num_ranks: int
    collector: CollectorState
    watchdog: WatchdogState
    evaluations: EvaluationsState
    proof: ProofState
    stop: Stop | None
    totals: Totals
    positions: Positions
    data: Mapping[str, str] = field(default_factory=dict)
    flips: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        memory = self.evaluations.to_json()
        best, held_out_before = memory.pop("best"), memory.pop("held_out_before")
        memory |= {"stopped": None if self.stop is None else [self.stop.reason, self.stop.message],
                   "proof": self.proof.to_json()}
        return {
            "step": self.step, "policy_version": self.policy_version, "num_ranks": self.num_ranks,
            "watchdog": self.watchdog.to_json(), "memory": memory, "data": dict(self.data), "best": best,
            "held_out_before": held_out_before, "positions": asdict(self.positions), "totals": asdict(self.totals),
            **self.collector.to_json(), **({} if self.flips is None else {"flips": dict(self.flips)})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of to_json. Raises: KeyError, TypeError or ValueError where it is not one."""
        if unknown := value.keys() - KEYS:
            raise ValueError(f"unknown keys: {', '.join(sorted(unknown))}")
        memory = value["memory"]
        return cls(
            step=value["step"], policy_version=value["policy_version"], num_ranks=value["num_ranks"],
            collector=CollectorState.from_json(value), watchdog=WatchdogState.from_json(value["watchdog"]),
            evaluations=EvaluationsState.from_json(
                {**memory, "best": value.get("best"), "held_out_before": value.get("held_out_before")}),
            proof=ProofState.from_json(memory.get("proof", {})),
            stop=None if memory["stopped"] is None else Stop(*memory["stopped"]),
            totals=Totals(**value["totals"]), positions=Positions(**value["positions"]), data=value.get("data", {}),
            flips=value.get("flips"))
