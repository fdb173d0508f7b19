"""How a run ends: late alarms count, an ended run resumes as what it was, checkpoints are ranked like with like."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rl.checkpoint import list_checkpoints
from rl.runs.folder import RunFolder
from tests.reference.whole_run import metrics_of, summary_of, train, trained_steps

# So high a rate that the first update breaks the policy.
BREAKING = (
    "steps=2", "optim.lr=0.1", "selection.low=null", "selection.high=null", "evaluation.every=0", "checkpoint.every=1")


def test_a_collapse_since_the_last_evaluation_is_no_completion(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *BREAKING) == 0
    summary = summary_of(run)
    assert summary["steps"] == 2 and summary["stop_reason"] == "watchdog" and "below the best" in summary["message"]
    assert summary["best"]["step"] == 0
    before = metrics_of(run)
    assert train(run, *BREAKING, "--resume") == 0
    assert metrics_of(run) == before
    assert (summary_of(run)["stop_reason"], summary_of(run)["message"]) == ("watchdog", summary["message"])


def test_a_run_that_had_ended_and_goes_on_is_evaluated_at_its_new_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "steps=2") == 0
    assert train(run, "--resume", "steps=4") == 0
    assert trained_steps(run) == [1, 2, 3, 4]
    last = [record for record in metrics_of(run) if record["kind"] == "eval"][-1]
    (after,) = summary_of(run)["held_out_after"].values()
    assert last["step"] == 4 and last["held_out/accuracy"] == after["value"]
    assert summary_of(run)["stop_reason"] == "completed" and summary_of(run)["message"] is None


def test_checkpoints_are_ranked_by_the_samples_that_all_evaluations_have(tmp_path: Path) -> None:
    """Nothing is learnt: every evaluation sees the same completions, so that only the start can be best."""
    run = tmp_path / "run"
    assert (
        train(
            run, "steps=4", "optim.lr=1e-12", "evaluation.every=1", "evaluation.samples=4",
            "evaluation.samples_during=1")
        == 0)
    accuracies = {record["held_out/accuracy"] for record in metrics_of(run) if record["kind"] == "eval"}
    assert len(accuracies) == 2  # avg@4 and avg@1 of the same policy differ
    assert summary_of(run)["best"]["step"] == 0 and summary_of(run)["best"]["metric"] == "avg@1"


def test_a_run_without_evaluation_has_a_checkpoint_before_its_first_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, "steps=2", "evaluation.path=null", "checkpoint.keep=9") == 0
    assert [path.name for path in list_checkpoints(RunFolder(run).checkpoints)] == ["step-000000", "step-000002"]


@pytest.mark.parametrize(("key", "name"), [("data.path", "train.jsonl"), ("evaluation.path", "held_out.jsonl")])
def test_resuming_with_edited_questions_is_refused_by_the_files_key(
    tmp_path: Path, key: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = Path(shutil.copy(f"models/tiny-arith/questions/{name}", tmp_path / name))
    settings = (f"{key}={questions}", "steps=2")
    assert train(tmp_path / "run", *settings) == 0
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[3]["question"] = "1+2+3=?"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert train(tmp_path / "run", *settings, "steps=3", "--resume") == 2
    message = capsys.readouterr().err
    assert (
        "Traceback" not in message
        and "the questions have changed since" in message
        and key in message
        and "Remedy" in message)
    assert train(tmp_path / "run", f"{key}={questions}", "data.limit=5", "evaluation.num_questions=5", "--resume") == 2
