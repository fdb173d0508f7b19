"""Where the adapter lies that a setting names. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from rl.paths import resolve_path
from rl.runs.folder import RunFolder

FILE = "adapter_config.json"
ADAPTER = "a folder saved by PEFT, such as runs/NAME/checkpoints/best/adapter, or a run that trained an adapter"


def adapter_folder(adapter: str) -> Path:
    """The folder, saved by PEFT, that `model.adapter` or `teacher.adapter` stands for: itself, or what a checkpoint, a
    warm-up or a run (its folder, or its name under runs/) holds: of a run the best checkpoint's, else the newest's.

    Where there is none, the path as resolve_path gives it."""
    given = resolve_path(adapter)
    for place in (given, Path("runs") / adapter):
        checkpoints = RunFolder(place).checkpoints
        newest_first = sorted(checkpoints.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True)
        for folder in (place, *(of / "adapter" for of in (place, checkpoints / "best", *newest_first))):
            if (folder / FILE).is_file():
                return folder
    return given


def missing_adapter(adapter: str) -> str:
    """What to say of a setting for which `adapter_folder` finds none."""
    folder = adapter_folder(adapter)
    if not folder.exists():
        return f"there is no folder {folder}"
    if any((part / "model" / "config.json").is_file() for part in (folder, RunFolder(folder).checkpoints / "best")):
        return f"{folder} has trained all parameters, and holds a model in the place of an adapter"
    return f"{folder} holds no {FILE}"
