"""metrics.jsonl -> columns that a page can draw. Read anew where the file has changed: a run that goes on from a
checkpoint cuts it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl.records import Json
from rl.runs.tracking import JsonLinesError, read_json_lines
from view.glossary import lookup


@dataclass(slots=True)
class Curves:
    """Of one file. version: changes when it does."""

    file: Path
    _version: str = ""
    _columns: dict[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        try:
            stat = self.file.stat()
        except FileNotFoundError:
            return ""
        return f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"

    def read(self) -> dict[str, Any]:
        """{"train": {"steps": [N], "values": {metric: [N], null where a line has none}}, "eval": ..., "about": {metric:
        name of its entry in the glossary}}; `problem` in it where a line is not the run's."""
        version = self.version
        if version != self._version or not self._columns:
            problem, records = None, []
            try:
                records = read_json_lines(self.file) if version else []
            except (JsonLinesError, FileNotFoundError) as error:
                problem = str(error)
            self._columns = columns(records) | {"problem": problem}
            self._version = version
        return self._columns | {"version": version}


def columns(records: list[dict[str, Json]]) -> dict[str, Any]:
    """Lines of one kind and step are one row: a later one adds to an earlier one, or replaces it."""
    found: dict[str, Any] = {}
    names: dict[str, None] = {}
    for kind in ("train", "eval"):
        rows: dict[int, dict[str, Json]] = {}
        for record in records:
            if record.get("kind") == kind and isinstance(step := record.get("step"), int):
                rows.setdefault(step, {}).update(record)
        present = dict.fromkeys(
            name for row in rows.values() for name, value in row.items()
            if name not in ("step", "kind") and (value is None or isinstance(value, (int, float))))
        ordered = [rows[step] for step in sorted(rows)]
        found[kind] = {"steps": sorted(rows), "values": {name: [row.get(name) for row in ordered] for name in present}}
        names |= present
    entries = {name: lookup(name) for name in names}
    return found | {"about": {name: entry.name for name, entry in entries.items() if entry is not None}}
