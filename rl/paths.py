"""Where the project lies, and what a path that a user wrote stands for. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path


def project_root() -> Path:
    """The folder that holds rl/, prompts/ and configs/."""
    return Path(__file__).resolve().parent.parent


def resolve_path(path: str | Path) -> Path:
    """A relative path is taken from the working directory or, if it exists only there, from the project's root.

    Returns the path as given where it exists in neither (it may be a hub id, or be made later). `~` is expanded."""
    given = Path(path).expanduser()
    if given.is_absolute() or given.exists():
        return given
    in_project = project_root() / given
    return in_project if in_project.exists() else given


def similar_path(path: str | Path, is_meant: Callable[[Path], bool] = Path.is_dir) -> str:
    """"; did you mean PATH?", for what lies where `path` would, has nearly its name and is accepted by `is_meant`; ""
    where nothing does."""
    given = Path(path).expanduser()
    folder = resolve_path(given.parent)
    names = sorted(entry.name for entry in folder.iterdir() if is_meant(entry)) if folder.is_dir() else []
    near = difflib.get_close_matches(given.name, names, n=1, cutoff=0.5)
    return f"; did you mean {given.parent / near[0]}?" if near else ""
