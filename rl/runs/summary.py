"""A finished run in one page: summary.json for programs, a few lines for the person at the terminal.

`write_summary` and `read_summary` keep it, `render_summary` tells it. To report something more: a field of `Summary`,
and, if people need it, a line in `render_summary`. What the versions are read from is installed metadata; nothing heavy
is imported.
"""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from rl.runs.folder import RunFolder, write_atomically
from rl.runs.intervals import Interval

PACKAGES = ("torch", "transformers", "peft", "accelerate")


@dataclass(frozen=True, slots=True)
class Best:
    """The checkpoint with the highest held-out accuracy; checkpoint: its folder, relative to the run's, None if not
    kept. metric: over how many samples of each question, such as avg@2: as many as every evaluation of the run has."""

    step: int
    value: float
    checkpoint: str | None
    metric: str = "accuracy"


@dataclass(frozen=True, slots=True)
class Summary:
    """held_out_*: {"avg@8": Interval}, benchmarks_*: {"math500 avg@4": Interval}, None where there was no evaluation.

    steps: training steps done. stop_reason: `completed`, `watchdog`, or the name of the signal; message: why, where it
    did not complete. wall_s: training and all evaluations. peak_rss_gb: most resident memory, GB (1e9 bytes).
    num_sampled_tokens: completions of training, over all ranks.
    """

    steps: int
    stop_reason: str
    message: str | None
    held_out_before: Mapping[str, Interval] | None
    held_out_after: Mapping[str, Interval] | None
    best: Best | None
    wall_s: float
    peak_rss_gb: float
    num_sampled_tokens: int
    seed: int
    versions: Mapping[str, str]
    benchmarks_before: Mapping[str, Interval] | None = None
    benchmarks_after: Mapping[str, Interval] | None = None


def write_summary(folder: RunFolder, summary: Summary) -> None:
    write_atomically(folder.summary_file, json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")


def read_summary(folder: RunFolder) -> Summary:
    """The summary in the folder. Raises: FileNotFoundError; ValueError that names the file where it is not a
    summary."""
    try:
        fields: dict[str, Any] = json.loads(folder.summary_file.read_text(encoding="utf-8"))
        for name in ("held_out_before", "held_out_after", "benchmarks_before", "benchmarks_after"):
            if fields.get(name) is not None:
                fields[name] = {metric: Interval(**ends) for metric, ends in fields[name].items()}
        if fields["best"] is not None:
            fields["best"] = Best(**fields["best"])
        return Summary(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder.summary_file} is not a run's summary ({error}); it was edited or comes from "
                         "another version") from error


def installed_versions() -> dict[str, str]:
    """Python's version and those of PACKAGES, from their metadata: importing them would take seconds."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def peak_rss_gb() -> float:
    """Most resident memory so far in GB (1e9 bytes): this process's peak + the sum of its living descendants' peaks.

    An upper bound for this process's tree: the peaks may lie at different times and shared pages count twice. Other
    ranks and the launcher are no descendants and are not in it.
    """
    children = psutil.Process().children(recursive=True)
    return (_peak_rss_bytes(None) + sum(_peak_rss_bytes(child) for child in children)) / 1e9


def _peak_rss_bytes(process: psutil.Process | None) -> int:
    """Peak of one process, None for this one; VmHWM because ru_maxrss counts the parent's memory at the time of the
    fork."""
    status = Path("/proc") / ("self" if process is None else str(process.pid)) / "status"
    try:
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        if process is not None:
            return int(process.memory_info().rss)
    except (OSError, psutil.Error):
        # A descendant that has just ended; where there is no /proc, `process` is asked below.
        if process is not None:
            return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def render_summary(
    summary: Summary, folder: RunFolder, *, merges: bool = True, services: Mapping[str, str] | None = None
) -> str:
    """Before -> after, cost, where things are, and what to do next; plain text of at most 100 columns, paths aside.
    merges: whether the adapter may be merged into its base. services: where trackers have it (rl/runs/trackers.py)."""
    lines = [*held_out_lines(summary), f"{'steps':<18}{summary.steps} ({summary.stop_reason}), seed {summary.seed}"]
    if summary.message:
        lines.append(f"{'':<18}{summary.message}")
    if summary.best is not None:
        kept = f", {folder.path / summary.best.checkpoint}" if summary.best.checkpoint else ""
        lines.append(f"{'best':<18}{summary.best.metric} {summary.best.value:.3f} at step {summary.best.step}{kept}")
    what_next = (
        f"rl.export {folder.path} exported/{folder.path.name}" if merges else
        f"eval.run --adapter {folder.path} --benchmarks NAMES")
    lines += [
        f"{'cost':<18}{_duration(summary.wall_s)}, {summary.peak_rss_gb:.2f} GB of memory, "
        f"{summary.num_sampled_tokens:,} sampled tokens",
        f"{'curves':<18}{folder.curve_file}", f"{'metrics':<18}{folder.metrics_file}",
        f"{'rollouts':<18}{folder.rollouts_file}",
        *(f"{name:<18}{place}" for name, place in (services or {}).items()),
        f"{'next':<18}python -m {what_next}"]
    return "\n".join(lines)


def held_out_lines(summary: Summary) -> list[str]:
    """Before -> after of held-out accuracy and benchmarks, a line each."""
    held_out = _change_lines("held-out ", summary.held_out_before or {}, summary.held_out_after or {})
    return [*(held_out or [f"{'held-out':<18}not evaluated (set evaluation.path)"]),
            *_change_lines("", summary.benchmarks_before or {}, summary.benchmarks_after or {})]


def _change_lines(prefix: str, before: Mapping[str, Interval], after: Mapping[str, Interval]) -> list[str]:
    lines = []
    for name in dict.fromkeys((*before, *after)):
        gain = ""
        if name in before and name in after:
            gain = f"   {100 * (after[name].value - before[name].value):+.1f} points"
        lines.append(f"{prefix + name:<18}{_interval(before.get(name))} -> {_interval(after.get(name))}{gain}")
    return lines


def _interval(interval: Interval | None) -> str:
    return "not measured" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
