"""The loop: hand the present version to the sampler, sample, score, select, advantages, update; evaluate, watch, save.

`Trainer.step` is the algorithm on one screen. Everything that decides a step is in `TrainerState`, so that a run
resumed from a checkpoint ends where the uninterrupted one ends, bit for bit on the CPU.

Nothing but the update is done while groups are sampled ahead (`generator.max_staleness: 1`): before the sampler gets
another version, evaluates, or the run is saved or ends, what is in flight is waited for. A sampler that does not answer
(rl/outage_response.py) finds the run between two steps, or in one whose weights have not changed yet: it can be saved
there, and the step repeated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from rl.checkpoint import (
    TrainerState,
    checkpoint_name,
    list_checkpoints,
    load_weights,
    mark_best,
    prune,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from rl.collect import Collected, Collector, CollectorState
from rl.config import RunConfig
from rl.evaluation.benchmarks import BenchmarkHistory, LiveBenchmarks, benchmark_metrics
from rl.evaluation.held_out import Evaluation, HeldOut
from rl.generate.protocol import Generator
from rl.outage_response import StoppedWaitingError, Waiting
from rl.policy.policy import Policy
from rl.proof.proof import Proof, SamplerMismatchError, mismatch_bound
from rl.ranks import first_given
from rl.records import ScoredGroup, TrainingGroup
from rl.records_json import round_from_json, round_to_json, scored_group_from_json, scored_group_to_json
from rl.runs.folder import RunFolder
from rl.runs.intervals import Interval
from rl.runs.progress import Progress
from rl.runs.summary import Best, Summary, installed_versions, peak_rss_gb
from rl.runs.tracking import NORMALISED_ENTROPY, REVERSE_KL, MetricsLog, RolloutsLog
from rl.runs.watchdog import Alarm, StepSignals, Watchdog
from rl.teacher.advantages import Teacher
from rl.training_groups import make_training_groups
from rl.update import Updater


@dataclass(frozen=True, slots=True)
class Parts:
    """What the trainer works with; built by rl/run.py. metrics, rollouts: None on ranks other than the main one.

    teacher: of on-policy distillation. data: digests of the questions (rl/questions/inputs.py). stop_requested: returns
    the name of a signal that asked the run to stop, or None."""

    accelerator: Accelerator
    policy: Policy
    generator: Generator
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    updater: Updater
    collector: Collector
    held_out: HeldOut | None
    benchmarks: LiveBenchmarks | None
    watchdog: Watchdog
    data: Mapping[str, str]
    folder: RunFolder
    metrics: MetricsLog | None
    rollouts: RolloutsLog | None
    progress: Progress
    stop_requested: Callable[[], str | None]


class Trainer:
    """One run. `step_number` counts finished training steps, `policy_version` optimiser updates."""

    def __init__(self, config: RunConfig, parts: Parts) -> None:
        self._config = config
        self._parts = parts
        self.step_number = 0
        self.policy_version = 0
        self._best: Best | None = None
        self._before: dict[str, dict[str, float]] | None = None
        self._after: dict[str, dict[str, float]] | None = None
        self._totals = {"wall_s": 0.0, "sampled_tokens": 0.0}
        self._rewards_since_evaluation: list[float] = []
        self._clock = time.perf_counter()
        self._saved: Path | None = None  # the checkpoint of the present state, if it has been written
        self._stopped: tuple[str, str | None] | None = None  # (reason, message) of a run that has ended
        ranks = parts.accelerator
        self._rank = ranks.process_index, ranks.num_processes
        self._proof = Proof(config, parts.policy, parts.generator, rank=self._rank[0], num_ranks=self._rank[1])
        self._evaluation_due = False  # the evaluation after the last finished step is not complete
        self._benchmarks = BenchmarkHistory()
        self._hand_over_times = dict.fromkeys(("ahead_wait_s", "sync_s"), 0.0)  # since the last training line
        self._waiting = Waiting(say=lambda text: self._parts.progress.message(text), save=self._save_while_waiting,
                                stop_requested=lambda: self._parts.stop_requested())

    def step(self) -> Alarm | None:
        """One batch of questions -> a better policy, in the sampler's hands (unless that samples ahead). Returns the
        watchdog's alarm."""
        self._after = None
        # With the hand-over of the version that this step samples with, which the step before has seen to.
        started = time.perf_counter() - sum(self._hand_over_times.values())
        self._hand_over()
        collected = self._parts.collector.collect(self.step_number)
        proof = self._proof.check(self.step_number, self.policy_version, collected)
        asked = time.perf_counter()
        batch = make_training_groups(self._config, collected, self._parts.teacher, *self._rank)
        scored = time.perf_counter()
        counts = self._sampler_counts()  # now: the sampler is asked nothing while it samples ahead
        self._sample_ahead()
        update_started = time.perf_counter()
        report = self._parts.updater.update(batch, step=self.step_number, policy_version=self.policy_version)
        self._check_mismatch(report.metrics)
        self._proof.note_update(report.metrics)
        finished = time.perf_counter()
        measured = report.metrics | self._staleness(batch) | counts
        self.policy_version += report.num_updates
        self.step_number += 1
        times = asdict(collected.times) | {"train_s": finished - update_started, "step_s": finished - started}
        if self._parts.teacher is not None:
            times["teacher_s"] = scored - asked
        alarm = self._record(collected, batch, measured | proof | times)
        self._evaluation_due = self._is_evaluated_after(self.step_number)
        # Last: a run that is saved while the sampler does not answer goes on behind this step.
        if not self._parts.collector.in_flight:
            self._hand_over()
        return alarm

    def _hand_over(self) -> None:
        """Wait for what is sampled ahead; then bring the present version to the sampler, where it has an older one."""
        self._settle()
        started = time.perf_counter()
        if self._parts.generator.policy_version != self.policy_version:
            self._parts.generator.take_over(self._parts.policy, self.policy_version)
        self._hand_over_times["sync_s"] += time.perf_counter() - started

    def _settle(self) -> None:
        """Afterwards nothing is in flight."""
        if self._parts.collector.in_flight:
            started = time.perf_counter()
            self._parts.collector.settle(self._waiting.poll)
            self._saved = None
            self._hand_over_times["ahead_wait_s"] += time.perf_counter() - started

    def _sample_ahead(self) -> None:
        """The sampler goes on with the next step's questions, or rests; up to here the step can be repeated."""
        self._saved = None
        self._parts.collector.move_on()
        if self._config.generator.max_staleness and self.step_number + 1 < self._config.steps:
            self._parts.collector.sample_ahead(self.step_number + 1)
        if not self._parts.collector.in_flight:
            self._parts.generator.rest()

    def _sampler_counts(self) -> dict[str, float]:
        """What the generator counts, where it counts something, and the times of handing over, since the last call."""
        times = dict(self._hand_over_times)
        self._hand_over_times = dict.fromkeys(times, 0.0)
        if not self._config.generator.max_staleness:
            del times["ahead_wait_s"]
        return times | self._parts.generator.metrics()

    def _staleness(self, batch: list[TrainingGroup]) -> dict[str, float]:
        """Optimiser updates between the version that sampled a completion and the one that trains on it: the mean over
        the batch."""
        lags = [self.policy_version - rollout.policy_version for item in batch for rollout in item.group.rollouts]
        return {"policy/staleness": _mean([float(lag) for lag in lags])}

    def _check_mismatch(self, metrics: dict[str, float]) -> None:
        """On every trained token of the present version; rl/proof/proof.py looks at a few, but tells which side is
        wrong."""
        bound = mismatch_bound(self._config, self._parts.policy)
        mismatch = metrics.get("mismatch/mean")
        if mismatch is not None and not mismatch <= bound:
            raise SamplerMismatchError(
                f"step {self.step_number}: the sampler's log-probabilities differ from the trainer's by {mismatch:.3g} "
                f"nats on average, where at most {bound:g} is expected: the sampler does not have version "
                f"{self.policy_version} of the policy, or computes in another precision. Check generator.sync and "
                "model.dtype; --resume begins with a proof that tells which side is wrong (generator.proof_every > "
                "0). Raise generator.max_mismatch only if the difference is understood (loss.correction then corrects "
                "for it)")

    def run(self) -> Summary:
        """Evaluate, train until the last step, an alarm or a signal, evaluate; saves as it goes."""
        self._waiting.watch(self._parts.generator)
        self._waiting.watch(self._parts.teacher)
        try:
            reason, message = self._train()
            if message is not None:
                self._parts.progress.message(message)
            self.save()  # which waits for what is sampled ahead
        except StoppedWaitingError as stop:
            if self._parts.accelerator.num_processes > 1:
                # The other processes may be waiting for this one: an exit code makes the launcher end them.
                raise KeyboardInterrupt from stop
            reason, message = stop.signal, f"{stop}; go on with --resume {self._parts.folder.path}"
            self._parts.progress.message(message)
        return self._summary(reason, message)

    def _train(self) -> tuple[str, str | None]:
        """Returns why the run has ended, and what to tell about it."""
        if self.step_number == 0 and self._before is None:
            self._evaluate_before()
        if self.step_number < self._config.steps:
            self._stopped = None  # a run that had ended goes on
        reason, message = self._stopped or ("completed", None)
        while self.step_number < self._config.steps:
            if signal := self._agreed_signal():
                reason = signal
                message = (
                    f"stopped by {signal} after step {self.step_number}; go on with --resume {self._parts.folder.path}")
                break
            alarm = None if self._evaluation_due else self.step()
            if alarm is None and self._evaluation_due:
                alarm = self._evaluate_during()
            if alarm is not None:
                reason, message = "watchdog", alarm.message
                self._evaluation_due = False
                break
            if self.step_number < self._config.steps and self.step_number % self._config.checkpoint.every == 0:
                self.save()
        if reason in ("completed", "watchdog"):
            alarm = self._evaluate_after()
            # A collapse since the last evaluation; a run that the watchdog has stopped keeps its first reason.
            if alarm is not None and reason == "completed":
                reason, message = "watchdog", alarm.message
            if self._stopped is None:
                self._stopped, self._saved = (reason, message), None
        return reason, message

    def _agreed_signal(self) -> str | None:
        return first_given(self._parts.stop_requested(), self._parts.accelerator.num_processes)

    def _evaluate(self, samples: int) -> tuple[Evaluation, Alarm | None] | None:
        held_out, parts = self._parts.held_out, self._parts
        if held_out is None:
            return None
        self._after = None
        self._hand_over()
        started = time.perf_counter()
        evaluation = held_out.evaluate(parts.generator, samples)
        self._saved = None
        interval = evaluation.accuracy
        reward = _mean(self._rewards_since_evaluation) if self._rewards_since_evaluation else None
        self._rewards_since_evaluation = []
        alarm = parts.watchdog.observe_evaluation(
            self.step_number, interval.value, reward, noise=(interval.high - interval.low) / 2)
        # Not "reward": the training step of the same number has one, and a service would show both as one curve.
        rewards = {} if reward is None or not self._config.rewards else {"reward_since_evaluation": reward}
        metrics = evaluation.metrics() | rewards | {"evaluate_s": time.perf_counter() - started}
        if parts.metrics is not None:
            parts.metrics.log(self.step_number, "eval", metrics)
        parts.progress.held_out(self.step_number, interval.value, interval.low, interval.high)
        return evaluation, alarm

    def _evaluate_benchmarks(self, *, is_last: bool = False) -> None:
        """Those that are due after the present step, each once, also where the run is resumed between two of them."""
        parts = self._parts
        if parts.benchmarks is None:
            return
        for name in self._benchmarks.due(parts.benchmarks.every, self.step_number, is_last=is_last):
            self._hand_over()
            started = time.perf_counter()
            values = parts.benchmarks.evaluate(
                name, parts.generator, self.step_number, folder=parts.folder.path, rank=parts.accelerator.process_index,
                num_ranks=parts.accelerator.num_processes)
            self._saved = None
            self._benchmarks.add(name, self.step_number, values)
            if values.problem is not None:
                parts.progress.message(f"{name} at step {self.step_number}: not evaluated: {values.problem}")
                continue
            if parts.metrics is not None:
                parts.metrics.log(self.step_number, "eval",
                                  benchmark_metrics(name, values, time.perf_counter() - started))
            shown = "  ".join(
                f"{metric} {one.value:.3f} [{one.low:.3f}, {one.high:.3f}]" for metric, one in values.intervals.items())
            parts.progress.message(f"{name} at step {self.step_number}: {shown}")
            for metric, interval in values.intervals.items():
                if f"{name}/{metric}" == self._config.checkpoint.best_by:
                    self._keep_if_best(interval.value, f"{name}/{metric}")

    def _is_held_out_due(self, step: int) -> bool:
        every = self._config.evaluation.every
        return self._parts.held_out is not None and every > 0 and step % every == 0

    def _is_evaluated_after(self, step: int) -> bool:
        every = self._parts.benchmarks.every if self._parts.benchmarks is not None else {}
        return step < self._config.steps and (
            self._is_held_out_due(step) or bool(self._benchmarks.due(every, step, is_last=False)))

    def _evaluate_before(self) -> None:
        self._evaluate_benchmarks()
        if result := self._evaluate(self._config.evaluation.samples):
            self._before = result[0].as_json()
            self._keep_if_best_held_out(result[0])
        self.save()

    def _evaluate_during(self) -> Alarm | None:
        # First, and while the evaluation counts as due: a run that is saved behind them goes on with the held-out
        # questions.
        self._evaluate_benchmarks()
        result = (
            self._evaluate(self._config.evaluation.samples_during) if self._is_held_out_due(self.step_number) else None)
        self._evaluation_due = False
        if result is None:
            return None
        self._keep_if_best_held_out(result[0])
        return result[1]

    def _evaluate_after(self) -> Alarm | None:
        """Nothing where a run that had ended is resumed: metrics.jsonl has this evaluation already."""
        self._evaluate_benchmarks(is_last=True)
        if self._after is not None or (result := self._evaluate(self._config.evaluation.samples)) is None:
            return None
        self._after = result[0].as_json()
        self._keep_if_best_held_out(result[0])
        return result[1]

    def _keep_if_best_held_out(self, evaluation: Evaluation) -> None:
        """By the samples that all evaluations of the run have in common: avg@8 of one step does not compete with avg@2
        of another."""
        if self._config.checkpoint.best_by == "held_out":
            self._keep_if_best(evaluation.comparable, f"avg@{evaluation.comparable_samples}")

    def _is_chosen_by(self, metric: str) -> bool:
        """Whether a best checkpoint of this metric (`Best.metric`) competes with those to come."""
        best_by = self._config.checkpoint.best_by
        return "/" not in metric if best_by == "held_out" else metric == best_by

    def _keep_if_best(self, value: float, metric: str) -> None:
        if self._best is None or value > self._best.value:
            path = self._parts.folder.checkpoints / "best"
            self._best = Best(
                step=self.step_number, value=value, checkpoint=str(path.relative_to(self._parts.folder.path)),
                metric=metric)
            self.save(best=True)

    def _record(self, collected: Collected, batch: list[TrainingGroup], measured: dict[str, float]) -> Alarm | None:
        """Write the step into metrics and rollouts, show it, and let the watchdog judge it."""
        parts, config = self._parts, self._config
        groups = collected.sampled
        # A step that lived on groups left over by refilling has sampled nothing; it is described by what it trained on.
        every_group = groups or collected.batch
        # Groups that the rewards could not judge count in what the rewards report and in the refusals, and in nothing
        # else.
        described = tuple(group for group in every_group if not group.skipped)
        reward = _mean([reward for group in described for reward in group.rewards]) if described else math.nan
        tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.group.rollouts)
        self._totals["sampled_tokens"] += tokens
        # Without rewards the distance to the teacher is what the run lowers; it is missing where no token was scored.
        goal = reward if config.rewards else -measured.get(REVERSE_KL, math.nan)
        if described and not math.isnan(goal):
            self._rewards_since_evaluation.append(goal)
        collapse = parts.watchdog.measure(described) if described else {}
        metrics = {
            "reward": reward, **_reward_metrics(described, every_group),
            NORMALISED_ENTROPY: _mean([group.normalised_entropy for group in described]) if described else math.nan,
            **collected.selection.shares(), "groups/sampled": len(groups), "groups/trained": len(collected.batch),
            "groups/refills": collected.num_refills, "groups/surplus": len(parts.collector.surplus),
            **{f"collapse/{name}": value for name, value in collapse.items()},
            "policy/version": self.policy_version, "tokens/sampled": tokens, **measured,
            "tokens_per_s": tokens / collected.times.generate_s if collected.times.generate_s else 0.0,
        }
        if parts.metrics is not None:
            parts.metrics.log(self.step_number, "train", metrics)
        every = config.tracking.rollouts_every
        if parts.rollouts is not None and every and (self.step_number - 1) % every == 0:
            self._record_rollouts(parts.rollouts, collected, batch)
        parts.progress.step(self.step_number, metrics)
        if not described or not config.rewards:  # without rewards nobody asks for answers
            return None
        return parts.watchdog.observe_step(StepSignals(
            step=self.step_number, reward=reward, num_questions=int(collapse["num_questions"]),
            majority_answer_share=collapse["majority_answer_share"], unparsable_share=collapse["unparsable_share"]))

    def _record_rollouts(self, log: RolloutsLog, collected: Collected, batch: list[TrainingGroup]) -> None:
        trained = {id(item.scored): item.advantages for item in batch}
        reasons = {id(group): reason for group, reason in collected.selection.refused}
        fresh = {id(group) for group in collected.sampled}
        left_over = [item.scored for item in batch if id(item.scored) not in fresh]
        for scored in (*left_over, *collected.sampled):
            log.log(self.step_number, scored, advantages=trained.get(id(scored)), refused=reasons.get(id(scored)))

    def save(self, *, best: bool = False) -> Path:
        """Write a checkpoint of the present state (main rank) and drop the oldest; nothing where it has been written
        already."""
        self._settle()
        return self._write(best=best)

    def _save_while_waiting(self) -> str:
        """What to tell after the run was saved in the middle of waiting for the sampler; several ranks cannot meet
        there to save."""
        if self._parts.accelerator.num_processes == 1:
            return f"the run is saved up to {self._write().name}"
        newest = [path.name for path in list_checkpoints(self._parts.folder.checkpoints)][-1:]
        return f"the run is saved up to {newest[0]}" if newest else "nothing is saved yet"

    def _write(self, *, best: bool = False) -> Path:
        if self._saved is not None:
            return self._saved
        parts = self._parts
        rng = rng_state(parts.accelerator.device)
        states = gather_object([rng]) if parts.accelerator.num_processes > 1 else [rng]
        path = parts.folder.checkpoints
        if parts.accelerator.is_main_process:
            path = save_checkpoint(path, self._state(), parts.policy, parts.optimizer, states, self._config)
            if best:
                mark_best(parts.folder.checkpoints, path)
            prune(parts.folder.checkpoints, self._config.checkpoint.keep)
        parts.accelerator.wait_for_everyone()
        self._saved = path
        return path

    def _state(self) -> TrainerState:
        parts = self._parts
        assert parts.metrics is not None and parts.rollouts is not None
        now = time.perf_counter()
        totals = self._totals | {"wall_s": self._totals["wall_s"] + now - self._clock}
        best = None if self._best is None else asdict(self._best)
        collector = parts.collector.state()
        return TrainerState(
            step=self.step_number, policy_version=self.policy_version, num_ranks=parts.accelerator.num_processes,
            order=dict(collector.order), watchdog=dict(parts.watchdog.state_dict()),
            memory={"rewards_since_evaluation": self._rewards_since_evaluation, "held_out_after": self._after,
                    "stopped": self._stopped, "evaluation_due": self._evaluation_due, "proof": self._proof.state_dict(),
                    "benchmarks": self._benchmarks.state_dict()},
            data=dict(parts.data), best=best, held_out_before=self._before, totals=totals,
            positions={"metrics": parts.metrics.position(), "rollouts": parts.rollouts.position()},
            surplus=[scored_group_to_json(group) for group in collector.surplus],
            ahead=None if collector.ahead is None else round_to_json(collector.ahead),
        )

    def restore(self, path: Path, state: TrainerState) -> None:
        """Go on from a verified checkpoint: weights, optimiser, order, watchdog, surplus, RNG, and files cut to its
        position."""
        parts = self._parts
        rng_states = load_weights(path, parts.policy, parts.optimizer)
        set_rng_state(rng_states[parts.accelerator.process_index], parts.accelerator.device)
        self.step_number, self.policy_version = state.step, state.policy_version
        parts.collector.load_state(
            CollectorState(
                state.order, tuple(map(scored_group_from_json, state.surplus)),
                None if state.ahead is None else round_from_json(state.ahead)))
        parts.watchdog.load_state_dict(state.watchdog)
        self._best = None if state.best is None else Best(**state.best)
        if self._best is not None and not self._is_chosen_by(self._best.metric):
            parts.progress.message(
                f"checkpoints are chosen by {self._config.checkpoint.best_by} from now on; the best so far was "
                f"chosen by {self._best.metric}")
            self._best = None
        self._before = state.held_out_before
        self._totals = dict(state.totals)
        self._rewards_since_evaluation = list(state.memory["rewards_since_evaluation"])
        self._after = state.memory["held_out_after"]
        self._proof.resume(state.memory.get("proof", {}))
        self._evaluation_due = state.memory.get("evaluation_due", False)
        self._benchmarks.load_state_dict(state.memory.get("benchmarks", {}))
        stopped = state.memory["stopped"]
        self._stopped = None if stopped is None else (stopped[0], stopped[1])
        if self._best is not None and parts.accelerator.is_main_process:
            best = path.parent / checkpoint_name(self._best.step)
            # A kill between writing a checkpoint and pointing `best` at it leaves the link behind.
            if best.is_dir():
                mark_best(path.parent, best)
        if parts.metrics is not None and parts.rollouts is not None:
            parts.metrics.truncate_to(state.positions["metrics"])
            parts.rollouts.truncate_to(state.positions["rollouts"])
        parts.generator.take_over(parts.policy, self.policy_version)

    def _summary(self, reason: str, message: str | None) -> Summary:
        return Summary(
            steps=self.step_number,
            stop_reason=reason,
            message=message,
            held_out_before=_intervals(self._before),
            held_out_after=_intervals(self._after),
            best=self._best,
            wall_s=self._totals["wall_s"] + time.perf_counter() - self._clock,
            peak_rss_gb=peak_rss_gb(),
            num_sampled_tokens=int(self._totals["sampled_tokens"]),
            seed=self._config.seed,
            versions=installed_versions(),
            benchmarks_before=self._benchmarks.named_before(),
            benchmarks_after=self._benchmarks.named_after(self.step_number) if self.step_number else None,
        )


def _intervals(values: dict[str, dict[str, float]] | None) -> dict[str, Interval] | None:
    return None if values is None else {name: Interval(**ends) for name, ends in values.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _reward_metrics(judged: tuple[ScoredGroup, ...], groups: tuple[ScoredGroup, ...]) -> dict[str, float]:
    """Each reward's mean by name over the judged groups (`accuracy` among them, where it is one), and the means of what
    the rewards reported over all groups."""
    names = judged[0].scores if judged else ()
    scores = {
        (name if name == "accuracy" else f"reward/{name}"): _mean(
            [score for group in judged for score in group.scores[name]])
        for name in names
    }
    reported = {name for group in groups for name in group.metrics}
    return scores | {
        f"reward/{name}": _mean([g.metrics[name] for g in groups if name in g.metrics]) for name in sorted(reported)}
