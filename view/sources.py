"""What the user named -> the things to look at: runs, warm-ups, rejection sampling, evaluations, and pipelines with
their stages.

Told by the files in the folder alone, again at each look: the stages and evaluations of something that runs appear as
they come. A further kind: `_kind_of`, and the files that hold its groups in `group_files`.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from rewards.errors import UserError
from rl.runs.folder import RunFolder, find_run

Kind = Literal["run", "warmup", "rejection", "evaluation", "pipeline"]


class ViewError(UserError):
    """There is nothing to look at as asked; the message says what is there and what was expected."""


@dataclass(frozen=True, slots=True)
class Source:
    """One folder to look at. name: unique among those shown. parent: name of the pipeline or run that it is part of."""

    name: str
    kind: Kind
    folder: Path
    parent: str | None = None


def find_folder(word: str) -> Path:
    """The folder that a word of the command line means: a path, a run's name under runs/, or `latest`.

    Raises: ViewError, RunFolderError."""
    path = Path(word)
    folder = path.parent if path.is_file() else path
    if _kind_of(folder) is not None:
        return folder.resolve()
    if folder.is_dir():
        raise ViewError(
            f"{folder} holds neither a run nor an evaluation nor a pipeline",
            expected="config.resolved.yaml, settings.json with completions.jsonl, or pipeline.json in it",
            remedy="name the folder that a command wrote as run_dir or --out")
    return find_run(word).resolve()


def sources_of(folders: Sequence[Path]) -> list[Source]:
    """In the order of the folders, each followed by its parts. Folders that hold nothing any more are left out."""
    found: list[Source] = []
    for folder, name in zip(folders, _names(folders), strict=True):
        kind = _kind_of(folder)
        if kind is not None:
            found += [Source(name, kind, folder), *_parts(Source(name, kind, folder))]
    return found


def group_files(source: Source) -> list[Path]:
    """The files that hold its groups of completions, in order; one that is not there yet is named too."""
    if source.kind == "rejection":
        return sorted(RunFolder(source.folder).samples.glob("chunk-*.jsonl"))
    if source.kind == "evaluation":
        return [source.folder / "completions.jsonl"]
    return [RunFolder(source.folder).rollouts_file] if source.kind == "run" else []


def status(source: Source) -> str:
    """`running`, `stopped` (no process holds it, and there is no result), or how it ended."""
    folder = RunFolder(source.folder)
    if _is_held(folder.lock_file):
        return "running"
    if source.kind == "evaluation":
        return "completed" if (source.folder / "result.json").is_file() else "no result yet"
    summary = read_object(folder.summary_file)
    if source.kind == "rejection":
        return "completed" if (source.folder / "report.json").is_file() else "stopped"
    if source.kind == "pipeline":
        return "completed" if summary else "not ended"
    return str(summary.get("stop_reason", "completed")) if summary else "stopped"


def configuration(source: Source) -> dict[str, Any]:
    """As it was resolved, nested: of an evaluation its settings, of a pipeline each stage's settings by its name."""
    if source.kind == "evaluation":
        return read_object(source.folder / "settings.json")
    if source.kind == "pipeline":
        stages = read_object(source.folder / "pipeline.json").get("stages", {})
        return {name: stage.get("settings", {}) for name, stage in stages.items()}
    try:
        found = yaml.safe_load(RunFolder(source.folder).config_file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or where it is being written."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind_of(folder: Path) -> Kind | None:
    if (folder / "pipeline.json").is_file():
        return "pipeline"
    if (folder / "settings.json").is_file() and (folder / "completions.jsonl").exists():
        return "evaluation"
    if not RunFolder(folder).holds_run:
        return None
    keys = configuration(Source("", "run", folder)).keys()
    return "rejection" if "keep" in keys else "run" if "selection" in keys else "warmup"


def _parts(source: Source) -> list[Source]:
    """Stages of a pipeline with their evaluations, evaluations of a run as it went."""
    if source.kind == "pipeline":
        folders = sorted(
            (path for path in source.folder.glob("[0-9]*-*") if path.is_dir() and path.suffix == ""),
            key=lambda path: int(path.name.partition("-")[0]) if path.name.partition("-")[0].isdigit() else 0)
    elif source.kind in ("run", "warmup"):
        folders = sorted(source.folder.glob("evaluations/step-*/*"))
    else:
        return []
    found: list[Source] = []
    for folder in folders:
        if (kind := _kind_of(folder)) is not None:
            below = folder.relative_to(source.folder).as_posix().removeprefix("evaluations/")
            part = Source(f"{source.name}/{below}", kind, folder, source.name)
            found += [part, *_parts(part)]
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for length in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _is_held(lock_file: Path) -> bool:
    """By what the lock says of itself: to try it would refuse it to a run that starts in this moment."""
    holder = read_object(lock_file)
    if not holder:
        return False
    return holder.get("host") != socket.gethostname() or (
        isinstance(pid := holder.get("pid"), int) and pid != os.getpid() and psutil.pid_exists(pid))
