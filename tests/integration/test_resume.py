"""A run that was killed, or stopped by a signal, and resumed ends bit for bit where the uninterrupted run ends (on the
CPU).

The reward of these runs raises a signal in its own process when it has been called so many times: always at the same
place, in the middle of a step. SIGKILL needs a process of its own; SIGTERM and SIGINT do not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rl.checkpoint import list_checkpoints, read_state
from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.train import main
from tests.reference.fork import Fork
from tests.reference.whole_run import (
    SMALL,
    metrics_of,
    own_environment,
    summary_of,
    train,
    trained_steps,
)

REWARD = '''
import os
import signal

from rewards.semantic_entropy import semantic_entropy

num_calls = 0

def agreement(*, question, completions, answer, **columns):
    global num_calls
    num_calls += 1
    if num_calls == int(os.environ.get("SIGNAL_AT_CALL", "0")):
        for name in os.environ["SIGNAL"].split():
            os.kill(os.getpid(), getattr(signal, name))
    return semantic_entropy(completions=completions)
'''
EIGHT_STEPS = ("steps=8", "checkpoint.every=2", "evaluation.every=3", "seed=5")
FIVE_STEPS = ("steps=5", *EIGHT_STEPS[1:])
# What else has a state: groups left over for the next step, dropout's random numbers, several updates per batch, a
# schedule.
DEMANDING = ("selection.mode=refill", "selection.low=0.3", "lora.dropout=0.1", "optim.epochs=2", "optim.minibatches=2",
             "optim.schedule=cosine", "optim.warmup_steps=2")


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reward") / "signals.py"
    path.write_text(REWARD)
    return f"rewards=[{{use: {path}:agreement}}]"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, reward: str) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert train(folder, *EIGHT_STEPS, reward) == 0
    return folder


def at_call(number: int, name: str) -> dict[str, str]:
    return {"SIGNAL_AT_CALL": str(number), "SIGNAL": name}


def resume(run_dir: Path, *words: str) -> int:
    return train(run_dir, "--resume", str(run_dir), *words)


def assert_same_end(run_dir: Path, other: Path) -> None:
    folder, expected = RunFolder(run_dir), RunFolder(other)
    assert metrics_of(run_dir) == metrics_of(other)
    assert folder.rollouts_file.read_bytes() == expected.rollouts_file.read_bytes()
    newest, newest_expected = list_checkpoints(folder.checkpoints)[-1], list_checkpoints(expected.checkpoints)[-1]
    assert newest.name == newest_expected.name
    for name in ("adapter/adapter_model.safetensors", "rng.pt", "optimizer.pt"):
        assert digest(newest / name) == digest(newest_expected / name), name
    state, state_expected = read_state(newest), read_state(newest_expected)
    assert (state.step, state.policy_version, state.collector.order) == (
        state_expected.step, state_expected.policy_version, state_expected.collector.order)
    assert state.collector.surplus == state_expected.collector.surplus
    assert (folder.checkpoints / "best").resolve().name == (expected.checkpoints / "best").resolve().name
    for key in ("steps", "stop_reason", "held_out_before", "held_out_after", "best", "num_sampled_tokens"):
        assert summary_of(run_dir)[key] == summary_of(other)[key], key


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_run_killed_in_the_middle_and_resumed_equals_the_uninterrupted_one(
    tmp_path: Path, reward: str, uninterrupted: Path
) -> None:
    killed = Fork(lambda: train(tmp_path / "run", *EIGHT_STEPS, reward), at_call(5 * 8 + 3, "SIGKILL")).finished()
    assert killed.returncode == -signal.SIGKILL
    assert trained_steps(tmp_path / "run") == [1, 2, 3, 4, 5]
    assert not RunFolder(tmp_path / "run").summary_file.exists()
    assert resume(tmp_path / "run", *EIGHT_STEPS, reward) == 0
    assert trained_steps(tmp_path / "run") == [1, 2, 3, 4, 5, 6, 7, 8]
    assert_same_end(tmp_path / "run", uninterrupted)


def test_a_run_killed_twice_and_resumed_without_naming_its_settings_equals_the_uninterrupted_one(
    tmp_path: Path, reward: str, uninterrupted: Path
) -> None:
    """The second kill comes before the first resumed checkpoint: steps 3 and 4 run three times."""
    run_dir = tmp_path / "run"
    killed = Fork(lambda: train(run_dir, *EIGHT_STEPS, reward), at_call(3 * 8 + 1, "SIGKILL")).finished()
    assert killed.returncode == -signal.SIGKILL
    resumed = Fork(lambda: main(["--resume", str(run_dir)]), at_call(9, "SIGKILL")).finished()
    assert resumed.returncode == -signal.SIGKILL
    assert "going on from step-000003" in resumed.stdout
    assert resume(run_dir, *EIGHT_STEPS, reward) == 0
    assert_same_end(run_dir, uninterrupted)


def test_refilling_dropout_and_several_updates_resume_to_the_same_end(tmp_path: Path, reward: str) -> None:
    words = (*FIVE_STEPS, *DEMANDING, reward)
    assert train(tmp_path / "whole", *words) == 0
    assert any(record["groups/surplus"] for record in metrics_of(tmp_path / "whole") if record["kind"] == "train")
    killed = Fork(lambda: train(tmp_path / "run", *words), at_call(40, "SIGKILL")).finished()
    assert killed.returncode == -signal.SIGKILL
    assert 2 <= len(trained_steps(tmp_path / "run")) < 5
    assert resume(tmp_path / "run", *words) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


def test_over_a_base_in_4_bits_a_run_resumes_to_the_same_end(tmp_path: Path, reward: str) -> None:
    words = (*FIVE_STEPS, "model.quantization=nf4", reward)
    assert train(tmp_path / "whole", *words) == 0
    killed = Fork(lambda: train(tmp_path / "run", *words), at_call(3 * 8 + 3, "SIGKILL")).finished()
    assert killed.returncode == -signal.SIGKILL and trained_steps(tmp_path / "run") == [1, 2, 3]
    assert resume(tmp_path / "run", *words, "model.quantization=null") == 2  # another run
    assert resume(tmp_path / "run", *words) == 0
    assert_same_end(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory, reward: str) -> Path:
    folder = tmp_path_factory.mktemp("three") / "run"
    assert train(folder, "steps=3", "evaluation.path=null", reward) == 0
    return folder


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_run_killed_in_its_first_steps_resumes_from_the_start(
    tmp_path: Path, reward: str, three_steps: Path, has_checkpoint: bool
) -> None:
    """From the checkpoint before the first step, or, where the kill came before even that, without one."""
    settings = ("steps=3", "evaluation.path=null", reward)
    killed = Fork(lambda: train(tmp_path / "run", *settings), at_call(12, "SIGKILL")).finished()
    assert killed.returncode == -signal.SIGKILL
    assert trained_steps(tmp_path / "run") == [1]
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step-000000"]
    if not has_checkpoint:
        shutil.rmtree(checkpoints)
    assert resume(tmp_path / "run", *settings) == 0
    assert metrics_of(tmp_path / "run") == metrics_of(three_steps)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_ends_well_and_the_run_goes_on_to_the_same_end(
    tmp_path: Path,
    reward: str,
    uninterrupted: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    raise_in_this_process(monkeypatch, at_call(4 * 8 + 5, name))
    assert train(run_dir, *EIGHT_STEPS, reward) == 0
    monkeypatch.delenv("SIGNAL_AT_CALL")
    assert summary_of(run_dir)["stop_reason"] == name
    assert trained_steps(run_dir) == [1, 2, 3, 4, 5]
    assert list_checkpoints(RunFolder(run_dir).checkpoints)[-1].name == "step-000005"
    assert f"--resume {run_dir}" in capsys.readouterr().out
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert resume(run_dir, *EIGHT_STEPS, reward) == 0
    assert_same_end(run_dir, uninterrupted)


def raise_in_this_process(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    # The module of the reward file is loaded once in a process, and counts on.
    for module in [module for module in sys.modules if module.startswith("reward_file_signals_")]:
        monkeypatch.delitem(sys.modules, module)


def test_a_second_ctrl_c_ends_the_run_at_once_and_it_goes_on_from_what_was_saved(
    tmp_path: Path,
    reward: str,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = tmp_path / "run"
    raise_in_this_process(monkeypatch, at_call(4 * 8 + 5, "SIGINT SIGINT"))
    assert train(run_dir, *EIGHT_STEPS, reward) == 130
    monkeypatch.delenv("SIGNAL_AT_CALL")
    message = capsys.readouterr().err
    assert (
        message.startswith("error: interrupted")
        and f"saved up to step-000004: go on with --resume {run_dir}" in message)
    assert trained_steps(run_dir) == [1, 2, 3, 4]
    assert resume(run_dir, *EIGHT_STEPS, reward) == 0
    assert_same_end(run_dir, uninterrupted)


def test_the_link_to_the_best_checkpoint_is_mended_on_resuming(
    tmp_path: Path, reward: str, uninterrupted: Path
) -> None:
    """A kill between writing the best checkpoint and pointing `best` at it leaves the link where it was."""
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted, run_dir, symlinks=True)
    checkpoints = RunFolder(run_dir).checkpoints
    right = (checkpoints / "best").resolve()
    (checkpoints / "best").unlink()
    (checkpoints / "best").symlink_to(next(path.name for path in list_checkpoints(checkpoints) if path != right))
    assert resume(run_dir, *EIGHT_STEPS, reward) == 0
    assert_same_end(run_dir, uninterrupted)


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path: Path, reward: str, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run", symlinks=True)
    assert resume(tmp_path / "run", *EIGHT_STEPS, reward) == 0
    assert_same_end(tmp_path / "run", uninterrupted)


def test_a_finished_run_goes_on_when_given_more_steps(tmp_path: Path, reward: str) -> None:
    assert train(tmp_path / "run", "steps=1", reward) == 0
    assert resume(tmp_path / "run", "steps=2", reward) == 0
    assert trained_steps(tmp_path / "run") == [1, 2]
    assert [(record["step"], record["kind"]) for record in metrics_of(tmp_path / "run")] == [
        (0, "eval"), (1, "train"), (1, "eval"), (2, "train"), (2, "eval")]
    assert summary_of(tmp_path / "run")["steps"] == 2


def test_the_end_of_the_launcher_stops_and_saves_the_run(tmp_path: Path) -> None:
    """`accelerate launch` does not hand SIGTERM on to the process that trains."""
    run_dir = tmp_path / "run"
    launcher = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1", "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "rl/train.py", *SMALL, f"run_dir={run_dir}",
            "steps=100000"],
        cwd=project_root(),
        env=own_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: RunFolder(run_dir).metrics_file.exists() and len(trained_steps(run_dir)) >= 2)
    finally:
        launcher.terminate()
        launcher.wait(timeout=60)
        # Where the wish is not heard, the training itself has to be ended.
        trainer = json.loads(RunFolder(run_dir).lock_file.read_text())["pid"]
        deadline = time.monotonic() + 60
        while Path(f"/proc/{trainer}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        if time.monotonic() >= deadline:
            os.kill(trainer, signal.SIGKILL)
    summary = summary_of(run_dir)
    assert summary["stop_reason"] == "launcher's end"
    assert list_checkpoints(RunFolder(run_dir).checkpoints)[-1].name == f"step-{summary['steps']:06d}"


def wait_until(is_true: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"nothing happened for {seconds} s"
        time.sleep(0.1)
