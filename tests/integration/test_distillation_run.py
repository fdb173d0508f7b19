"""Whole runs with a teacher, made by a short warm-up: the student comes near it without rewards and without answers."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from rl.checkpoint import list_checkpoints, read_state
from rl.runs.folder import RunFolder
from rl.runs.tracking import read_json_lines
from tests.integration.test_resume import assert_same_end, resume
from tests.reference.fork import Fork, after_line, forked_ranks, signal_itself
from tests.reference.tiny_run import HELD_OUT, tiny_policy
from tests.reference.warmup import warm_up
from tests.reference.whole_run import held_out_gain, metrics_of, summary_of, train, trained_steps
from tests.rl.teacher.test_advantages import other_vocabulary

PURE = (
    "rewards=[]", "selection.low=null", "selection.high=null", "selection.mode=drop", "sampling.group_size=2",
    "optim.lr=1e-3")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The override that names it: an adapter that a warm-up on worked solutions made."""
    folder = tmp_path_factory.mktemp("teacher") / "warmup"
    assert (
        warm_up(
            folder, "lora.rank=16", "data.limit=null", "data.held_out_rows=0", "steps=40", "optim.batch_rows=32",
            "optim.micro_batch_rows=32", "optim.lr=1e-3", "optim.schedule=linear", "evaluation.path=null",
            "checkpoint.every=0")
        == 0)
    return f"teacher={{path: models/tiny-arith, adapter: {folder / 'adapter'}}}"


def reverse_kls(run_dir: Path) -> list[float]:
    return [
        float(str(record["distillation/reverse_kl"])) for record in metrics_of(run_dir) if record["kind"] == "train"]


def test_without_rewards_the_distance_to_the_teacher_falls_and_accuracy_rises(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "steps=16", "sampling.questions_per_step=24", "data.limit=null", "optim.schedule=linear",
        f"evaluation.path={HELD_OUT}", "evaluation.num_questions=64", "evaluation.every=0",
        "sampling.max_completion_tokens=48")
    assert train(tmp_path / "run", *words, *PURE, teacher) == 0
    distances = reverse_kls(tmp_path / "run")
    assert len(distances) == 16
    assert 0 < sum(distances[-3:]) / 3 < 0.4 * sum(distances[:2]) / 2
    assert held_out_gain(tmp_path / "run") > 0.25
    record, *_ = [
        record for record in read_json_lines(RunFolder(tmp_path / "run").metrics_file) if record["kind"] == "train"]
    assert 0 < float(str(record["teacher_s"])) < float(str(record["step_s"]))
    assert record["reward"] == 0.0 and record["refused/equal_rewards"] == 0.0 and record["groups/trained"] == 24
    out = capsys.readouterr().out
    assert "teacher: local, models/tiny-arith with" in out and "teacher kl" in out
    assert summary_of(tmp_path / "run")["stop_reason"] == "completed"


def test_a_teacher_beside_a_reward_adds_to_it(tmp_path: Path, teacher: str) -> None:
    """Rewards that are always equal train nothing by themselves; beside a teacher every group trains."""
    reward = tmp_path / "same.py"
    reward.write_text("def same(*, completions, **columns):\n    return [1.0] * len(completions)\n")
    words = ("steps=2", "evaluation.path=null", "selection.low=null", "selection.high=null", "selection.mode=drop",
             f"rewards=[{{use: {reward}:same}}]")
    assert train(tmp_path / "alone", *words) == 0
    assert train(tmp_path / "taught", *words, teacher) == 0
    alone, taught = (
        [record for record in metrics_of(tmp_path / name) if record["kind"] == "train"] for name in ("alone", "taught"))
    assert [record["groups/trained"] for record in alone] == [0, 0] and [
        record["policy/version"] for record in alone
    ] == [0, 0]
    assert [record["groups/trained"] for record in taught] == [8, 8] and [
        record["policy/version"] for record in taught
    ] == [1, 2]
    assert all(record["reward"] == 1.0 for record in taught)


def test_a_teacher_of_another_vocabulary_ends_with_a_message_and_leaves_an_earlier_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert train(run_dir, "steps=1", "evaluation.path=null") == 0
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    capsys.readouterr()
    other = other_vocabulary(tmp_path / "other")
    for words in ((), ("--dry-run",)):
        assert train(run_dir, "steps=1", "evaluation.path=null", *PURE, f"teacher={other}", *words) == 2
        message = capsys.readouterr().err
        assert message.startswith(
            f"error: teacher.path: {other} has another vocabulary (99 tokens) than the student's, "
            "model.path=models/tiny-arith (99 tokens): the token '7' has id 27 in the student and is id 28 in the "
            "teacher")
        assert (
            "Remedy: a teacher with the student's tokenizer; or let the teacher answer the questions and warm up on its"
            in message)
        assert "Traceback" not in message
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]


def test_a_teacher_whose_weights_cannot_be_loaded_leaves_an_earlier_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found later than the vocabulary, but before the folder is touched too."""
    cut = other_vocabulary(tmp_path / "cut", swap=("7", "7"))
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100_000])
    assert train(tmp_path / "run", "steps=1", "evaluation.path=null", *PURE, f"teacher={cut}") == 2
    assert capsys.readouterr().err.startswith(f"error: teacher.path: {cut}")
    assert not (tmp_path / "run").exists()


SETTINGS = (
    "steps=6", "checkpoint.every=2", "evaluation.path=null", "seed=5", "optim.epochs=2", "optim.minibatches=2", *PURE)


def test_a_distillation_killed_and_resumed_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, teacher: str
) -> None:
    assert train(tmp_path / "whole", *SETTINGS, teacher) == 0
    run_dir = tmp_path / "run"
    with after_line({"kind": "train", "step": 3}, signal_itself(signal.SIGKILL)):
        killed = Fork(lambda: train(run_dir, *SETTINGS, teacher)).finished()
    assert killed.returncode == -signal.SIGKILL
    assert 3 <= len(trained_steps(run_dir)) < 6 and list_checkpoints(RunFolder(run_dir).checkpoints)
    assert resume(run_dir, *SETTINGS, teacher) == 0
    assert_same_end(run_dir, tmp_path / "whole")


def test_a_run_does_not_go_on_with_another_teacher_in_the_same_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make_teacher(scale: float) -> None:
        tiny_policy(adapter_scale=scale).model.save_pretrained(str(tmp_path / "adapter"))

    teacher = f"teacher={{path: models/tiny-arith, adapter: {tmp_path / 'adapter'}}}"
    words = ("checkpoint.every=1", "evaluation.path=null", *PURE, teacher)
    make_teacher(0.05)
    assert train(tmp_path / "run", "steps=1", *words) == 0
    make_teacher(0.3)
    assert resume(tmp_path / "run", "steps=2", *words) == 2
    assert "teacher.adapter: the weights differ from those that the run began with" in capsys.readouterr().err
    make_teacher(0.05)
    assert resume(tmp_path / "run", "steps=2", *words) == 0


def test_without_rewards_the_watchdog_is_given_minus_the_distance_to_the_teacher(tmp_path: Path) -> None:
    words = (
        "steps=2", f"evaluation.path={HELD_OUT}", "evaluation.num_questions=4", "evaluation.every=2",
        "checkpoint.every=2", *PURE, "teacher=models/tiny-arith")
    tiny_policy(adapter_scale=0.05).model.save_pretrained(str(tmp_path / "adapter"))
    assert train(tmp_path / "run", f"model.adapter={tmp_path / 'adapter'}", "lora.rank=4", *words) == 0
    judged = read_state(list_checkpoints(RunFolder(tmp_path / "run").checkpoints)[-1]).watchdog.evaluations
    distances = reverse_kls(tmp_path / "run")
    assert [evaluation.step for evaluation in judged] == [0, 2]
    last = judged[-1].reward
    assert last is not None and last == pytest.approx(-sum(distances) / 2) and last < -0.01


def test_two_ranks_ask_the_teacher_for_their_shares_and_distil_as_one_does(tmp_path: Path, teacher: str) -> None:
    words = (
        "steps=3", "evaluation.path=null", "tracking.progress=off", "sampling.questions_per_step=5", "optim.eps=1e-4",
        *PURE, teacher)
    assert train(tmp_path / "one", *words) == 0
    for done in forked_ranks(lambda: train(tmp_path / "two", *words)):
        assert done.returncode == 0, done.stderr[-2000:]
    assert read_state(list_checkpoints(RunFolder(tmp_path / "two").checkpoints)[-1]).num_ranks == 2
    one, two = reverse_kls(tmp_path / "one"), reverse_kls(tmp_path / "two")
    assert one[0] == pytest.approx(two[0], abs=1e-6) and one[0] > 0
    # Later batches are sampled from weights that differ by rounding; mostly the same tokens come.
    assert one == pytest.approx(two, abs=2e-3)


def test_a_warm_up_learns_a_teachers_distributions_and_refuses_one_of_another_vocabulary(
    tmp_path: Path, teacher: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (
        "steps=12", "lora.rank=16", "optim.batch_rows=16", "optim.micro_batch_rows=16", "optim.lr=1e-3",
        "evaluation.path=null", "data.limit=256")
    distillation = teacher.removeprefix("teacher=")
    assert warm_up(tmp_path / "run", *words, f"distillation={{teacher: {distillation}, divergence: reverse_kl}}") == 0
    losses = [float(str(record["loss/value"])) for record in metrics_of(tmp_path / "run") if record["kind"] == "train"]
    assert len(losses) == 12 and 0 < losses[-1] < 0.5 * losses[0]
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    capsys.readouterr()
    other = other_vocabulary(tmp_path / "other")
    assert warm_up(tmp_path / "none", *words, f"distillation.teacher={other}") == 2
    assert capsys.readouterr().err.startswith(
        f"error: distillation.teacher.path: {other} has another vocabulary (99 tokens)")
    assert not (tmp_path / "none").exists()
