"""Services that show a run beside its files: TensorBoard, W&B, trackio.

Each gets the run's name, its whole configuration, the numbers of metrics.jsonl, and every few steps a table of some
completions. A resumed run goes on under the same id, which the run's folder keeps; numbers of steps that it repeats
are replaced (TensorBoard), left as they were (W&B) or stand there twice (trackio). A service that fails is left out
from then on, with a warning: the files have everything. To add one: a class with the members of `Service`, and its name
in SERVICES and rl/config.py. Nothing is imported for services that are not asked for.
"""

from __future__ import annotations

import json
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from rl.config import TrackingSection
from rl.records import Json
from rl.runs.folder import RunFolder, write_atomically
from rl.runs.tracking import Record

COLUMNS = ("step", "question", "gold", "completion", "answer", "cluster", "reward", "advantage", "refused")
GROUPS, COMPLETIONS = 4, 4
"""A table has the first so many groups of a step, and so many completions of each."""

Row = tuple[Json, ...]


@dataclass(frozen=True, slots=True)
class Tracked:
    """What a service is told at the start. name: the run's. run_id: the same when it goes on. config: all of it.
    first_step: nothing before it is logged again."""

    project: str
    name: str
    run_id: str
    folder: Path
    config: Mapping[str, Any]
    first_step: int


class Service(Protocol):
    """place: where people find the run."""

    place: str

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def table(self, rows: list[Row], step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = run.folder / run.project
        self.place = f"tensorboard --logdir {folder}"
        # Steps from there on that an earlier process logged are not shown.
        self._writer = SummaryWriter(str(folder), purge_step=run.first_step)
        text = json.dumps(run.config, indent=2, ensure_ascii=False)
        self._writer.add_text("configuration", "".join(f"    {line}\n" for line in text.splitlines()), run.first_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step)
        self._writer.flush()

    def table(self, rows: list[Row], step: int) -> None:
        lines = [_markdown(COLUMNS), "|---" * len(COLUMNS) + "|", *map(_markdown, rows)]
        self._writer.add_text("completions", "\n".join(lines), global_step=step)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandB:
    def __init__(self, run: Tracked) -> None:
        import wandb

        # Without a hand on the terminal, which shows the run's own lines.
        quiet = wandb.Settings(console="off", silent=True)
        self._run = wandb.init(project=run.project, name=run.name, id=run.run_id, resume="allow", dir=str(run.folder),
                               config=dict(run.config), settings=quiet)
        is_offline = self._run.offline
        self.place = f"wandb sync {Path(self._run.dir).parent}" if is_offline else str(self._run.url)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def table(self, rows: list[Row], step: int) -> None:
        import wandb

        table = wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows], allow_mixed_types=True)
        self._run.log({"completions": table}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class Trackio:
    def __init__(self, run: Tracked) -> None:
        import trackio

        # A run is found again by its name alone, which other folders' runs may have too.
        name = f"{run.name}-{run.run_id}"
        self.place = f"trackio show --project {run.project} (run {name})"
        self._run = trackio.init(project=run.project, name=name, config=dict(run.config), resume="allow", embed=False)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def table(self, rows: list[Row], step: int) -> None:
        import trackio

        table = trackio.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._run.log({"completions": table}, step=step)

    def close(self, failed: bool) -> None:
        self._run.finish()


SERVICES: dict[str, Callable[[Tracked], Service]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}


class Trackers:
    """The services that the user asked for, as one; closed where the block ends."""

    def __init__(
        self, settings: TrackingSection, folder: RunFolder, config: Mapping[str, Any], first_step: int
    ) -> None:
        """config: the run's, as JSON values. first_step: of what is logged now, 0 for a new run."""
        self._every, self._folder = settings.completions_every, folder
        self._open: dict[str, Service] = {}
        self._failed: dict[str, str] = {}
        self._rows: list[Row] = []
        self._table_step, self._num_groups = 0, 0
        run = Tracked(settings.project, folder.path.resolve().name, _run_id(folder), folder.path, config, first_step)
        for name in settings.trackers:
            self._try(name, partial(self._start, name, run))
        self._run_id = run.run_id
        self._note()

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._send_table()
        self._each(lambda service: service.log(values, step))

    def note_group(self, record: Record) -> None:
        """A line of rollouts.jsonl, of which the step's table may have a part."""
        step = int(str(record["step"]))
        if not self._open or not self._every or (step - 1) % self._every:
            return
        if step != self._table_step:
            self._table_step, self._num_groups = step, 0
        if self._num_groups < GROUPS:
            self._num_groups += 1
            self._rows += _rows(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._send_table()
        self._each(lambda service: service.close(kind is not None))
        self._note()

    def _send_table(self) -> None:
        rows, self._rows = self._rows, []
        if rows:
            self._each(lambda service: service.table(rows, self._table_step))

    def _each(self, act: Callable[[Service], None]) -> None:
        for name, service in list(self._open.items()):
            self._try(name, partial(act, service))

    def _start(self, name: str, run: Tracked) -> None:
        self._open[name] = SERVICES[name](run)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        # Whatever a service's library raises: hours of training do not depend on it.
        try:
            act()
        except Exception as error:
            self._open.pop(name, None)
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._failed[name] = f"failed: {text}; {self._folder.metrics_file.name} has the numbers"
            warnings.warn(f"{name} {self._failed[name]}, and the run goes on without it", stacklevel=2)

    def _note(self) -> None:
        places = {name: service.place for name, service in self._open.items()} | self._failed
        if places:
            noted = {"id": self._run_id, "places": places}
            write_atomically(self._folder.trackers_file, json.dumps(noted, ensure_ascii=False) + "\n")


def places_of(folder: RunFolder) -> dict[str, str]:
    """Where each service has the run's numbers, or why it has not all of them; empty without services."""
    try:
        return dict(json.loads(folder.trackers_file.read_text(encoding="utf-8"))["places"])
    except FileNotFoundError:
        return {}


def _run_id(folder: RunFolder) -> str:
    try:
        return str(json.loads(folder.trackers_file.read_text(encoding="utf-8"))["id"])
    except FileNotFoundError:
        return secrets.token_hex(4)


def _rows(record: Record) -> list[Row]:
    completions = record["completions"]
    assert isinstance(completions, list)
    rows = []
    for entry in completions[:COMPLETIONS]:
        assert isinstance(entry, dict)
        texts = map(_text, (record["question"], record["answer"], entry["text"], entry["answer"]))
        numbers = (entry["cluster"], entry["reward"], entry["advantage"])
        rows.append((record["step"], *texts, *numbers, _text(record["refused"])))
    return rows


def _text(value: Json) -> str | None:
    """As a service can send it: a lone surrogate, which a model may write, has no UTF-8 form."""
    return None if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def _markdown(row: tuple[Json, ...]) -> str:
    cells = ("" if value is None else str(value) for value in row)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"
