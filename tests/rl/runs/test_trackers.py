"""rl/runs/trackers.py: what each service is told, and what becomes of one that fails. Real services:
tests/integration/test_trackers.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import pytest

from rl.config import TrackingSection
from rl.records import Json
from rl.runs.folder import RunFolder
from rl.runs.trackers import SERVICES, Row, Tracked, Trackers, places_of


class Recorder:
    """A service that keeps what it is told, and fails at the step that it is asked to."""

    told: ClassVar[list[Any]] = []
    fails_at: ClassVar[int | None] = None

    def __init__(self, run: Tracked) -> None:
        self.place = "recorded"
        self.told.append(("start", run.name, run.run_id, run.config, run.first_step))

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == self.fails_at:
            raise RuntimeError("503: no answer\nand a page of HTML")
        self.told.append(("log", step, dict(values)))

    def table(self, rows: list[Row], step: int) -> None:
        self.told.append(("table", step, rows))

    def close(self, failed: bool) -> None:
        self.told.append(("close", failed))


class Another(Recorder):
    told: ClassVar[list[Any]] = []
    fails_at: ClassVar[int | None] = None


@pytest.fixture(autouse=True)
def _recorders() -> Iterator[None]:
    Recorder.told, Another.told, Recorder.fails_at = [], [], None
    with patch.dict(SERVICES, {"tensorboard": Recorder, "wandb": Another}):
        yield


def trackers(folder: Path, first_step: int = 0, **settings: object) -> Trackers:
    section = TrackingSection.model_validate({"trackers": ["tensorboard", "wandb"], **settings})
    return Trackers(section, RunFolder(folder), {"seed": 3}, first_step)


def group(step: int, text: str = "12") -> dict[str, Json]:
    entry: dict[str, Json] = {"text": text, "answer": "12", "cluster": 0, "reward": 1.0, "advantage": None}
    return {"step": step, "question": "5+7=?", "answer": None, "refused": "too_low", "completions": [entry] * 6}


def test_a_run_goes_on_under_the_id_that_its_folder_keeps(tmp_path: Path) -> None:
    with trackers(tmp_path) as first:
        first.log({"reward": 0.5}, 1)
    with trackers(tmp_path, first_step=2):
        pass
    (_, name, run_id, config, step), logged, closed, again, _ = Recorder.told
    assert (name, config, step) == (tmp_path.name, {"seed": 3}, 0)
    assert again == ("start", name, run_id, config, 2) and len(run_id) == 8
    assert (logged, closed) == (("log", 1, {"reward": 0.5}), ("close", False))
    assert places_of(RunFolder(tmp_path)) == {"tensorboard": "recorded", "wandb": "recorded"}
    (tmp_path / "other").mkdir()
    with trackers(tmp_path / "other"):
        assert Recorder.told[-1][2] != run_id


def test_a_service_that_fails_is_left_out_and_the_others_go_on(tmp_path: Path) -> None:
    Recorder.fails_at = 2
    message = "tensorboard failed: 503: no answer; metrics.jsonl has the numbers"
    with pytest.warns(UserWarning, match=message), trackers(tmp_path) as both:
        for step in (1, 2, 3):
            both.log({"reward": 0.5}, step)
    assert [told[0] for told in Recorder.told] == ["start", "log"]
    assert [told[0] for told in Another.told] == ["start", "log", "log", "log", "close"]
    assert places_of(RunFolder(tmp_path)) == {
        "wandb": "recorded", "tensorboard": "failed: 503: no answer; metrics.jsonl has the numbers"}


def test_a_failed_run_is_told_as_failed(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError), trackers(tmp_path):
        raise FloatingPointError
    assert Recorder.told[-1] == ("close", True)


def test_tables_have_some_completions_of_some_steps(tmp_path: Path) -> None:
    with trackers(tmp_path, completions_every=2) as both:
        for step in (1, 2, 3):
            both.log({"reward": 0.5}, step)
            for _ in range(5 if step < 3 else 1):
                both.note_group(group(step))
    assert [told[:2] for told in Recorder.told[1:]] == [
        ("log", 1), ("table", 1), ("log", 2), ("log", 3), ("table", 3), ("close", False)]
    sizes = [len(told[2]) for told in Recorder.told if told[0] == "table"]
    assert sizes == [16, 4]
    assert Recorder.told[2][2][0] == (1, "5+7=?", None, "12", "12", 0, 1.0, None, "too_low")


def test_no_text_leaves_where_no_table_is_asked_for(tmp_path: Path) -> None:
    with trackers(tmp_path, completions_every=0) as both:
        both.log({"reward": 0.5}, 1)
        both.note_group(group(1))
    assert not [told for told in Recorder.told if told[0] == "table"]


def test_text_without_a_form_in_utf8_is_sent_in_another(tmp_path: Path) -> None:
    with trackers(tmp_path) as both:
        both.note_group(group(1, text="\ud800"))
    row = Recorder.told[1][2][0]
    assert json.dumps(row, ensure_ascii=False).encode() and row[3] == "\\ud800"
