"""When label-free training works and when not, on the tiny bases: benchmarks/base_study.py in small, and that it can
run."""

from __future__ import annotations

import math
import os
import subprocess
from pathlib import Path
from unittest.mock import patch

import pytest
from base_study import BASES, STUDY, TRAIN, WARMUP, WARMUP_SETTINGS, main

from rl.configuration.loading import load
from rl.paths import project_root
from rl.questions.inputs import read_inputs
from rl.runs.folder import RunFolder
from rl.supervised.config import WarmupConfig
from rl.supervised.inputs import read_warmup_inputs
from tests.reference.warmup import warm_up
from tests.reference.whole_run import (
    GRPO,
    held_out_gain,
    in_process,
    metrics_of,
    module_in_process,
    pixels,
    summary_of,
    train,
)

BRIEF, PLAIN = ("model=models/tiny-arith-brief",), ("model=models/tiny-arith-plain",)
# The quick start's optimiser and, in half the size, its batches and evaluations; the data's limit as there.
HALF = (
    "data.limit=4096", "sampling.questions_per_step=16", "sampling.group_size=8", "sampling.max_completion_tokens=48",
    "evaluation.num_questions=64", "evaluation.samples=4", "evaluation.samples_during=4", "evaluation.every=5",
    "optim.schedule=linear", "lora.rank=16")


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "warmup"
    assert (
        warm_up(
            folder, *WARMUP_SETTINGS, "lora.rank=16", "optim.batch_rows=32", "optim.micro_batch_rows=32",
            "optim.lr=1e-3", "optim.schedule=linear", "evaluation.path=models/tiny-arith/questions/held_out.jsonl",
            "evaluation.num_questions=64", "evaluation.samples=4", "evaluation.every=0")
        == 0)
    return folder


def test_the_watchdog_by_default_stops_empo_on_a_base_without_the_ability(tmp_path: Path) -> None:
    """At twice the quick start's learning rate, with evaluations closer together: it stops at step 15 with seeds 0, 1
    and 2, whose rewards rise by 1.7 to 2.0 times and whose accuracies fall by 0.06."""
    words = (
        "steps=40", "optim.lr=1e-3", "optim.schedule=constant", "evaluation.every=3", "evaluation.num_questions=128",
        "evaluation.samples=2", "evaluation.samples_during=2")
    assert train(tmp_path / "run", *BRIEF, *HALF, *words) == 0
    summary = summary_of(tmp_path / "run")
    assert summary["stop_reason"] == "watchdog" and summary["steps"] < 40
    assert "the reward rose" in summary["message"]
    rewards = [
        line["reward_since_evaluation"] for line in metrics_of(tmp_path / "run") if "reward_since_evaluation" in line]
    assert rewards[4] > 1.5 * rewards[0]  # type: ignore[operator]
    assert held_out_gain(tmp_path / "run") < 0.02
    assert (RunFolder(tmp_path / "run").checkpoints / "best" / "adapter").is_dir()


@pytest.mark.parametrize("reward", [(), GRPO], ids=["EMPO", "GRPO"])
def test_a_base_without_the_format_gives_nothing_to_learn_from_and_is_stopped(
    reward: tuple[str, ...], tmp_path: Path
) -> None:
    assert train(tmp_path / "run", *PLAIN, *HALF, *reward, "steps=20") == 0
    summary = summary_of(tmp_path / "run")
    assert (summary["stop_reason"], summary["steps"]) == ("watchdog", 3) and "had no answer" in summary["message"]
    assert summary["held_out_after"]["avg@4"]["value"] < 0.02


@pytest.mark.parametrize("reward", [(), GRPO], ids=["EMPO", "GRPO"])
def test_a_short_warm_up_gives_it_the_format_and_training_the_rest(
    reward: tuple[str, ...], warmed: Path, tmp_path: Path
) -> None:
    warmup = summary_of(warmed)
    after_warmup = warmup["held_out_after"]["avg@4"]["value"]
    assert warmup["held_out_before"]["avg@4"]["value"] < 0.02 and 0.2 < after_warmup < 0.85
    words = ("steps=10", "optim.lr=1e-3", f"model.adapter={warmed / 'adapter'}")
    assert train(tmp_path / "run", *PLAIN, *HALF, *reward, *words) == 0
    assert summary_of(tmp_path / "run")["stop_reason"] == "completed"
    assert summary_of(tmp_path / "run")["held_out_before"]["avg@4"]["value"] == after_warmup
    assert held_out_gain(tmp_path / "run") > 0.1


@pytest.mark.parametrize("name", STUDY)
def test_every_row_of_the_study_is_a_configuration_that_can_run(name: str) -> None:
    entry = STUDY[name]
    assert read_inputs(load(TRAIN, [f"model=models/{entry.base}", *entry.overrides, "data.limit=4"])).rewards.names


def test_the_studys_warm_up_reads_few_solutions() -> None:
    assert len(read_warmup_inputs(load(WARMUP, WARMUP_SETTINGS, WarmupConfig)).rows) == 64


def test_the_bases_differ_in_their_weights_alone() -> None:
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert len({(project_root() / "models" / base / file).read_bytes() for base in BASES}) == 1, file
    assert (
        len({(project_root() / "models" / base / "model.safetensors").read_bytes() for base in BASES})
        == len(BASES)
        == 3)


def study(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    small = (
        "steps=1", "evaluation.samples=1", "evaluation.num_questions=8", "sampling.questions_per_step=4",
        "data.limit=16")
    few = ("steps=1", "evaluation.samples=1", "evaluation.num_questions=8", "data.limit=16", "optim.batch_rows=8",
           "optim.micro_batch_rows=8")
    with patch("subprocess.run", module_in_process), pixels():
        return in_process(
            main, "--only", "brief-empo", "warm-empo", "--seeds", "3", "--questions", "4", "--folder", str(folder),
            "--out", str(folder / "study.png"), "--set", *small, *more, "--set-warmup", *few)


def test_the_study_runs_what_is_missing_and_a_new_warm_up_makes_what_came_from_it_old(tmp_path: Path) -> None:
    first = study(tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stderr.splitlines() == ["brief-empo-3", "warmup-3", "warm-empo-3"]
    rows = [row.split("|")[1:3] for row in first.stdout.splitlines() if row.startswith("| tiny-arith")]
    assert [" ".join(cell.strip() for cell in row[:1]) for row in rows] == [
        "tiny-arith-plain", "tiny-arith-brief", "tiny-arith-plain", "tiny-arith-brief", "tiny-arith-plain"]
    assert (tmp_path / "study.png").stat().st_size > 0
    second = study(tmp_path)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    summary = tmp_path / "warmup-3" / "summary.json"
    newer = (
        math.ceil(max((tmp_path / name / "summary.json").stat().st_mtime for name in ("warm-empo-3", "warmup-3"))) + 1)
    os.utime(summary, (newer, newer))
    assert study(tmp_path).stderr.splitlines() == ["warm-empo-3"]
