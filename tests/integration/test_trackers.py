"""Services get the run's name, its whole configuration, the numbers of metrics.jsonl and tables of completions, and a
resumed run goes on there; one that fails costs the run nothing; one that is not installed is refused before the run.

What W&B (offline) and trackio keep is read back where they are installed: their libraries in a process of their own.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.configuration.loading import load
from rl.runs.folder import RunFolder
from rl.runs.trackers import COLUMNS
from rl.train import main
from tests.reference.whole_run import SMALL, in_process, metrics_of, python, train

WANDB, TRACKIO = (pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
                  for name in ("wandb", "trackio"))
THREE_STEPS = (*SMALL, "checkpoint.every=1", "checkpoint.keep=3", "evaluation.every=0", "tracking.completions_every=2")


def lose_last_checkpoint(run_dir: Path) -> None:
    """As if the run had been killed in its third step, whose lines are written."""
    shutil.rmtree(RunFolder(run_dir).checkpoints / "step-000003")


def rewards(run_dir: Path) -> dict[int, float]:
    return {int(str(record["step"])): float(str(record["reward"]))
            for record in metrics_of(run_dir) if record["kind"] == "train"}


def test_tensorboard_gets_the_numbers_of_the_metrics_file_the_configuration_and_tables(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir, tracked = tmp_path / "run", "tracking.trackers=[tensorboard]"
    shown = in_process(main, *THREE_STEPS, f"run_dir={run_dir}", tracked)
    assert f"tensorboard       tensorboard --logdir {run_dir / 'otherhalf'}" in shown.stdout.splitlines()
    lose_last_checkpoint(run_dir)
    assert in_process(main, "--resume", str(run_dir), tracked).returncode == 0
    events = EventAccumulator(str(run_dir / "otherhalf"), size_guidance={"tensors": 0})
    events.Reload()
    found = [(scalar.step, scalar.value) for scalar in events.Scalars("reward")]
    assert [step for step, _ in found] == [1, 2, 3]  # the third, which was done twice, once
    assert dict(found) == pytest.approx(rewards(run_dir), rel=1e-6)
    configuration, *_ = texts(events, "configuration/text_summary")
    assert json.loads(configuration) == load(RunFolder(run_dir).config_file, []).model_dump(mode="json")
    tables = texts(events, "completions/text_summary")
    assert len(tables) == 3 and all(table.startswith("| " + " | ".join(COLUMNS)) for table in tables)
    assert all(len(table.splitlines()) == 2 + 16 for table in tables)


def texts(events: Any, tag: str) -> list[str]:
    return [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]


def test_a_service_that_fails_costs_the_run_nothing(tmp_path: Path) -> None:
    plain, failing = tmp_path / "plain", tmp_path / "failing"
    assert train(plain) == 0
    # Its folder cannot be made: there is a file of that name.
    shown = in_process(main, *SMALL, f"run_dir={failing}", "tracking.trackers=[tensorboard]",
                       "tracking.project=config.resolved.yaml")
    assert shown.returncode == 0
    assert "warning: tensorboard failed: " in shown.stderr and "the run goes on without it" in shown.stderr
    assert "tensorboard       failed: " in shown.stdout and "metrics.jsonl has the numbers" in shown.stdout
    assert metrics_of(failing) == metrics_of(plain)


@pytest.fixture(scope="module")
def tracked_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of three steps with W&B and trackio, as far as they are installed, its third step done twice; and what its
    two processes have shown."""
    folder = tmp_path_factory.mktemp("tracked")
    run_dir = folder / "sums"
    names = [name for name in ("wandb", "trackio") if importlib.util.find_spec(name) is not None]
    environment = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
    tracked = f"tracking.trackers=[{', '.join(names)}]"
    first = python("-m", "rl.train", *THREE_STEPS, f"run_dir={run_dir}", tracked, environment=environment)
    assert first.returncode == 0, first.stderr
    lose_last_checkpoint(run_dir)
    second = python("-m", "rl.train", "--resume", str(run_dir), tracked, environment=environment)
    assert second.returncode == 0, second.stderr
    return run_dir, [first.stdout, second.stdout]


@WANDB
@TRACKIO
def test_services_change_no_number(tracked_run: tuple[Path, list[str]], tmp_path: Path) -> None:
    assert train(tmp_path / "plain", *THREE_STEPS) == 0
    assert metrics_of(tracked_run[0]) == metrics_of(tmp_path / "plain")


@WANDB
def test_wandb_has_the_run_under_one_id_with_configuration_numbers_and_tables(
    tracked_run: tuple[Path, list[str]]
) -> None:
    from wandb.proto import wandb_internal_pb2

    run_dir, shown = tracked_run
    run_id = json.loads(RunFolder(run_dir).trackers_file.read_text())["id"]
    logs = sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(logs) == 2 == len(list((run_dir / "wandb").glob("offline-run-*")))
    assert all(f"wandb             wandb sync {log.parent}" in text.splitlines()
               for log, text in zip(logs, shown, strict=True))
    found: list[tuple[int, float]] = []
    for log in logs:
        for data in wandb_records(log.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                assert (record.run.run_id, record.run.display_name, record.run.project) == (run_id, "sums", "otherhalf")
                config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert config["sampling"]["questions_per_step"] == 8 and config["loss"]["kl_weight"] == 0
            values = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "reward" in values:
                found.append((int(json.loads(values["_step"])), float(values["reward"])))
    assert [step for step, _ in found] == [1, 2, 3, 3] and dict(found) == pytest.approx(rewards(run_dir))
    tables = [json.loads(file.read_text()) for log in logs for file in sorted(log.parent.rglob("*.table.json"))]
    assert [(tuple(table["columns"]), len(table["data"])) for table in tables] == [(COLUMNS, 16)] * 3


def wandb_records(log: bytes) -> Iterator[bytes]:
    """The records of W&B's file: behind 7 bytes LevelDB's log format, in blocks of 32 KiB."""
    place, parts = 7, b""
    while place + 7 <= len(log):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        parts += log[place + 7:place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or a record's last part
            yield parts
            parts = b""


@TRACKIO
def test_trackio_has_the_run_under_one_name_with_configuration_numbers_and_tables(
    tracked_run: tuple[Path, list[str]]
) -> None:
    run_dir, shown = tracked_run
    name = f"sums-{json.loads(RunFolder(run_dir).trackers_file.read_text())['id']}"
    line = f"trackio           trackio show --project otherhalf (run {name})"
    assert all(line in text.splitlines() for text in shown)
    with sqlite3.connect(run_dir.parent / "trackio" / "otherhalf.db") as database:
        lines = [(step, json.loads(values)) for run, step, values in
                 database.execute("select run_name, step, metrics from metrics order by id") if run == name]
        assert {run for run, in database.execute("select run_name from metrics")} == {name}
        (config, *_), = database.execute("select config from configs where run_name = ? limit 1", (name,))
    assert json.loads(config)["sampling"]["questions_per_step"] == 8
    found = [(step, values["reward"]) for step, values in lines if "reward" in values]
    assert Counter(step for step, _ in found) == {1: 1, 2: 1, 3: 2} and dict(found) == pytest.approx(rewards(run_dir))
    tables = [values["completions"]["_value"] for _, values in lines if "completions" in values]
    assert [(tuple(rows[0]), len(rows)) for rows in tables] == [(COLUMNS, 16)] * 3


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed here")
def test_a_service_that_is_not_installed_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "tracking.trackers=[wandb]") == 2
    message = capsys.readouterr().err
    assert "tracking.trackers: wandb is not installed" in message and "pip install" in message
    assert not (tmp_path / "run").exists()
