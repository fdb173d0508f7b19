"""`python -m rl.pipeline` on the tiny model: all four kinds of stages, killed in the middle of each, changed and run
again."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import yaml
from torch.distributed import run as launcher
from torch.distributed.launcher.api import elastic_launch

from eval.store import Completions
from rl.pipeline import main
from rl.records import Json
from rl.rejection.samples import SampleStore
from rl.runs.folder import write_atomically
from rl.runs.tracking import JsonLines
from rl.stages.processes import free_port
from rl.trainer import Trainer
from tests.reference.fork import Fork, ForkedModule, after, forked_ranks
from tests.reference.whole_run import in_process, metrics_of, pixels, summary_of

HELD_OUT = "models/tiny-arith/questions/held_out.jsonl"
QUIET = {"tracking.progress": "lines"}
WARMUP = {**QUIET, "steps": 4, "lora.rank": 4, "optim.batch_rows": 8, "optim.micro_batch_rows": 4, "data.limit": 64,
          "data.held_out_rows": 8, "evaluation.num_questions": 12, "evaluation.samples": 2, "evaluation.every": 1,
          "checkpoint.every": 1}
RL = {**QUIET, "steps": 4, "lora.rank": 4, "sampling.questions_per_step": 8, "sampling.group_size": 4, "data.limit": 64,
      "evaluation.num_questions": 12, "evaluation.samples": 2, "checkpoint.every": 1}
STAGES: list[dict[str, Any]] = [
    {"name": "cold", "kind": "warmup", "config": "configs/warmup_tiny.yaml", "set": WARMUP},
    {"name": "rl", "kind": "rl", "config": "configs/tiny_grpo.yaml", "set": RL},
    {
        "name": "reject",
        "kind": "reject",
        "config": "configs/reject_tiny.yaml",
        "set": {
            **QUIET, "data.limit": 24, "sampling.samples": 2, "sampling.questions_per_chunk": 4}},
    {
        "name": "sft", "kind": "warmup", "policy": "base", "config": "configs/warmup_tiny.yaml",
        "set": {**WARMUP, "data.limit": None, "data.held_out_rows": 2, "steps": 2}},
    {
        "name": "eval",
        "kind": "eval",
        "set": {
            "benchmarks": HELD_OUT, "limit": 16, "k": 2, "prompt": "question_line", "temperature": 1, "max-tokens": 48,
            "max-sequences": 8, "no-plots": True}}]
FOLDERS = ("1-cold", "2-rl", "3-reject", "4-sft", "5-eval")


def write(folder: Path, *stages: dict[str, Any], **keys: Any) -> Path:
    file = folder / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"run_dir": str(folder / "run"), "seed": 0, "stages": list(stages), **keys}))
    return file


def stage_here(command: Sequence[str], environment: Mapping[str, str], stop: object) -> int:
    """In the place of rl.stages.run.run_process: a stage's command in this process."""
    _, option, module, *words = command
    assert option == "-m"
    return int(importlib.import_module(module).main(words))


def pipeline_here(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The pipeline and its stages in this process."""
    with patch("rl.stages.run.run_process", stage_here):
        return in_process(main, "--config", str(file), *words)


def results(run: Path) -> dict[str, Any]:
    """All that the stages give, without times."""
    evaluation = json.loads((run / "5-eval" / "result.json").read_text())
    return {
        "weights": [(run / place / "adapter_model.safetensors").read_bytes()
                    for place in ("1-cold/adapter", "2-rl/checkpoints/step-000004/adapter", "4-sft/adapter")],
        "metrics": [metrics_of(run / folder) for folder in ("1-cold", "2-rl", "4-sft")],
        "solutions": (run / "3-reject" / "solutions.jsonl").read_bytes(),
        "evaluation": evaluation["benchmarks"],
        "completions": (run / "5-eval" / "completions.jsonl").read_bytes()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pixels():
        done = fork_pipeline(write(folder, *STAGES)).finished()
    assert done.returncode == 0, done.stderr
    assert "stage 5 of 5, eval (eval), policy of sft: runs" in done.stdout
    return folder


def test_a_pipeline_leaves_one_folder_one_summary_and_one_picture(whole: Path) -> None:
    run = whole / "run"
    assert {entry.name for entry in run.iterdir()} == {
        *FOLDERS, "config.resolved.yaml", "configs", "curve.png", "pipeline.json", "summary.json", "summary.md"}
    stages = summary_of(run)["stages"]
    assert [stage["name"] for stage in stages] == ["cold", "rl", "reject", "sft", "eval"]
    assert [stage["starts_from"] for stage in stages] == ["its own model", "cold", "rl", "its own model", "sft"]
    rl, own = stages[1], summary_of(run / "2-rl")
    assert (
        rl["after"]["value"] == own["held_out_after"]["avg@2"]["value"]
        and rl["num_sampled_tokens"] == own["num_sampled_tokens"])
    # The RL stage began where the warm-up ended, and the evaluation is of the second warm-up's policy.
    config = yaml.safe_load((run / "configs" / "2-rl.yaml").read_text())
    assert config["model"] == {
        **config["model"], "path": "models/tiny-arith", "adapter": str(run / "1-cold" / "adapter")}
    assert json.loads((run / "5-eval" / "result.json").read_text())["adapter"] == str(run / "4-sft" / "adapter")
    tokens = stages[2]["num_sampled_tokens"]
    files = sorted((run / "3-reject" / "samples").glob("*.jsonl"))
    sampled = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    counted = sum(completion["num_tokens"] for question in sampled for completion in question.get("completions", []))
    assert tokens == counted > 0
    assert len((run / "summary.md").read_text().splitlines()) == 9


def stages_in_forks() -> AbstractContextManager[object]:
    """A stage's process is a fork."""
    return patch(
        "rl.stages.run.subprocess", SimpleNamespace(Popen=ForkedModule, TimeoutExpired=subprocess.TimeoutExpired))


def fork_pipeline(file: Path) -> Fork:
    """The pipeline in a fork, and each stage in a fork of that, as its processes are."""
    importlib.import_module("trl.trainer.sft_trainer")  # here once: for seconds, in each fork of a warm-up
    with stages_in_forks():
        return Fork(lambda: main(["--config", str(file)]))


def test_a_stage_is_a_new_process_of_its_command(tmp_path: Path) -> None:
    """As users have it; the other tests save its imports."""
    done = in_process(main, "--config", str(write(tmp_path, {**STAGES[1], "set": {**RL, "steps": 1}})))
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run" / "1-rl")["steps"] == 1 and len(summary_of(tmp_path / "run")["stages"]) == 1


def is_step(number: int, *, of_rl: bool) -> Callable[[JsonLines, Mapping[str, Json]], bool]:
    """Is this the line of the training step in metrics.jsonl, of an RL stage or of a warm-up?"""
    return lambda lines, record: (
        record.get("kind") == "train" and record["step"] == number and ("reward" in record) == of_rl)


def wait_until(is_true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)


def holds(file: Path, text: str) -> bool:
    return file.exists() and text in file.read_text()


def test_killed_in_the_middle_of_each_kind_of_stage_it_ends_as_the_uninterrupted_one(
    whole: Path, tmp_path: Path
) -> None:
    file, run = write(tmp_path, *STAGES), tmp_path / "run"

    def kill_pipeline() -> None:
        """In the stage's process."""
        (tmp_path / "stage.pid").write_text(str(os.getpid()))
        os.kill(os.getppid(), signal.SIGKILL)

    middles = [
        ("cold", after(JsonLines, "append", kill_pipeline, is_step(2, of_rl=False))),
        ("rl", after(JsonLines, "append", kill_pipeline, is_step(2, of_rl=True))),
        ("reject", after(SampleStore, "write", kill_pipeline, lambda store, number, questions: number == 1)),
        ("eval", after(Completions, "append", kill_pipeline))]
    for name, kills_it in middles:
        with kills_it:
            process = fork_pipeline(file)
        assert process.wait() == -signal.SIGKILL
        # The stage's process ends with it, or the next command would find its folder in use.
        stage = int((tmp_path / "stage.pid").read_text())
        wait_until(lambda: not psutil.pid_exists(stage), 20)  # noqa: B023
        assert not json.loads((run / "pipeline.json").read_text())["stages"][name]["is_done"], "killed too late"
    done = pipeline_here(file)
    assert done.returncode == 0, done.stderr
    assert (
        "stage 2 of 5, rl (rl): done already" in done.stdout
        and "stage 5 of 5, eval (eval), policy of sft: goes on" in done.stdout)
    found, expected = results(run), results(whole / "run")
    assert [name for name in expected if found[name] != expected[name]] == []
    starts = [json.loads((folder / "pipeline.json").read_text())["stages"] for folder in (run, whole / "run")]
    assert starts[0].keys() == starts[1].keys()


def test_a_signal_stops_it_with_everything_saved_and_the_same_command_goes_on(whole: Path, tmp_path: Path) -> None:
    file, run = write(tmp_path, *STAGES[:2]), tmp_path / "run"

    with after(JsonLines, "append", lambda: os.kill(os.getppid(), signal.SIGTERM), is_step(1, of_rl=True)):
        process = fork_pipeline(file)
    assert process.wait() == 0
    assert summary_of(run / "2-rl")["stop_reason"] == "SIGTERM" and not (run / "summary.json").exists()
    done = pipeline_here(file)
    assert done.returncode == 0 and "stage 1 of 2, cold (warmup): done already" in done.stdout
    assert "stage 2 of 2, rl (rl), policy of cold: goes on" in done.stdout
    assert metrics_of(run / "2-rl") == metrics_of(whole / "run" / "2-rl")


def test_what_is_unchanged_is_skipped_and_what_changed_runs_again_with_all_that_follows_from_it(tmp_path: Path) -> None:
    reject = {**STAGES[2], "set": {**STAGES[2]["set"], "data.limit": 8}}
    sft = {**STAGES[3], "set": {**STAGES[3]["set"], "evaluation.path": None}}
    file, run = write(tmp_path, {**reject, "name": "first"}, sft, repeat={"rounds": 1}), tmp_path / "run"
    assert pipeline_here(file).returncode == 0
    before = (run / "1-first" / "solutions.jsonl").read_bytes()
    again = pipeline_here(file)
    assert again.returncode == 0 and again.stdout.count("done already") == 2
    # Only the choice changes: nothing is sampled again, and the supervised stage has other solutions.
    samples = {path: path.stat().st_mtime_ns for path in (run / "1-first" / "samples").glob("*.jsonl")}
    changed = pipeline_here(file, "stages.0.set.keep.per_question=2", "stages.0.set.keep.near_duplicates=null")
    assert changed.returncode == 0, changed.stderr
    assert "first (reject): goes on (keep." in changed.stdout and "runs again (stage first ran again)" in changed.stdout
    assert {path: path.stat().st_mtime_ns for path in samples} == samples
    assert (run / "2-sft.1").is_dir() and (run / "1-first" / "solutions.jsonl").read_bytes() != before


def test_a_stage_that_fails_says_so_and_the_stages_before_it_are_kept(tmp_path: Path) -> None:
    impossible = {**STAGES[2], "set": {**STAGES[2]["set"], "data.limit": 4, "keep.reward_at_least": 5}}
    file, run = write(tmp_path, {**STAGES[1], "set": {**RL, "steps": 1}}, impossible, STAGES[3]), tmp_path / "run"
    done = pipeline_here(file)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "stage reject (reject) ended with exit code 2" in done.stderr
        and "the same command goes on there" in done.stderr)
    assert not (run / "2-reject" / "solutions.jsonl").exists() and not (run / "3-sft").exists()
    mended = pipeline_here(file, "stages.1.set.keep.reward_at_least=0")
    assert mended.returncode == 0, mended.stderr
    assert "stage 1 of 3, rl (rl): done already" in mended.stdout
    # Another choice that keeps nothing: the solutions of the earlier one are not taken for its result, and the summary
    # is not either.
    for _ in range(2):
        again = pipeline_here(file)
        assert (
            again.returncode == 2
            and "stages.1.set.KEY=VALUE" in again.stderr
            and "reject (reject): done already" not in again.stdout)
        assert not (run / "2-reject" / "solutions.jsonl").exists() and not (run / "summary.md").exists()


@pytest.mark.parametrize(("words", "message"), [
    (("stages.1.policy=lr",), "stages.1 (rl): policy: saw 'lr', which is no earlier stage"),
    (("stages.1.set.steps=0",), "stage rl (rl): override steps: saw 0; expected a whole number >= 1"),
    (("stages.0.config=configs/none.yaml",), "stage cold (warmup): configs/none.yaml: no such file"),
    (("stages.1.set.data.path=no_such.jsonl",), "stage rl (rl): data.path: no_such.jsonl: no such file"),
    (("--resume",), "--resume: the same command without it goes on"),
    (("run_dir=models/tiny-arith",), "is not empty and holds no run"),
])
def test_bad_input_is_told_in_one_message_and_leaves_nothing_behind(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = pipeline_here(write(tmp_path, *STAGES[:2]), *words)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "1-cold").exists()


def test_another_commands_run_is_not_taken_for_a_pipeline(whole: Path, tmp_path: Path) -> None:
    folder = whole / "run" / "2-rl"
    before = sorted(entry.name for entry in folder.iterdir())
    done = pipeline_here(write(tmp_path, *STAGES[:2]), f"run_dir={folder}")
    assert done.returncode == 2 and f"{folder} holds a run that is no pipeline. Remedy: another run_dir" in done.stderr
    assert sorted(entry.name for entry in folder.iterdir()) == before


def test_two_processes_run_the_training_stages_together_and_the_others_on_the_main_one(tmp_path: Path) -> None:
    rl = {**STAGES[1], "set": {**RL, "steps": 1}}
    again = {**STAGES[1], "name": "again", "set": {**RL, "steps": 1}}
    file, run = write(tmp_path, rl, {**STAGES[4], "name": "eval"}, again), tmp_path / "run"
    with stages_in_forks():
        ranks = forked_ranks(lambda: main(["--config", str(file)]))
    assert [rank.returncode for rank in ranks] == [0, 0], ranks
    assert "".join(rank.stdout for rank in ranks).count("stage 1 of 3, rl (rl): runs") == 1
    states = [
        json.loads((run / folder / "checkpoints" / "step-000001" / "state.json").read_text())
        for folder in ("1-rl", "3-again")]
    assert [state["num_ranks"] for state in states] == [2, 2]
    assert (run / "2-eval" / "result.json").is_file() and len(summary_of(run)["stages"]) == 3


def launch_two(command: Callable[[], int]) -> int:
    """As the launcher that `accelerate launch` starts several processes with; its processes are forks."""
    config, _, _ = launcher.config_from_args(launcher.parse_args(
        ["--nproc_per_node", "2", "--master_port", str(free_port()), "rl/pipeline.py"]))
    config.start_method = "fork"
    elastic_launch(config, lambda: sys.exit(command()))()
    return 0


def test_the_death_of_one_ranks_process_ends_all(tmp_path: Path) -> None:
    """Of the second stage: the launcher's rendezvous still holds what the first one wrote there."""
    file = write(
        tmp_path, {**STAGES[1], "name": "first", "set": {**RL, "steps": 1}},
        {**STAGES[1], "set": {**RL, "steps": 200}})
    victim = tmp_path / "victim.pid"

    def is_in_second_stage(trainer: Trainer) -> bool:
        return os.environ["RANK"] == "1" and trainer.step_number == 2

    with stages_in_forks(), after(Trainer, "step", lambda: write_atomically(victim, str(os.getpid())),
                                  is_in_second_stage):
        launched = Fork(
            lambda: launch_two(lambda: main(["--config", str(file)])), {"ACCELERATE_USE_CPU": "true"})
    wait_until(lambda: launched.poll() is not None or victim.exists(), 200)
    family = psutil.Process(launched.pid).children(recursive=True)
    os.kill(int(victim.read_text()), signal.SIGKILL)
    done = launched.finished(120)
    assert done.returncode != 0 and "stage rl (rl) ended with exit code 137" in done.stderr
    assert len(family) >= 4 and psutil.wait_procs(family, timeout=60)[1] == []
