"""The sampler does not answer for a while: the run waits, says so, and is saved such that it could be gone on with from
there.

The sampler is the embedded one, which at certain calls tells of an outage as one in other processes does. During the
outage the run's folder is copied; the copy, resumed, must end where the run ends that waited.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from rl.checkpoint import list_checkpoints, read_state, verify
from rl.generate.protocol import Finished, Request, SamplingParameters
from rl.policy.policy import Policy
from rl.records import Group, PromptCompletion
from rl.runs import stop_signals
from rl.runs.folder import RunFolder
from rl.train import main
from rl.update import Updater
from tests.integration.test_resume import assert_same_end
from tests.reference.fork import after, after_line, forked_ranks, signal_itself
from tests.reference.sampling_ahead import AHEAD, SERVERS, EmbeddedGenerator, run
from tests.reference.whole_run import SMALL, metrics_of, one_thread, summary_of, train, trained_steps

FOUR_STEPS = (
    "steps=4", "checkpoint.every=3", "evaluation.every=2", "seed=5", "selection.mode=refill", "selection.low=0.3",
    "lora.dropout=0.1", "optim.epochs=2")
EVALUATION = 16  # requests of an evaluation, and of no step
CALLS_S = 0.05  # between two messages


class WideGenerator(EmbeddedGenerator):
    """Decodes all completions of a step together: here nothing depends on which group is whole first."""

    max_together = 64


class FailingGenerator(WideGenerator):
    """Does not answer at the given calls of generate or take_over (counted together from the build on) until `waits`
    returns."""

    def __init__(self, policy: Policy, failing: Collection[int], waits: Callable[[FailingGenerator], None]) -> None:
        super().__init__(policy)
        self.on_outage: Callable[[str], None] | None = None
        self.on_message: Callable[[str], None] | None = None
        self._failing, self._waits = failing, waits
        self.calls: list[str] = []

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        self._begin(f"generate {len(requests)}")
        return super().generate(requests, parameters, finished)

    def take_over(self, policy: Policy, version: int) -> None:
        self._begin(f"take over {version}")
        super().take_over(policy, version)

    def _begin(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) in self._failing:
            assert self.on_outage is not None
            self.on_outage("no server answers")
            self._waits(self)


def words(folder: Path, *settings: str) -> list[str]:
    return [*SMALL, f"run_dir={folder}", *FOUR_STEPS, *settings]


def resume(folder: Path, *settings: str) -> int:
    return run([*words(folder, *settings), "--resume", str(folder)], WideGenerator)


@pytest.fixture(scope="module")
def waited_for(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run without an outage, and the calls of its sampler."""
    folder, made = tmp_path_factory.mktemp("whole") / "run", []

    def make(policy: Policy) -> FailingGenerator:
        made.append(FailingGenerator(policy, (), lambda generator: None))
        return made[0]

    assert run(words(folder, *SERVERS), make) == 0
    return folder, made[0].calls


def position(calls: list[str], what: str) -> int:
    """Which call of the run that is, from 1."""
    rounds = [i for i, call in enumerate(calls, start=1) if call.startswith("generate")]
    evaluated = [i for i in rounds if calls[i - 1] == f"generate {EVALUATION}"]
    versions = [i for i, call in enumerate(calls, start=1) if call.startswith("take over")]
    refills = [
        later
        for earlier, later in itertools.pairwise(rounds)
        if later == earlier + 1 and not {earlier, later} & {*evaluated}]
    return {
        "the first evaluation": evaluated[0],
        "the first step": rounds[1],
        "a refill": refills[-1],
        "handing over a version": versions[1],
        "handing over before an evaluation": versions[2],
        "an evaluation": evaluated[1],
        "the last evaluation": evaluated[-1],
    }[what]


OUTAGES = (
    "the first evaluation", "the first step", "a refill", "handing over a version", "handing over before an evaluation",
    "an evaluation", "the last evaluation")


@pytest.fixture(scope="module")
def copies(waited_for: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of a run's folder, made in each of its outages; the run itself waits and ends as if there were none."""
    whole, calls = waited_for
    folder = tmp_path_factory.mktemp("outages")
    whats = {position(calls, what): what for what in OUTAGES}
    assert len(whats) == len(OUTAGES)

    def copy(generator: FailingGenerator) -> None:
        shutil.copytree(folder / "run", folder / whats[len(generator.calls)], symlinks=True)
        RunFolder(folder / whats[len(generator.calls)]).lock_file.unlink(missing_ok=True)
        for _ in range(3):
            assert generator.on_message is not None
            generator.on_message("still no server answers")

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run(words(folder / "run", *SERVERS), lambda policy: FailingGenerator(policy, whats, copy)) == 0
    assert_same_end(folder / "run", whole)
    assert out.getvalue().count("no server answers; the run is saved up to step-") == len(OUTAGES)
    assert out.getvalue().count("still no server answers") == len(OUTAGES)  # each told three times
    return {what: folder / what for what in OUTAGES}


@pytest.mark.parametrize("what", OUTAGES)
def test_what_was_saved_in_an_outage_goes_on_to_the_same_end(
    waited_for: tuple[Path, list[str]], copies: dict[str, Path], what: str
) -> None:
    whole, _ = waited_for
    assert resume(copies[what], *SERVERS) == 0
    assert_same_end(copies[what], whole)


def wait_for_ever(generator: FailingGenerator) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        time.sleep(CALLS_S)
        assert generator.on_message is not None
        generator.on_message("still no server answers")
    raise AssertionError("the signal did not end the waiting")


@pytest.mark.parametrize("what", ["a refill", "handing over a version", "an evaluation"])
def test_a_signal_ends_a_run_that_waits(tmp_path: Path, waited_for: tuple[Path, list[str]], what: str) -> None:
    whole, calls = waited_for
    started = time.monotonic()
    assert (
        run(
            words(tmp_path / "run", *SERVERS),
            lambda policy: FailingGenerator(policy, (position(calls, what),), wait_for_ever))
        == 0)
    assert time.monotonic() - started < 50
    assert summary_of(tmp_path / "run")["stop_reason"] == "SIGTERM"
    assert resume(tmp_path / "run", *SERVERS) == 0
    assert_same_end(tmp_path / "run", whole)


class SlowGenerator(WideGenerator):
    """Tells of nothing: in the second step, or the evaluation after the second, it sends the process a SIGTERM, and
    takes as long as `waits` does."""

    def __init__(self, policy: Policy, waits: Callable[[], None], *, at_evaluation: bool = False) -> None:
        super().__init__(policy)
        self._waits, self._at_evaluation, self._has_waited = waits, at_evaluation, False

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        is_wanted = not self._at_evaluation or len(requests) == EVALUATION
        if self.policy_version and is_wanted and not self._has_waited:
            self._has_waited = True
            os.kill(os.getpid(), signal.SIGTERM)
            self._waits()
        return super().generate(requests, parameters, finished)


def wait_for_checkpoint(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 60
    while not (RunFolder(folder).checkpoints / f"step-{step:06d}").is_dir():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(CALLS_S)


@pytest.mark.parametrize(("what", "step"), [("a step", 1), ("an evaluation", 2)])
def test_what_a_signal_finds_at_a_long_wait_is_saved_before_it_ends(
    tmp_path: Path, waited_for: tuple[Path, list[str]], what: str, step: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A sampler or a judge that is slow and says nothing. The run may come to its end all the same."""
    monkeypatch.setattr(stop_signals, "PATIENCE_S", 0.1)
    folder, copy = tmp_path / "run", tmp_path / "copy"

    def wait() -> None:
        wait_for_checkpoint(folder, step)
        shutil.copytree(folder, copy, symlinks=True)

    def make(policy: Policy) -> SlowGenerator:
        return SlowGenerator(policy, wait, at_evaluation=what == "an evaluation")

    assert run(words(folder, *SERVERS), make) == 0
    assert summary_of(folder)["stop_reason"] == "SIGTERM" and trained_steps(folder) == [1, 2]
    assert f"in the middle of {what}: the run is saved up to step-00000{step}" in capsys.readouterr().out
    RunFolder(copy).lock_file.unlink(missing_ok=True)
    assert resume(copy, *SERVERS) == 0
    assert_same_end(copy, waited_for[0])


def test_a_signal_that_becomes_late_in_an_update_has_what_follows_saved_at_its_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the last evaluation. A further SIGTERM counts as late."""
    def become_late() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with after(Updater, "update", become_late):
        assert train(tmp_path / "run", "steps=1", "checkpoint.every=100") == 0
    assert "in the middle of an evaluation: the run is saved up to step-000001" in capsys.readouterr().out
    assert summary_of(tmp_path / "run")["stop_reason"] == "completed"


def test_a_run_that_is_asked_to_end_leaves_the_evaluation_that_is_due_to_its_resumption(
    tmp_path: Path, waited_for: tuple[Path, list[str]]
) -> None:
    with after_line({"kind": "train", "step": 2}, signal_itself(signal.SIGTERM)):
        assert run(words(tmp_path / "run", *SERVERS), WideGenerator) == 0
    evaluated = [record["step"] for record in metrics_of(tmp_path / "run") if record["kind"] == "eval"]
    assert trained_steps(tmp_path / "run") == [1, 2] and evaluated == [0]
    assert resume(tmp_path / "run", *SERVERS) == 0
    assert_same_end(tmp_path / "run", waited_for[0])


class UnheardTeacher:
    """The base model itself, which at its second question does not answer until `waits` returns."""

    description = "unheard"

    def __init__(self, waits: Callable[[], object]) -> None:
        self.on_outage: Callable[[str], None] | None = None
        self.on_message: Callable[[str], None] | None = None
        self._waits, self._num_asked = waits, 0

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        self._num_asked += 1
        if self._num_asked == 2:
            assert self.on_outage is not None
            self.on_outage("no teacher answers")
            self._waits()
        return [(-1.0,) * len(completion) for _, completion in pairs]

    def close(self) -> None:
        """Holds nothing."""


def test_what_is_saved_while_a_teacher_does_not_answer_has_the_steps_proof_before_it(tmp_path: Path) -> None:
    """The second step proves the first update; resumed, it does so again, and its line in metrics.jsonl says so."""
    folder, copy = tmp_path / "run", tmp_path / "copy"
    settings = (*SMALL, "steps=2", "evaluation.path=null", "teacher=models/tiny-arith", f"run_dir={folder}")

    def distil(waits: Callable[[], object], *more: str) -> int:
        with one_thread(), patch("rl.run.open_teacher", lambda *arguments: UnheardTeacher(waits)):
            return main([*settings, *more])

    assert distil(lambda: shutil.copytree(folder, copy, symlinks=True)) == 0
    assert any(name.startswith("proof/") for name in metrics_of(folder)[-1])
    RunFolder(copy).lock_file.unlink()
    assert trained_steps(copy) == [1]
    assert distil(lambda: None, f"run_dir={copy}", "--resume", str(copy)) == 0
    assert metrics_of(copy) == metrics_of(folder)


@pytest.mark.parametrize("patience_s", [0.1, 60.0], ids=["while the other hangs", "once the other has ended"])
def test_of_two_ranks_the_main_one_saves_though_they_cannot_meet(tmp_path: Path, patience_s: float) -> None:
    folder = tmp_path / "run"

    def wait() -> None:
        if os.environ["RANK"] == "1":
            if patience_s < 1.0:
                wait_for_checkpoint(folder, 1)
            raise KeyboardInterrupt

    def rank() -> int:
        with patch.object(stop_signals, "PATIENCE_S", patience_s):
            return run(words(folder, *SERVERS, "evaluation.path=null"), lambda policy: SlowGenerator(policy, wait))

    first, second = forked_ranks(rank)
    assert (first.returncode, second.returncode) == (2, 130), first.stderr + second.stderr
    assert "in the middle of a step: the run is saved up to step-000001" in first.stdout
    assert "waited for process 1 to sample and score its share of the groups" in first.stderr
    saved = RunFolder(folder).checkpoints / "step-000001"
    verify(saved)
    assert read_state(saved).num_ranks == len(torch.load(saved / "rng.pt", weights_only=True)) == 2


def test_an_outage_of_what_is_sampled_ahead_is_saved_by_the_thread_that_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Saved behind the step that trained meanwhile; resumed, the next step samples with the newest version, not the one
    before."""
    folder = tmp_path / "run"
    settings = (*AHEAD, "evaluation.path=null", "checkpoint.every=100", "selection.mode=drop")

    def copy(generator: FailingGenerator) -> None:
        deadline = time.monotonic() + 30
        while len(list_checkpoints(RunFolder(folder).checkpoints)) < 2:  # the first is that before the first step
            assert time.monotonic() < deadline, "nothing was saved"
            time.sleep(CALLS_S)
        shutil.copytree(folder, tmp_path / "copy", symlinks=True)

    # take over 0, generate for steps 1 and 2, take over 1, generate for step 3
    assert run(words(folder, *settings), lambda policy: FailingGenerator(policy, (5,), copy)) == 0
    assert trained_steps(folder) == [1, 2, 3, 4]
    assert "no server answers; the run is saved up to step-000002" in capsys.readouterr().out
    RunFolder(tmp_path / "copy").lock_file.unlink(missing_ok=True)
    assert trained_steps(tmp_path / "copy") == [1, 2]
    assert resume(tmp_path / "copy", *settings) == 0
    assert trained_steps(tmp_path / "copy") == [1, 2, 3, 4]


@pytest.mark.parametrize(("call", "steps"), [(3, [1]), (5, [1, 2])])
def test_a_signal_ends_a_run_that_waits_for_what_is_sampled_ahead(tmp_path: Path, call: int, steps: list[int]) -> None:
    """Also where the signal is seen between steps, and only saving waits for the sampler (the third call)."""
    settings = (*AHEAD, "evaluation.path=null", "selection.mode=drop")
    assert run(words(tmp_path / "run", *settings), lambda policy: FailingGenerator(policy, (call,), wait_for_ever)) == 0
    assert summary_of(tmp_path / "run")["stop_reason"] == "SIGTERM" and trained_steps(tmp_path / "run") == steps
    assert list_checkpoints(RunFolder(tmp_path / "run").checkpoints)[-1].name == f"step-{len(steps):06d}"
    assert resume(tmp_path / "run", *settings) == 0
    assert trained_steps(tmp_path / "run") == [1, 2, 3, 4]
