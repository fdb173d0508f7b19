"""pipeline.json: which stages of a pipeline are done, by which settings, files and results; whether one has to run
again; and the day of all their prompts.

Each start of a stage has a name of its own. It counts as an input of the stages that take its result: what follows a
stage that ran again runs again too.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rl.configuration.resuming import differences
from rl.records import Json
from rl.runs.folder import RunFolderError, write_atomically
from rl.stages.kinds import Prepared, chooses_again_by, goes_on_with_other, is_done
from rl.stages.plan import flatten

FILE = "pipeline.json"
Verdict = Literal["skip", "resume", "start"]


@dataclass(frozen=True, slots=True)
class StageRecord:
    """start: the name of its latest start. inputs: {stage: its start} of the results that it took. seconds: of all its
    processes."""

    kind: str
    start: str
    settings: dict[str, Json]
    files: dict[str, str]
    inputs: dict[str, str]
    is_done: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """changes: why a stage that had begun has another result now, a line each."""

    verdict: Verdict
    changes: tuple[str, ...] = ()


class PipelineRecords:
    """Written as a whole at each change. To be used by one process, which holds the folder's lock.

    day: on which the pipeline began; None for one of a version whose stages took each its own."""

    def __init__(self, folder: Path) -> None:
        """Raises RunFolderError where the file is not what this class wrote."""
        self._path = folder / FILE
        self._stages: dict[str, StageRecord] = {}
        self.day: datetime.date | None = datetime.date.today()
        if self._path.is_file():
            try:
                there = json.loads(self._path.read_text(encoding="utf-8"))
                self._stages = {name: StageRecord(**record) for name, record in there["stages"].items()}
                day = there.get("date")
                self.day = None if day is None else datetime.date.fromisoformat(day)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RunFolderError(
                    f"{self._path} is not a pipeline's record ({error}); it was edited or comes from another version",
                    remedy="another run_dir") from error

    def __getitem__(self, name: str) -> StageRecord:
        return self._stages[name]

    def decide(self, prepared: Prepared, inputs: Mapping[str, str]) -> Decision:
        """inputs: {stage: its latest start} of the results that it takes."""
        record = self._stages.get(prepared.stage.name)
        if record is None:
            return Decision("start")
        changes = _changes(record, prepared, inputs)
        if changes:
            # A result that is there, if only not recorded yet, is judged as one: it was made with what is changed now.
            is_made, kind = record.is_done or is_done(prepared.stage), prepared.stage.kind
            changes = [(key, line) for key, line in changes if not goes_on_with_other(kind, key, is_done=is_made)]
            chooses = all(chooses_again_by(kind, key) for key, _ in changes)
        if changes:
            return Decision("resume" if chooses else "start", tuple(line for _, line in changes))
        if is_done(prepared.stage):
            return Decision("skip")
        return Decision("start", ("its result is no longer there",)) if record.is_done else Decision("resume")

    def begin(self, prepared: Prepared, inputs: Mapping[str, str], *, anew: bool) -> None:
        name, before = prepared.stage.name, self._stages.get(prepared.stage.name)
        record = StageRecord(
            prepared.stage.kind, secrets.token_hex(4), dict(prepared.settings), dict(prepared.files), dict(inputs))
        if not anew and before is not None:
            record = replace(record, start=before.start, seconds=before.seconds)
        self._stages[name] = record
        self.write()

    def end(self, name: str, seconds: float, *, done: bool) -> None:
        record = self._stages[name]
        self._stages[name] = replace(record, is_done=done, seconds=record.seconds + seconds)
        self.write()

    def write(self) -> None:
        stages = {name: asdict(record) for name, record in self._stages.items()}
        day = None if self.day is None else self.day.isoformat()
        write_atomically(self._path, json.dumps({"date": day, "stages": stages}, indent=1) + "\n")


def _changes(record: StageRecord, prepared: Prepared, inputs: Mapping[str, str]) -> list[tuple[str, str]]:
    """(key, a line about it) of all that differs; the key of another stage's result is empty."""
    # A record of before a key was there had what is now its default.
    defaults = {} if prepared.config is None else flatten(type(prepared.config)().model_dump(mode="json"))
    before = {key: value for key, value in defaults.items() if key in prepared.settings} | record.settings
    found = [
        (key, f"{key}: {json.dumps(new)}, and it was {json.dumps(old)}")
        for key, old, new in differences(before, prepared.settings)]
    changed = tuple(key for key, _ in found)
    for file, digest in prepared.files.items():
        setting = file.partition(": ")[0]
        # Where the setting names another file, that is said already.
        if record.files.get(file) != digest and not any(f"{key}.".startswith(f"{setting}.") for key in changed):
            found.append((setting, f"{file}: the file differs"))
    found += [("", f"stage {name} ran again") for name, start in inputs.items() if record.inputs.get(name) != start]
    return found
