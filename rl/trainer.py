"""The loop: hand the present version to the sampler, sample, score, select, advantages, update; evaluate, watch, save.

`Trainer.step` is the algorithm on one screen. Everything that decides a step is in `TrainerState`, so that a run
resumed from a checkpoint ends where the uninterrupted one ends, bit for bit on the CPU.

Nothing but the update is done while groups are sampled ahead (`generator.max_staleness: 1`): before the sampler gets
another version, evaluates, or the run is saved or ends, what is in flight is waited for. A sampler that does not answer
(rl/outage_response.py) finds the run between two steps, or in one whose weights have not changed yet: it can be saved
there, and the step repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from rl.checkpoint import CheckpointError, Checkpoints
from rl.collect import Collected, Collector
from rl.config import RunConfig
from rl.evaluation.benchmarks import LiveBenchmarks
from rl.evaluation.evaluations import Evaluations, EvaluationTools
from rl.evaluation.held_out import HeldOut
from rl.generate.protocol import Generator
from rl.outage_response import StoppedWaitingError, Waiting
from rl.policy.moving_average import MovingAverage
from rl.policy.policy import Policy
from rl.proof.proof import GeneratorMismatchError, Proof, ProofState, mismatch_bound
from rl.ranks import RanksApartError, first_given
from rl.records import TrainingGroup
from rl.runs.callbacks import NOBODY, Callbacks
from rl.runs.folder import RunFolder
from rl.runs.progress import Progress
from rl.runs.stopwatch import Stopwatch
from rl.runs.summary import Summary, installed_versions, peak_rss_gb
from rl.runs.tracking import MetricsLog, RolloutsLog
from rl.runs.watchdog import Alarm, StepSignals, Watchdog
from rl.scoring.flips import FlipMemory
from rl.step_metrics import consensus, goal_of_step, judged_groups, log_rollouts, mean, staleness, step_metrics
from rl.teacher.advantages import Teacher
from rl.trainer_state import Positions, Stop, Totals, TrainerState
from rl.training_groups import make_training_groups
from rl.update import Updater
from rl.update_report import UpdateReport


@dataclass(frozen=True, slots=True)
class Parts:
    """What the trainer works with; built by rl/run.py. metrics, rollouts: None on ranks other than the main one.

    teacher: of on-policy distillation. data: digests of the questions (rl/questions/inputs.py). stop_requested: returns
    the name of a signal that asked the run to stop, or None. callbacks: told of each step."""

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
    average: MovingAverage | None = None
    callbacks: Callbacks = NOBODY


class Trainer:
    """One run. `step_number` counts finished training steps, `policy_version` optimiser updates."""

    def __init__(self, config: RunConfig, parts: Parts) -> None:
        self._config, self._parts = config, parts
        self.step_number = 0
        self.policy_version = 0
        self._totals = Totals()  # of the run's earlier parts and, for tokens, of this one
        self._began = time.perf_counter()
        self._stop: Stop | None = None  # of a run that has ended
        self._rank = parts.accelerator.process_index, parts.accelerator.num_processes
        self._proof = Proof(config, parts.policy, parts.generator, rank=self._rank[0], num_ranks=self._rank[1])
        flips = config.advantage.flips
        self._flips = FlipMemory(flips) if flips.enabled else None
        self._hand_over_watch = Stopwatch(ahead_wait_s=0.0, sync_s=0.0)  # since the last training line
        self._checkpoints = Checkpoints(
            config, parts.folder.checkpoints, parts.accelerator, parts.policy, parts.optimizer, parts.average)
        self._evaluations = Evaluations(
            config,
            EvaluationTools(parts.held_out, parts.benchmarks, parts.generator, parts.watchdog, parts.metrics,
                            parts.progress, parts.folder.path, *self._rank),
            hand_over=self._hand_over, save=self.save, changed=self._checkpoints.changed,
            repeatable=lambda: self._repeatable("an evaluation"))
        self._amid: str | None = None  # what can be begun again from the state that `_state` gives all the while
        self._is_save_due = False
        if parts.average is not None:
            parts.average.on_leaving = self._save_if_due
        self._proof_before: ProofState | None = None
        self._waiting = Waiting(say=lambda text: self._parts.progress.message(text), save=self._save_while_waiting,
                                stop_requested=lambda: self._parts.stop_requested())

    def step(self) -> Alarm | None:
        """One batch of questions -> a better policy, in the sampler's hands (unless that samples ahead). Returns the
        watchdog's alarm."""
        parts = self._parts
        self._evaluations.step_begins()
        # With the hand-over of the version that this step samples with, which the step before has seen to.
        watch = Stopwatch(train_s=0.0, step_s=sum(self._hand_over_watch.seconds.values()))
        with watch("step_s"):
            self._hand_over()
            with self._repeatable("a step"):
                collected = parts.collector.collect(self.step_number)
                self._proof_before = self._proof.state()  # for what is saved while a teacher does not answer
                proof = self._proof.check(self.step_number, self.policy_version, collected)
                with watch("teacher_s") if parts.teacher is not None else nullcontext():
                    batch = make_training_groups(
                        self._config, collected, parts.teacher, *self._rank, self._flips)
            self._proof_before = None
            counts = self._sampler_counts()  # now: the sampler is asked nothing while it samples ahead
            self._sample_ahead()
            with watch("train_s"):
                report = parts.updater.update(batch, step=self.step_number, policy_version=self.policy_version)
                if parts.average is not None:
                    parts.average.update()
            self._check_mismatch(report)
            self._proof.note_update(report.num_updates, report.grad_norm)
        measured = report.metrics | staleness(batch, self.policy_version) | counts | proof
        measured |= consensus(collected, self._config.selection.min_votes) | self._note_flips(collected)
        self.policy_version += report.num_updates
        self.step_number += 1
        self._checkpoints.note_rng()
        alarm = self._record(collected, batch, measured | asdict(collected.times) | watch.seconds)
        self._evaluations.step_ends(self.step_number)
        # Last: a run that is saved while the sampler does not answer goes on behind this step.
        if not parts.collector.in_flight:
            self._hand_over()
        return alarm

    def _note_flips(self, collected: Collected) -> dict[str, float]:
        """Now that the step is trained on. The mean weight of its batch; nothing without advantage.flips."""
        if self._flips is None:
            return {}
        weights = self._flips.weights(collected.batch, {id(group) for group in collected.sampled})
        self._flips.note(collected.sampled)
        return {"flips/weight": mean(weights)}

    def _hand_over(self) -> None:
        """Wait for what is sampled ahead; then bring the present version to the sampler, where it has an older one."""
        self._settle()
        with self._hand_over_watch("sync_s"):
            if self._parts.generator.policy_version != self.policy_version:
                self._parts.generator.take_over(self._parts.policy, self.policy_version)

    def _settle(self) -> None:
        """Afterwards nothing is in flight."""
        if self._parts.collector.in_flight:
            with self._hand_over_watch("ahead_wait_s"), self._repeatable("a step"):
                self._parts.collector.settle(self._waiting.poll)
                self._checkpoints.changed()

    def _sample_ahead(self) -> None:
        """The sampler goes on with the next step's questions, or rests; up to here the step can be repeated."""
        self._checkpoints.changed()
        self._parts.collector.move_on()
        if self._config.generator.max_staleness and self.step_number + 1 < self._config.steps:
            self._parts.collector.sample_ahead(self.step_number + 1)
        if not self._parts.collector.in_flight:
            self._parts.generator.rest()

    def _sampler_counts(self) -> dict[str, float]:
        """What the generator counts, where it counts something, and the times of handing over, since the last call."""
        times = self._hand_over_watch.take()
        if not self._config.generator.max_staleness:
            del times["ahead_wait_s"]
        return times | self._parts.generator.metrics()

    def _check_mismatch(self, report: UpdateReport) -> None:
        """On every trained token of the present version; rl/proof/proof.py looks at a few, but tells which side is
        wrong."""
        bound = mismatch_bound(self._config, self._parts.policy)
        if report.mismatch is not None and not report.mismatch.mean <= bound:
            raise GeneratorMismatchError(
                f"step {self.step_number}: the sampler's log-probabilities differ from the trainer's by "
                f"{report.mismatch.mean:.3g} nats on average, where at most {bound:g} is expected: the sampler does "
                f"not have version {self.policy_version} of the policy, or computes in another precision. Check "
                "generator.sync and model.dtype; --resume begins with a proof that tells which side is wrong "
                "(generator.proof_every > 0). Raise generator.max_mismatch only if the difference is understood "
                "(loss.correction then corrects for it)")

    def _record(self, collected: Collected, batch: list[TrainingGroup], measured: dict[str, float]) -> Alarm | None:
        """Write the step into metrics and rollouts, show it, and let the watchdog judge it."""
        parts, has_rewards = self._parts, bool(self._config.rewards)
        judged = judged_groups(collected)
        collapse = parts.watchdog.measure(judged) if judged else {}
        metrics = step_metrics(collected, collapse, measured, policy_version=self.policy_version,
                               num_surplus=len(parts.collector.surplus))
        self._totals = self._totals.plus(sampled_tokens=metrics["tokens/sampled"])
        if (goal := goal_of_step(has_rewards, judged, measured)) is not None:
            self._evaluations.note_goal(goal)
        every = self._config.tracking.rollouts_every
        if parts.metrics is not None:
            line, groups = parts.metrics.log(self.step_number, "train", metrics), []
            if parts.rollouts is not None and every and (self.step_number - 1) % every == 0:
                groups = log_rollouts(parts.rollouts, self.step_number, collected, batch)
            parts.callbacks.tell(line, groups)
        parts.progress.step(self.step_number, metrics)
        if not judged or not has_rewards:  # without rewards nobody asks for answers
            return None
        return parts.watchdog.observe_step(StepSignals(
            step=self.step_number, reward=metrics["reward"], num_questions=int(collapse["num_questions"]),
            majority_answer_share=collapse["majority_answer_share"], unparsable_share=collapse["unparsable_share"]))

    def run(self) -> Summary:
        """Evaluate, train until the last step, an alarm or a signal, evaluate; saves as it goes."""
        self._waiting.watch(self._parts.generator)
        self._waiting.watch(self._parts.teacher)
        self._checkpoints.note_rng()
        try:
            stop = self._train()
            if stop.message is not None:
                self._parts.progress.message(stop.message)
            self.save()  # which waits for what is sampled ahead
        except StoppedWaitingError as waited:
            if self._parts.accelerator.num_processes > 1:
                # The other processes may be waiting for this one: an exit code makes the launcher end them.
                raise KeyboardInterrupt from waited
            text = f"{waited}; go on with --resume {self._parts.folder.path}"
            self._parts.progress.message(text)
            stop = Stop(waited.signal, text)
        return self._summary(stop)

    def _train(self) -> Stop:
        """Returns why the run has ended."""
        evaluations, steps = self._evaluations, self._config.steps
        if self.step_number == 0 and evaluations.before is None:
            evaluations.before_run()
        if self.step_number < steps:
            self._stop = None  # a run that had ended goes on
        stop = self._stop or Stop("completed", None)
        while self.step_number < steps:
            if signal := first_given(self._parts.stop_requested(), self._rank[1], "end the step"):
                return Stop(signal, f"stopped by {signal} after step {self.step_number}; go on with --resume "
                                    f"{self._parts.folder.path}")
            alarm = evaluations.during_run(self.step_number) if evaluations.is_due else self.step()
            if alarm is not None:
                stop, evaluations.is_due = Stop("watchdog", alarm.message), False
                break
            if evaluations.is_due:
                continue  # with a look for signals: an evaluation may take long
            if self.step_number < steps and self.step_number % self._config.checkpoint.every == 0:
                self.save()
        if stop.reason not in ("completed", "watchdog"):
            return stop
        alarm = evaluations.after_run(self.step_number)
        # A collapse since the last evaluation; a run that the watchdog has stopped keeps its first reason.
        if alarm is not None and stop.reason == "completed":
            stop = Stop("watchdog", alarm.message)
        if self._stop is None:
            self._stop = stop
            self._checkpoints.changed()
        return stop

    def save(self, best: bool = False) -> Path:
        """Write a checkpoint of the present state, where that has not been written already; collective over ranks."""
        self._settle()
        return self._checkpoints.write(self._state, best=best)

    def _save_while_waiting(self) -> str:
        """What to tell after the run was saved in the middle of waiting; "" on other ranks than the main one."""
        amid, self._amid = self._amid, None  # a signal must not begin another one now
        try:
            written = self._checkpoints.write_while_waiting(self._state)
        finally:
            self._amid = amid
        return "" if written is None else f"the run is saved up to {written.name}"

    def save_late(self) -> None:
        """Save what the present step or evaluation began with, which may not come to its end: a launcher kills the
        process (a signal's handler calls this after a while), or another rank has ended. In the middle of an update it
        waits for the next thing that can be begun again."""
        average = self._parts.average
        self._is_save_due = self._amid is None or (average is not None and average.is_in_place)
        if self._amid is None or self._is_save_due:
            return
        try:
            saved = self._save_while_waiting()
        except CheckpointError as error:  # which must not come up in the middle of somebody's reward
            saved = str(error)
        if saved:
            with suppress(RuntimeError):  # the signal came in the middle of writing to the same stream
                self._parts.progress.message(f"in the middle of {self._amid}: {saved}")

    @contextmanager
    def _repeatable(self, what: str) -> Iterator[None]:
        """What is done here may take long, and can be begun again from the state that `_state` gives all the while."""
        self._amid = what
        self._save_if_due()
        try:
            yield
        except RanksApartError:
            self.save_late()
            raise
        finally:
            self._amid = None

    def _save_if_due(self) -> None:
        if self._is_save_due:
            self.save_late()

    def _state(self) -> TrainerState:
        parts = self._parts
        assert parts.metrics is not None and parts.rollouts is not None
        return TrainerState(
            step=self.step_number, policy_version=self.policy_version, num_ranks=parts.accelerator.num_processes,
            collector=parts.collector.state(), watchdog=parts.watchdog.state(), evaluations=self._evaluations.state(),
            proof=self._proof_before or self._proof.state(), stop=self._stop, totals=self._totals_now(),
            positions=Positions(parts.metrics.position(), parts.rollouts.position()), data=parts.data,
            flips=None if self._flips is None else self._flips.to_json())

    def restore(self, path: Path, state: TrainerState) -> None:
        """Go on from a verified checkpoint: weights, optimiser, RNG, everything that the state holds, and files cut to
        its position."""
        parts = self._parts
        self.step_number, self.policy_version = state.step, state.policy_version
        parts.collector.load_state(state.collector)
        parts.watchdog.load_state(state.watchdog)
        if self._flips is not None:
            self._flips.load(state.flips or {})
        self._evaluations.load_state(state.evaluations)
        self._proof.resume(state.proof)
        self._totals, self._stop = state.totals, state.stop
        best = self._evaluations.best
        self._checkpoints.load(path, None if best is None else best.step)
        if parts.metrics is not None and parts.rollouts is not None:
            parts.metrics.truncate_to(state.positions.metrics)
            parts.rollouts.truncate_to(state.positions.rollouts)
        parts.generator.take_over(parts.policy, self.policy_version)

    def _totals_now(self) -> Totals:
        return self._totals.plus(wall_s=time.perf_counter() - self._began)

    def _summary(self, stop: Stop) -> Summary:
        evaluations, totals = self._evaluations, self._totals_now()
        return Summary(
            steps=self.step_number, stop_reason=stop.reason, message=stop.message,
            held_out_before=evaluations.before, held_out_after=evaluations.after, best=evaluations.best,
            wall_s=totals.wall_s, peak_rss_gb=peak_rss_gb(), num_sampled_tokens=int(totals.sampled_tokens),
            seed=self._config.seed, versions=installed_versions(),
            benchmarks_before=evaluations.benchmarks.named_before(),
            benchmarks_after=evaluations.benchmarks.named_after(self.step_number) if self.step_number else None)
