"""A run that collapses is stopped, and what was best before is kept and usable."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.runs.folder import RunFolder
from tests.reference.whole_run import summary_of, train

# A learning rate that rises far too high: the policy first becomes better, then falls apart.
COLLAPSING = (
    "steps=30", "optim.lr=0.05", "optim.warmup_steps=30", "selection.low=null", "selection.high=null",
    "sampling.questions_per_step=16", "sampling.group_size=8", "sampling.max_completion_tokens=48", "data.limit=4096",
    "evaluation.num_questions=64", "evaluation.samples=4", "evaluation.samples_during=4", "evaluation.every=3")


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collapse") / "run"
    assert train(folder, *COLLAPSING) == 0
    return folder


def test_a_collapsing_run_is_stopped_by_the_watchdog(collapsed: Path) -> None:
    summary = summary_of(collapsed)
    assert summary["stop_reason"] == "watchdog"
    assert summary["steps"] < 30
    assert f"step {summary['steps']}" in summary["message"]
    assert "Go on from" in summary["message"] or "checkpoint" in summary["message"] or "Look into" in summary["message"]


def test_the_best_checkpoint_of_a_collapsed_run_is_better_than_start_and_end(collapsed: Path) -> None:
    summary = summary_of(collapsed)
    best = summary["best"]
    assert 0 < best["step"] < summary["steps"]
    assert best["value"] > summary["held_out_before"]["avg@4"]["value"]
    assert best["value"] > summary["held_out_after"]["avg@4"]["value"] + 0.1
    assert (RunFolder(collapsed).checkpoints / "best").resolve().name == f"step-{best['step']:06d}"


def test_a_run_from_the_best_adapter_begins_with_its_accuracy(collapsed: Path, tmp_path: Path) -> None:
    """The same held-out seeds and the same weights give the same completions."""
    adapter = RunFolder(collapsed).checkpoints / "best" / "adapter"
    assert (
        train(
            tmp_path / "next", *COLLAPSING, f"model.adapter={adapter}", "steps=1", "optim.lr=1e-4",
            "optim.warmup_steps=0")
        == 0)
    assert summary_of(tmp_path / "next")["held_out_before"]["avg@4"]["value"] == summary_of(collapsed)["best"]["value"]
