"""The study of rewards runs what is missing, repeats nothing, and prints one row per reward; its figures are not
tested."""

from __future__ import annotations

import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest
from reward_study import STUDY, main

from rl.configuration.loading import load
from rl.questions.inputs import read_inputs
from tests.reference.fork import module_in_fork
from tests.reference.whole_run import in_process, pixels

SMALL = (
    "steps=1", "evaluation.samples=1", "evaluation.num_questions=8", "sampling.questions_per_step=4", "data.limit=16")


def study(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    with patch("subprocess.run", module_in_fork), pixels():
        return in_process(
            main, "--only", "self-certainty", "--seeds", "3", "--folder", str(folder), "--out",
            str(folder / "study.png"), "--set", *SMALL, *more)


@pytest.mark.parametrize("name", STUDY)
def test_every_row_of_the_study_is_a_configuration_that_can_run(name: str) -> None:
    assert read_inputs(load(Path("configs/quickstart.yaml"), [*STUDY[name].overrides, "data.limit=4"])).rewards.names


def test_complete_runs_are_not_repeated_and_others_are(tmp_path: Path) -> None:
    first = study(tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr.splitlines()[-1] == "self-certainty, seed 3"
    rows = first.stdout.splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["self-certainty"]
    assert {row.count("|") for row in rows} == {8}
    assert (tmp_path / "study.png").stat().st_size > 0
    second = study(tmp_path)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert "self-certainty, seed 3" in study(tmp_path, "optim.lr=1e-3").stderr
