"""What the page asks for, as JSON values: of every source its curves, groups, histograms, results and configuration.

Served by view/server.py, written into one file by view/export.py. A further question of the page: a method here and its
line in `ANSWERS` of the server.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rl.records import Json
from rl.runs.folder import RunFolder
from rl.stages.plan import flatten
from view.curves import Curves
from view.glossary import METRICS
from view.groups import as_shown
from view.index import GroupIndex, Query, cache_file
from view.sources import Kind, Source, ViewError, configuration, group_files, read_object, sources_of, status

NUM_BINS = 30
PAUSE_S = 0.5


class Library:
    """Of the named folders. Safe to use from several threads."""

    def __init__(self, folders: Sequence[Path], *, cached: bool = True) -> None:
        """cached: whether indexes are kept in the user's cache folder."""
        self._folders, self._cached = list(folders), cached
        self._lock = threading.Lock()
        self._curves: dict[Path, Curves] = {}
        self._indexes: dict[tuple[Kind, Path], GroupIndex] = {}
        self._sources: dict[str, Source] = {}
        self._ending = threading.Event()
        self.sources()

    def sources(self) -> list[Source]:
        """As they are now."""
        found = sources_of(self._folders)
        self._sources = {source.name: source for source in found}
        return found

    def source(self, name: str) -> Source:
        """Raises ViewError where none is called so."""
        if name not in self._sources:
            self.sources()
        if name not in self._sources:
            raise ViewError(f"there is no {name!r}", expected=f"one of {', '.join(self._sources) or 'none'}")
        return self._sources[name]

    def overview(self) -> list[dict[str, Json]]:
        """Of each source what it is, how it stands, and what changes when there is something new of it."""
        return [
            {"name": source.name, "kind": source.kind, "parent": source.parent, "path": str(source.folder),
             "status": status(source), "curves": self._curves_of(source).version,
             "has_groups": bool(group_files(source)), **self._index_state(source)} for source in self.sources()]

    def curves(self, name: str) -> dict[str, Any]:
        """See Curves.read."""
        return self._curves_of(self.source(name)).read()

    def groups(self, name: str, query: Query, offset: int = 0, limit: int = 100) -> dict[str, Any]:
        """`total`, `more` (a search for text was cut), and the `rows` from `offset` on."""
        index = self._index(self.source(name))
        total, more = index.count(query)
        return {"total": total, "more": more, "rows": index.rows(query, offset, limit)}

    def group(self, name: str, group_id: int) -> dict[str, Any]:
        """Raises ViewError where there is none, StaleIndexError."""
        index = self._index(self.source(name))
        try:
            return as_shown(index.group(group_id)) | {"id": group_id, **index.neighbours(group_id)}
        except KeyError:
            raise ViewError(f"{name} has no group {group_id}", remedy="choose one from the list") from None

    def histograms(self, name: str) -> dict[str, Any]:
        """{"steps": [S], "reward": {"edges": [B + 1], "all": [S][B], "right": [S][B], "wrong": [S][B]}, "length": ...};
        quantities that nothing is known of are missing. Ends of bins are shared by all steps."""
        found = list(self._index(self.source(name)).per_completion())
        steps = sorted({step for step, *_ in found})
        answer: dict[str, Any] = {"steps": steps}
        if not found:
            return answer
        rows = np.repeat(np.searchsorted(steps, [step for step, *_ in found]), [len(right) for *_, right in found])
        right = np.concatenate([right for *_, right in found])
        for quantity, values in (
            ("reward", np.concatenate([rewards for _, rewards, _, _ in found])),
            ("length", np.concatenate([lengths for _, _, lengths, _ in found]).astype(np.float64)),
        ):
            is_known = np.isfinite(values) if quantity == "reward" else values >= 0
            if is_known.any():
                answer[quantity] = _counts(rows[is_known], values[is_known], right[is_known], len(steps))
        return answer

    def configuration(self, name: str) -> dict[str, Json]:
        """Flat: {"optim.lr": 0.0005, ...}."""
        flat = flatten(configuration(self.source(name)))
        return {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in flat.items()}

    def results(self, name: str) -> dict[str, Any]:
        """What its command left in the end: of a run its summary, of an evaluation result.json, of rejection sampling
        report.json, of a pipeline its stages (with `done` and `seconds` from the beginning on)."""
        source = self.source(name)
        file = {"evaluation": "result.json", "rejection": "report.json"}.get(source.kind)
        found = read_object(source.folder / file if file else RunFolder(source.folder).summary_file)
        if source.kind == "pipeline":
            record = read_object(source.folder / "pipeline.json").get("stages", {})
            stages = {stage["name"]: stage for stage in found.get("stages", [])}
            found = {"stages": [
                {"name": stage, "kind": one.get("kind"), **stages.get(stage, {}), "done": one.get("is_done"),
                 "seconds": one.get("seconds")} for stage, one in record.items()]}
        return found

    def glossary(self) -> list[dict[str, str]]:
        return [asdict(metric) for metric in METRICS]

    def index_all(self, name: str) -> GroupIndex:
        """The source's index, whole."""
        source = self.source(name)
        index = self._index(source)
        while not index.advance(group_files(source)):
            pass
        return index

    def index_until_closed(self) -> None:
        """Bring the indexes that are asked for up to date, again and again: for a thread of its own."""
        while not self._ending.is_set():
            with self._lock:
                open_ones = list(self._indexes.items())
            sources = {(source.kind, source.folder): source for source in self._sources.values()}
            done = [index.advance(group_files(sources[key])) for key, index in open_ones if key in sources]
            if all(done):
                self._ending.wait(PAUSE_S)

    def close(self) -> None:
        self._ending.set()

    def _curves_of(self, source: Source) -> Curves:
        file = RunFolder(source.folder).metrics_file
        with self._lock:
            return self._curves.setdefault(file, Curves(file))

    def _index(self, source: Source) -> GroupIndex:
        """Opened when it is first asked for: then its groups begin to come."""
        key = (source.kind, source.folder)
        with self._lock:
            if key not in self._indexes:
                cache = cache_file(*key) if self._cached else None
                index = self._indexes[key] = GroupIndex(source.kind, cache)
                index.advance(group_files(source))  # the first piece at once: something to look at
            return self._indexes[key]

    def _index_state(self, source: Source) -> dict[str, Json]:
        index = self._indexes.get((source.kind, source.folder))
        if index is None:
            return {"indexed": None, "groups": None, "problem": None}
        return {"indexed": index.share, "groups": index.count(Query())[0], "problem": index.problem}


def _counts(rows: np.ndarray, values: np.ndarray, right: np.ndarray, num_rows: int) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    if np.all(values == np.round(values)):  # as many whole numbers in each bin
        width = math.ceil((high - low + 1) / NUM_BINS)
        edges = np.arange(low - 0.5, high + width, width)
    else:
        edges = np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1)
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    counted = {"edges": edges.tolist()}
    for name, chosen in (("all", slice(None)), ("right", right == 1), ("wrong", right == 0)):
        cells = np.zeros((num_rows, len(edges) - 1), np.int64)
        np.add.at(cells, (rows[chosen], places[chosen]), 1)
        counted[name] = cells.tolist()
    return counted
