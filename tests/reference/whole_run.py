"""Whole runs on models/tiny-arith through the command line, in this process or another one, for tests/integration."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import torch
from matplotlib.figure import Figure

from rl.paths import project_root
from rl.records import Json
from rl.runs.folder import RunFolder
from rl.runs.tracking import Record, read_json_lines
from rl.train import main

# GRPO with gold answers in the place of the quick start's EMPO.
GRPO = ("data.path=models/tiny-arith/questions/train_with_answers.jsonl", "data.columns.answer=answer",
        "rewards.0.use=rewards.accuracy:accuracy", "selection.low=null", "selection.high=null")

# No command of a test takes so long, on a busy machine either: it hangs.
TOO_LONG_S = 900.0

# A run of about a second: 8 questions x 4 completions a step.
SMALL = (
    "steps=3", "sampling.questions_per_step=8", "sampling.group_size=4", "sampling.max_completion_tokens=32",
    "data.limit=64", "evaluation.num_questions=16", "evaluation.samples=2", "tracking.progress=lines",
    "optim.schedule=constant", "optim.lr=5e-4")


def train(run_dir: Path, *words: str) -> int:
    """`python -m rl.train` in this process, with the settings of SMALL, then `words`; returns the exit code."""
    with one_thread():
        return main([*SMALL, f"run_dir={run_dir}", *words])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in a process of its own (`python`): the order of a sum depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_process(
    main: Callable[[Sequence[str]], int], *words: str, environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Exit code and output of the command whose `main` this is, run in this process: what `python` gives without the
    seconds that a new process takes to import torch. For what neither kills nor is about processes."""
    out, err = io.StringIO(), io.StringIO()
    with (one_thread(), patch.dict(os.environ, environment or {}), contextlib.redirect_stdout(out),
          contextlib.redirect_stderr(err)):
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def module_in_process(command: Sequence[str], **settings: object) -> subprocess.CompletedProcess[str]:
    """In the place of `subprocess.run` for `python -m MODULE WORDS`: the module's `main` in this process."""
    _, option, module, *words = command
    assert option == "-m"
    return in_process(importlib.import_module(module).main, *words)


SAVE_FIGURE = Figure.savefig


def no_pixels() -> contextlib.AbstractContextManager[object]:
    """Whole runs draw their pictures, but matplotlib renders none of them: that takes as long as a third of a small
    run."""
    def save_nothing(figure: Figure, file: BinaryIO, **settings: Any) -> None:
        file.write(b"no picture")

    return patch.object(Figure, "savefig", save_nothing)


def pixels() -> contextlib.AbstractContextManager[object]:
    """Pictures are rendered, also within `no_pixels`."""
    return patch.object(Figure, "savefig", SAVE_FIGURE)


@contextlib.contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file that this process writes may exceed `num_bytes`: such a write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def python(
    *words: str, environment: dict[str, str] | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with `words` in `folder` (the project's root), on one thread, and wait for its end."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder or project_root(), env=own_environment() | (environment or {}),
        capture_output=True, text=True, timeout=TOO_LONG_S)


def own_environment() -> dict[str, str]:
    """This process's environment, for children: one thread each, no hub."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def metrics_of(run_dir: Path) -> list[Record]:
    """metrics.jsonl without what the clock decides."""
    return [without_times(record) for record in read_json_lines(RunFolder(run_dir).metrics_file)]


def without_times(record: Mapping[str, Json]) -> Record:
    """The part of a line that the configuration decides: all but the keys that end in `_s`."""
    return {key: value for key, value in record.items() if not key.endswith("_s")}


def trained_steps(run_dir: Path) -> list[Json]:
    """The step numbers of the training lines in metrics.jsonl."""
    return [record["step"] for record in metrics_of(run_dir) if record["kind"] == "train"]


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(RunFolder(run_dir).summary_file.read_text())
    return summary


def held_out_gain(run_dir: Path) -> float:
    """Held-out accuracy after less before."""
    summary = summary_of(run_dir)
    (before,), (after,) = summary["held_out_before"].values(), summary["held_out_after"].values()
    return float(after["value"] - before["value"])
