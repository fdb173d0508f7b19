import json
import os
import socket
from pathlib import Path

import pytest

from rewards.errors import UserError
from tests.reference.viewed import write_evaluation, write_run
from view.sources import Source, find_folder, group_files, sources_of, status


def pipeline(path: Path) -> Path:
    path.mkdir()
    (path / "pipeline.json").write_text(json.dumps({"stages": {"rl": {"kind": "rl", "is_done": True, "seconds": 3.0}}}))
    (path / "config.resolved.yaml").write_text("stages: []\n")
    write_run(path / "2-rl", 1)
    (path / "1-warm").mkdir()
    (path / "1-warm" / "config.resolved.yaml").write_text("steps: 3\n")
    write_evaluation(path / "10-eval", 1)
    (path / "3-solutions").mkdir()
    (path / "3-solutions" / "config.resolved.yaml").write_text("keep: {}\n")
    (path / "2-rl.1").mkdir()
    return path


def test_a_pipelines_stages_follow_it_in_their_order_each_of_its_kind(tmp_path: Path) -> None:
    found = sources_of([pipeline(tmp_path / "mine")])
    assert [(one.name, one.kind, one.parent) for one in found] == [
        ("mine", "pipeline", None), ("mine/1-warm", "warmup", "mine"), ("mine/2-rl", "run", "mine"),
        ("mine/3-solutions", "rejection", "mine"), ("mine/10-eval", "evaluation", "mine")]


def test_evaluations_as_a_run_went_belong_to_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    (run / "evaluations" / "step-000005").mkdir(parents=True)
    write_evaluation(run / "evaluations" / "step-000005" / "math", 1)
    assert [(one.name, one.kind) for one in sources_of([run])] == [
        ("run", "run"), ("run/step-000005/math", "evaluation")]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name / "run", 1)
    assert [one.name for one in sources_of([tmp_path / "x" / "run", tmp_path / "y" / "run"])] == ["x/run", "y/run"]


def test_a_file_in_a_runs_folder_names_the_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    assert find_folder(str(run / "metrics.jsonl")) == find_folder(str(run)) == run.resolve()


def test_what_is_nothing_to_look_at_is_refused_with_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run nor an evaluation nor a pipeline"):
        find_folder(str(tmp_path))
    with pytest.raises(UserError, match="no run 'nowhere'"):
        find_folder("nowhere")


def test_a_run_is_running_while_its_lock_names_a_process_that_lives(tmp_path: Path) -> None:
    run = Source("run", "run", write_run(tmp_path / "run", 1))
    assert status(run) == "stopped"
    lock = run.folder / "run.lock"
    lock.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    assert status(run) == "running"
    lock.write_text(json.dumps({"pid": 2 ** 22 + 1, "host": socket.gethostname()}))
    assert status(run) == "stopped"
    (run.folder / "summary.json").write_text('{"stop_reason": "watchdog"}')
    assert status(run) == "watchdog"


def test_a_source_without_groups_has_no_files_of_them(tmp_path: Path) -> None:
    assert [path.name for path in group_files(Source("run", "run", tmp_path))] == ["rollouts.jsonl"]
    assert group_files(Source("warm", "warmup", tmp_path)) == []
