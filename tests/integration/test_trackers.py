"""Services get the same numbers as metrics.jsonl, through accelerate; one that is not installed is refused before the
run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.reference.whole_run import metrics_of, train


def test_tensorboard_gets_the_numbers_of_the_metrics_file(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "run"
    assert train(run_dir, "steps=2", "tracking.trackers=[tensorboard]") == 0
    events = EventAccumulator(str(run_dir / "otherhalf"))
    events.Reload()
    written = {record["step"]: record["reward"] for record in metrics_of(run_dir) if record["kind"] == "train"}
    found = {scalar.step: scalar.value for scalar in events.Scalars("reward")}
    assert sorted(found) == [1, 2]
    assert found == pytest.approx(written, rel=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_service_that_is_not_installed_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "tracking.trackers=[wandb]") == 2
    message = capsys.readouterr().err
    assert "tracking.trackers: wandb is not installed" in message and "pip install" in message
    assert not (tmp_path / "run").exists()
