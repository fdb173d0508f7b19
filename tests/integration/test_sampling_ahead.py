"""Whole runs with generator.max_staleness: 1: one version old, resumed bit for bit, and faster where sampler and
trainer are apart."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rl.checkpoint import list_checkpoints, read_state
from rl.runs.folder import RunFolder
from rl.runs.tracking import read_json_lines
from rl.update import Updater
from rl.update_report import UpdateReport
from tests.integration.test_resume import (
    DEMANDING,
    FIVE_STEPS,
    REWARD,
    assert_same_end,
    at_call,
    raise_in_this_process,
)
from tests.reference.fork import Fork, forked_ranks
from tests.reference.sampling_ahead import AHEAD, SERVERS, EmbeddedGenerator, run
from tests.reference.whole_run import GRPO, SMALL, metrics_of, summary_of, trained_steps


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reward") / "signals.py"
    path.write_text(REWARD)
    return f"rewards=[{{use: {path}:agreement}}]"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, reward: str) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert run(words(folder, *FIVE_STEPS, reward)) == 0
    return folder


def words(folder: Path, *more: str) -> list[str]:
    return [*SMALL, f"run_dir={folder}", *AHEAD, *more]


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [dict(record) for record in read_json_lines(RunFolder(folder).metrics_file) if record["kind"] == "train"]


def test_each_step_trains_on_what_the_version_before_sampled(tmp_path: Path) -> None:
    assert run(words(tmp_path / "run", "steps=4", "evaluation.every=2")) == 0
    lines = train_lines(tmp_path / "run")
    assert [line["policy/version"] for line in lines] == [1, 2, 3, 4]
    assert [line["policy/staleness"] for line in lines] == [0, 1, 1, 1]
    # A difference to another version says nothing about the sampler; the ratio to it is the importance weight.
    assert ["mismatch/mean" in line for line in lines] == [True, False, False, False]
    assert lines[0]["loss/ratio"] == 1.0 and all(line["loss/ratio"] != 1.0 for line in lines[1:])
    rollouts = read_json_lines(RunFolder(tmp_path / "run").rollouts_file)
    versions: dict[Any, set[Any]] = {}
    for group in rollouts:
        versions.setdefault(group["step"], set()).update(c["policy_version"] for c in group["completions"])  # type: ignore
    assert versions == {1: {0}, 2: {0}, 3: {1}, 4: {2}}


def test_without_staleness_every_step_is_on_policy(tmp_path: Path) -> None:
    assert run([*SMALL, f"run_dir={tmp_path / 'run'}", *SERVERS]) == 0
    lines = train_lines(tmp_path / "run")
    assert [line["policy/staleness"] for line in lines] == [0, 0, 0] and all("mismatch/mean" in line for line in lines)
    assert all("ahead_wait_s" not in line for line in lines)


@pytest.mark.parametrize(("demanding", "call"), [((), 3 * 8 + 3), (DEMANDING, 52)])
def test_a_killed_run_and_the_uninterrupted_one_end_alike(
    tmp_path: Path, reward: str, demanding: tuple[str, ...], call: int, uninterrupted: Path
) -> None:
    """The checkpoint holds the groups that were sampled ahead; the kill comes in the middle of a step, after further
    ones were drawn."""
    settings = (*FIVE_STEPS, *demanding, reward)
    whole = tmp_path / "whole" if demanding else uninterrupted
    assert not demanding or run(words(whole, *settings)) == 0
    killed = Fork(lambda: run(words(tmp_path / "run", *settings)), at_call(call, "SIGKILL")).finished()
    assert killed.returncode == -signal.SIGKILL
    newest = list_checkpoints(RunFolder(tmp_path / "run").checkpoints)[-1]
    state = read_state(newest)
    ahead, surplus = state.collector.ahead, state.collector.surplus
    assert 0 < state.step < 5 and ahead is not None and len(ahead.groups) + len(surplus) == 8
    assert run([*words(tmp_path / "run", *settings), "--resume", str(tmp_path / "run")]) == 0
    assert trained_steps(tmp_path / "run") == [1, 2, 3, 4, 5]
    assert_same_end(tmp_path / "run", whole)
    # the last step samples nothing
    assert read_state(list_checkpoints(RunFolder(tmp_path / "run").checkpoints)[-1]).collector.ahead is None


def test_a_signal_waits_for_what_is_in_flight_and_saves_it(
    tmp_path: Path, reward: str, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_in_this_process(monkeypatch, at_call(2 * 8 + 5, "SIGTERM"))
    assert run(words(tmp_path / "run", *FIVE_STEPS, reward)) == 0
    monkeypatch.delenv("SIGNAL_AT_CALL")
    assert summary_of(tmp_path / "run")["stop_reason"] == "SIGTERM" and len(trained_steps(tmp_path / "run")) < 5
    assert run([*words(tmp_path / "run", *FIVE_STEPS, reward), "--resume", str(tmp_path / "run")]) == 0
    assert_same_end(tmp_path / "run", uninterrupted)


class SlowGenerator(EmbeddedGenerator):
    """Sleeps most of a step, as a sampler on other devices lets the trainer's alone."""

    max_together, generate_s = 64, 0.7


def test_a_step_takes_the_longer_of_sampling_and_training_and_not_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Updater.update

    def slow_update(self: Updater, *arguments: Any, **keywords: Any) -> UpdateReport:
        ends = time.monotonic() + SlowGenerator.generate_s
        report = real(self, *arguments, **keywords)
        time.sleep(max(0.0, ends - time.monotonic()))
        return report

    monkeypatch.setattr(Updater, "update", slow_update)
    seconds = {}
    few = ("evaluation.path=null", "sampling.questions_per_step=2", "sampling.group_size=2")  # nearly all is sleep
    for name, settings in (("in turn", (*SERVERS, "steps=2")), ("ahead", (*AHEAD, "steps=5"))):
        assert run([*SMALL, f"run_dir={tmp_path / name}", *settings, *few], SlowGenerator) == 0
        seconds[name] = [line["step_s"] / SlowGenerator.generate_s for line in train_lines(tmp_path / name)][1:]
    assert min(seconds["in turn"]) >= 2.0
    assert sorted(seconds["ahead"])[1] < 1.6  # the second best of four


def test_two_ranks_sample_ahead_and_meet_in_the_main_thread(tmp_path: Path) -> None:
    settings = (*GRPO, "steps=4", "sampling.questions_per_step=5", "checkpoint.every=1", "evaluation.path=null")
    for finished in forked_ranks(lambda: run(words(tmp_path / "two", *settings))):
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert run(words(tmp_path / "one", *settings)) == 0
    one, two = (metrics_of(tmp_path / name) for name in ("one", "two"))
    # The first two steps were sampled before anything was trained: afterwards rounding may move a token.
    for line, expected in zip(two[:2], one[:2], strict=True):
        for key in ("reward", "tokens/sampled", "groups/trained"):
            assert line[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6)
    assert [line["policy/staleness"] for line in two] == [line["policy/staleness"] for line in one]
    states = [read_state(list_checkpoints(RunFolder(tmp_path / name).checkpoints)[-2]) for name in ("one", "two")]
    assert [len(state.collector.ahead.groups) if state.collector.ahead else 0 for state in states] == [5, 5]
