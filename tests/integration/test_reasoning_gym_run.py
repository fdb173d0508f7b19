"""A reasoning-gym task through the command: dry run, training with its scorer, held-out accuracy with it, resuming,
explaining."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards.explain import main as explain
from rl.runs.folder import RunFolder
from rl.runs.tracking import read_json_lines
from tests.reference.whole_run import metrics_of, summary_of, train, trained_steps

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed (extra reasoning-gym)")

CONFIG = ("--config", "configs/reasoning_gym.yaml")
TASK = "{min_terms: 2, max_terms: 3, max_digits: 1}"
SMALL = (*CONFIG, f"data.task={TASK}", f"evaluation.task={TASK}", "evaluation.every=2", "steps=2")


def test_a_task_trains_and_is_graded_by_its_own_scorer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = tmp_path / "run"
    assert train(run_dir, *SMALL, "checkpoint.every=1") == 0
    assert trained_steps(run_dir) == [1, 2]
    groups = read_json_lines(RunFolder(run_dir).rollouts_file)
    right = graded = 0
    for group in groups:
        completions, reference = group["completions"], group["columns"]
        assert isinstance(completions, list) and isinstance(reference, dict)
        assert reference["reasoning_gym"]["task"] == "chain_sum"  # type: ignore[index, call-overload]
        for completion in completions:
            assert isinstance(completion, dict)
            answer, reward = completion["answer"], completion["reward"]
            assert isinstance(reward, float) and 0 <= reward <= 1
            graded += 1
            right += reward == 1.0
            if isinstance(answer, str) and answer.lstrip("-").isdigit():
                assert (reward == 1.0) == (int(answer) == int(str(group["answer"])))
    assert graded == 2 * 8 * 4 and 0 < right < graded
    train_line = next(line for line in metrics_of(run_dir) if line["kind"] == "train")
    assert train_line["reward/score/timed_out_share"] == 0 and train_line["reward/score/failed_share"] == 0
    (before,) = summary_of(run_dir)["held_out_before"].values()
    assert 0 < before["value"] < 1
    assert train(run_dir, *SMALL[2:-1], "steps=3", "checkpoint.every=1", "--resume", str(run_dir)) == 0
    assert trained_steps(run_dir) == [1, 2, 3]
    capsys.readouterr()
    assert explain(["--rollouts", str(run_dir), "--step", "1"]) == 0
    shown = capsys.readouterr().out
    assert "rewards.reasoning_gym:score" in shown and "recorded" in shown and "differs" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.task.max_terms=1"], "refused by chain_sum"),
        (["data.path=reasoning_gym:chian_sum"], "did you mean 'chain_sum'?"),
        (["data.columns.answer=null"], "needs the column 'reasoning_gym'"),
        (
            ["data.path=models/tiny-arith/questions/train.jsonl", "data.task={}"],
            "data.path: models/tiny-arith/questions/train.jsonl: reward 'score'",
        ),
    ],
)
def test_wrong_input_is_one_error_before_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train(tmp_path / "run", *SMALL, *words) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith("error: ") and message in shown.err and "Traceback" not in shown.err
    assert not (tmp_path / "run").exists()


def test_the_dry_run_says_how_many_held_out_questions_were_training_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *SMALL, "data.limit=500", "evaluation.num_questions=64", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert (
        "held-out that are training questions" in shown
        and "'State" not in shown.partition("prompt of the first question")[2])
