"""Runs of a study: made once, found again, and told in a table's cells. For reward_study.py and base_study.py.

A run whose folder is complete, with the same configuration, is not repeated, so that an interrupted study goes on.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rl.config import RunConfig
from rl.configuration.loading import load
from rl.configuration.resuming import differences
from rl.errors import ConfigError
from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.runs.intervals import Interval
from rl.runs.summary import Summary, read_summary
from rl.supervised.config import WarmupConfig


@dataclass(frozen=True, slots=True)
class Job:
    """One call of `python -m rl.train` or `rl.warmup`. after: a run that this one starts from; made anew, it makes this
    one old."""

    name: str
    run_dir: Path
    config: Path
    overrides: tuple[str, ...]
    stage: Literal["train", "warmup"] = "train"
    after: Path | None = None

    @property
    def words(self) -> list[str]:
        return [*self.overrides, f"run_dir={self.run_dir}", "tracking.progress=off"]


def finished(job: Job) -> Summary:
    """The run's summary; the run is made unless its folder holds it already. One thread unless OMP_NUM_THREADS says
    more.
    Raises RuntimeError where the run fails."""
    if not _is_complete(job):
        print(job.name, file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", f"rl.{job.stage}", "--config", str(job.config), *job.words], cwd=project_root(),
            env={"OMP_NUM_THREADS": "1"} | os.environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{job.name} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    return read_summary(RunFolder(job.run_dir))


def _is_complete(job: Job) -> bool:
    folder, schema = RunFolder(job.run_dir), RunConfig if job.stage == "train" else WarmupConfig
    try:
        read_summary(folder)
        if (
            job.after is not None
            and RunFolder(job.after).summary_file.stat().st_mtime > folder.summary_file.stat().st_mtime
        ):
            return False
        found = differences(load(folder.config_file, [], schema), load(job.config, job.words, schema))
        return all(difference.key == "prompt.date" for difference in found)  # the day on which the run was made
    except (FileNotFoundError, ValueError, ConfigError):
        return False


def accuracy_of(intervals: object) -> float:
    """The one accuracy of a summary's held_out_before or held_out_after."""
    assert isinstance(intervals, dict)
    (interval,) = intervals.values()
    assert isinstance(interval, Interval)
    return interval.value


def mean_and_each(values: Sequence[float]) -> str:
    return f"**{statistics.fmean(values):.3f}** ({', '.join(f'{value:.3f}' for value in values)})"


def endings(runs: Sequence[Summary]) -> str:
    return ", ".join(
        "completed" if run.stop_reason == "completed" else f"{run.stop_reason} at {run.steps}" for run in runs)
