import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rl.runs.tracking import MetricsLog, RunFolder
from tests.reference.viewed import lines_of, write_evaluation, write_run
from view.index import Query
from view.library import NUM_BINS, Library
from view.sources import ViewError


def library(*folders: Path) -> Library:
    return Library(list(folders), cached=False)


def test_curves_are_the_files_numbers_and_follow_it_also_where_it_is_cut(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 4)
    shown = library(run)
    first = shown.curves("run")
    assert first["train"]["steps"] == [1, 2, 3, 4]
    assert first["train"]["values"]["reward"] == [0.1, 0.2, 0.3, 0.4]
    assert first["eval"]["values"]["held_out/accuracy"] == [0.5]
    assert first["about"]["reward"] == "reward"
    with MetricsLog(RunFolder(run)) as log:
        log.log(5, "train", {"reward": float("nan"), "new": 2})
    second = shown.curves("run")
    assert second["train"]["values"]["reward"][-1] is None and second["train"]["values"]["new"] == [None] * 4 + [2]
    assert second["version"] != first["version"]
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    assert shown.curves("run")["train"]["steps"] == [1, 2]


def test_a_broken_line_of_the_metrics_is_told_in_their_place(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    (run / "metrics.jsonl").write_text("no json\n")
    assert "metrics.jsonl:1 is not JSON" in library(run).curves("run")["problem"]


@pytest.mark.parametrize("quantity", ["reward", "length"])
def test_histograms_count_every_completion_once_by_step_and_correctness(tmp_path: Path, quantity: str) -> None:
    run = write_run(tmp_path / "run", 6)
    found = library(run).histograms("run")
    part, field = found[quantity], {"reward": "reward", "length": "num_tokens"}[quantity]
    for number, step in enumerate(found["steps"]):
        lines = [line for line in lines_of(run / "rollouts.jsonl") if line["step"] == step]
        ones = [(one[field], one["answer"] == "7") for line in lines for one in line["completions"]]
        for name, chosen in (("all", ones), ("right", [one for one in ones if one[1]]),
                             ("wrong", [one for one in ones if not one[1]])):
            assert part[name][number] == np.histogram([value for value, _ in chosen], part["edges"])[0].tolist()


def test_bins_of_whole_numbers_hold_as_many_of_them_each(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 1)
    lines = lines_of(run / "rollouts.jsonl")
    for line in lines:
        for number, one in enumerate(line["completions"]):
            one["num_tokens"] = 10 + 50 * number
    (run / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    edges = library(run).histograms("run")["length"]["edges"]
    assert {high - low for low, high in pairwise(edges)} == {6.0}
    assert edges[0] == 9.5 and edges[-1] > 160 and len(edges) <= NUM_BINS + 1


def test_an_evaluation_is_shown_with_its_result_and_its_questions(tmp_path: Path) -> None:
    shown = library(write_evaluation(tmp_path / "evaluation", 4))
    assert shown.results("evaluation")["benchmarks"]["sums"]["avg@3"]["value"] == 1 / 3
    answer = shown.groups("evaluation", Query())
    assert answer["total"] == 4 and [row["num_right"] for row in answer["rows"]] == [1] * 4
    assert shown.configuration("evaluation") == {"tasks.sums.temperature": 1}


def test_groups_know_their_neighbours(tmp_path: Path) -> None:
    shown = library(write_run(tmp_path / "run", 2))
    ids = [row["id"] for row in shown.groups("run", Query())["rows"]]
    assert [(shown.group("run", one)["previous"], shown.group("run", one)["next"]) for one in ids] == [
        (None, ids[1]), (ids[0], ids[2]), (ids[1], ids[3]), (ids[2], None)]
    with pytest.raises(ViewError, match="no group 12345"):
        shown.group("run", 12345)


def test_a_runs_folder_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = write_run(tmp_path / "run", 2)
    before = {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))}
    shown = Library([run])
    shown.overview(), shown.curves("run"), shown.groups("run", Query()), shown.histograms("run"), shown.results("run")
    assert {path: path.stat().st_mtime_ns for path in (run, *run.rglob("*"))} == before
    assert list((tmp_path / "cache").rglob("*.sqlite"))
