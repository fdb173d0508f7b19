"""`evaluation.benchmarks`: the evaluation's own code on the sampler of a run that trains."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from eval import compare
from eval import run as evaluation
from eval.live_benchmarks import LiveTasks, build_live_tasks
from eval.store import read_completions
from rl.checkpoint import list_checkpoints, read_state
from rl.configuration.loading import load
from rl.errors import ConfigError
from rl.evaluation.benchmarks import BenchmarkHistory, BenchmarkValues, build_benchmarks
from rl.paths import project_root
from rl.questions.inputs import read_inputs
from rl.runs.intervals import Interval
from rl.train import main
from tests.reference.fork import after
from tests.reference.whole_run import in_process, metrics_of, summary_of, train

BENCHMARKS = "evaluation.benchmarks=[{name: tiny_arith, every: 2, samples: 4, limit: 12, max_tokens: 32}]"
WORDS = ("steps=4", "checkpoint.every=2", "checkpoint.keep=9", "evaluation.every=3", BENCHMARKS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("live") / "run"
    assert train(folder, *WORDS, "checkpoint.best_by=tiny_arith/maj@4") == 0
    return folder


def benchmark_lines(folder: Path) -> dict[int, dict[str, Any]]:
    return {int(str(line["step"])): line for line in metrics_of(folder) if "benchmark/tiny_arith/avg@4" in line}


def test_benchmarks_are_metrics_before_during_and_after(run: Path) -> None:
    lines = benchmark_lines(run)
    assert sorted(lines) == [0, 2, 4]
    for line in lines.values():
        low, value, high = (line[f"benchmark/tiny_arith/avg@4{end}"] for end in ("/low", "", "/high"))
        assert 0 <= low <= value <= high <= 1
        assert line["benchmark/tiny_arith/pass@4"] >= line["benchmark/tiny_arith/maj@4"]
    summary = summary_of(run)
    assert (
        set(summary["benchmarks_before"])
        == set(summary["benchmarks_after"])
        == {f"tiny_arith {k}@4" for k in ("avg", "pass", "maj")})


def test_completions_are_kept_as_an_evaluation_keeps_them(run: Path) -> None:
    folders = [run / "evaluations" / f"step-{step:06d}" / "tiny_arith" for step in (0, 2, 4)]
    for folder, line in zip(folders, benchmark_lines(run).values(), strict=True):
        questions = read_completions(folder)
        assert len(questions) == 12 and all(len(question.samples) == 4 for question in questions)
        assert line["benchmark/tiny_arith/avg@4"] == pytest.approx(
            sum(question.accuracy for question in questions) / 12)
    compared = in_process(compare.main, str(folders[0]), str(folders[2]))
    assert compared.returncode == 0 and "tiny_arith" in compared.stdout


def test_the_live_sampler_gives_what_eval_run_gives_for_the_same_weights(run: Path, tmp_path: Path) -> None:
    """Before training, the policy is the base model: the seeds are the same, and so are the completions."""
    live = json.loads((run / "evaluations/step-000000/tiny_arith/result.json").read_text())["benchmarks"]["tiny_arith"][
        "protocol"]
    words = (
        "--model", "models/tiny-arith", "--benchmarks", "tiny_arith", "-n", "4", "--limit", "12", "--max-tokens", "32",
        "--temperature", str(live["temperature"]), "--top-p", str(live["top_p"]), "--no-plots")
    alone = in_process(evaluation.main, *words, "--out", str(tmp_path / "out"))
    assert alone.returncode == 0, alone.stderr
    first = read_completions(run / "evaluations/step-000000/tiny_arith")
    assert [[s.text for s in q.samples] for q in read_completions(tmp_path / "out")] == [
        [s.text for s in q.samples] for q in first]


def test_the_best_checkpoint_is_that_of_the_named_number(run: Path) -> None:
    values = {step: line["benchmark/tiny_arith/maj@4"] for step, line in benchmark_lines(run).items()}
    best = summary_of(run)["best"]
    assert best["metric"] == "tiny_arith/maj@4" and best["value"] == max(values.values())
    assert best["step"] == min(step for step, value in values.items() if value == max(values.values()))
    assert (run / "checkpoints" / "best").resolve().name == f"step-{best['step']:06d}"


def test_a_benchmark_that_a_signal_finds_is_saved_as_it_was_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A further SIGTERM counts as late; `after` is still in the evaluation."""
    folder, before = tmp_path / "run", tmp_path / "before"

    def become_late() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        shutil.copytree(folder / "checkpoints" / "step-000000", before)

    words = ("steps=1", "evaluation.path=null", BENCHMARKS)
    with after(LiveTasks, "evaluate", become_late):
        assert train(folder, *words) == 0
    assert "in the middle of an evaluation: the run is saved up to step-000000" in capsys.readouterr().out
    assert read_state(before).evaluations.benchmarks == BenchmarkHistory() and sorted(benchmark_lines(folder)) == [0]


@pytest.mark.parametrize("kept", ["step-000000", "step-000002"])
def test_a_resumed_run_evaluates_the_same_benchmarks_once(run: Path, tmp_path: Path, kept: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, symlinks=True)
    config = load(folder / "config.resolved.yaml", [])
    assert config.steps == 4
    shutil.rmtree(folder / "evaluations")
    for checkpoint in list_checkpoints(folder / "checkpoints"):
        if checkpoint.name > kept:
            shutil.rmtree(checkpoint)
    assert train(folder, "--resume", str(folder), *WORDS, "checkpoint.best_by=tiny_arith/maj@4") == 0
    assert metrics_of(folder) == metrics_of(run)
    assert summary_of(folder)["benchmarks_after"] == summary_of(run)["benchmarks_after"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluation.benchmarks=[mat500]"],
            "evaluation.benchmarks.0.name: there is no benchmark 'mat500'; did you mean math500?",
        ),
        (
            ["evaluation.benchmarks=[{name: tiny_arith, max_tokens: 900}]"],
            "evaluation.benchmarks.0.max_tokens: saw 900",
        ),
        (
            ["evaluation.benchmarks=[tiny_arith]", "checkpoint.best_by=tiny_arith/avg@4"],
            "checkpoint.best_by: saw 'tiny_arith/avg@4'",
        ),
        (
            ["evaluation.benchmarks=[{name: tiny_arith, samples: 1}]", "checkpoint.best_by=tiny_arith/maj@1"],
            "Expected one of: held_out, tiny_arith/avg@1 ",
        ),
        (["checkpoint.best_by=math500/avg@1"], "Expected one of: held_out"),
        (["evaluation.benchmarks=[tiny_arith, tiny_arith]"], "evaluation.benchmarks.1.name: tiny_arith is named twice"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_run(words: list[str], message: str) -> None:
    config = load(project_root() / "configs" / "quickstart.yaml", words)
    with pytest.raises(ConfigError) as caught:
        build_benchmarks(config, read_inputs(config), build_live_tasks)
    assert message in str(caught.value)


def test_another_number_for_the_best_checkpoint_does_not_compete_with_the_first(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder, symlinks=True)
    assert train(folder, "--resume", str(folder), *WORDS[1:], "steps=5", "checkpoint.best_by=held_out") == 0
    assert summary_of(folder)["best"]["metric"].startswith("avg@")


def test_an_evaluation_that_failed_leaves_no_older_value_as_the_last() -> None:
    history = BenchmarkHistory()
    for step, value in ((0, 0.1), (50, 0.9)):
        history.add("m", step, BenchmarkValues({"avg@1": Interval(value, value, value)}, {}))
    assert history.named_after(50) == {"m avg@1": Interval(0.9, 0.9, 0.9)}
    assert history.named_after(70) is None
    history.add("m", 100, BenchmarkValues({}, {}, "down"))
    assert history.named_after(100) is None and history.named_before() == {"m avg@1": Interval(0.1, 0.1, 0.1)}
    assert BenchmarkHistory.from_json(json.loads(json.dumps(history.to_json()))) == history


def test_a_grader_that_fails_ends_no_training(tmp_path: Path) -> None:
    grader = tmp_path / "service.py"
    grader.write_text("def judge(*, completions, **columns):\n    raise RuntimeError('the service is down')\n")
    words = f"evaluation.benchmarks=[{{name: tiny_arith, every: 0, samples: 2, limit: 4, grader: '{grader}:judge'}}]"
    finished = in_process(
        main, "steps=1", f"run_dir={tmp_path / 'run'}", words, "sampling.questions_per_step=4",
        "evaluation.path=null", "tracking.progress=lines", "data.limit=16")
    assert finished.returncode == 0, finished.stderr
    assert "tiny_arith at step 0: not evaluated" in finished.stdout and "the service is down" in finished.stdout
