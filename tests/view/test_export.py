import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.reference.viewed import HOSTILE, lines_of, write_evaluation, write_run
from view import main
from view.command import NUM_EXPORTED
from view.export import everything, joined_modules, page, sample
from view.index import Query
from view.library import Library


def data_of(html: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, flags=re.DOTALL)
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_no_markup_of_the_data_is_markup_of_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2, texts=[HOSTILE, "<!-- <script>", "]]>", "&lt;"])
    html = page(everything(Library([run], cached=False), 10))
    assert html.count("<script") == html.count("</script>") == 3
    assert "onerror=\"document" not in html and "<img" not in html and "<!--" not in html
    data = data_of(html)
    groups = data["groups"]["run"]["full"].values()
    texts = {"".join(one["parts"]) for group in groups for one in group["completions"]}
    assert texts >= {HOSTILE, "<!-- <script>", "&lt;"}


def test_the_file_asks_nobody_and_runs_its_own_scripts_alone(tmp_path: Path) -> None:
    html = page(everything(Library([write_run(tmp_path / "run", 1)], cached=False), 10))
    markup = html.partition("<style>")[0] + html.rpartition("</style>")[2].partition("<script")[0]
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:|#)[\w./]""", markup)
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)[0]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "http" not in policy
    assert set(re.findall(r"https?://[^\s\"']+", html)) == {"http://www.w3.org/2000/svg"}  # a namespace's name
    assert "Permission is hereby granted" in html
    assert not re.findall(r"url\(|@import|^import |^export ", html, flags=re.MULTILINE)


def test_a_large_run_is_exported_as_a_sample_over_all_steps_with_the_surest_wrong_majorities(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 60)
    lines = lines_of(run / "rollouts.jsonl")
    index = Library([run], cached=False).index_all("run")
    chosen = sample(index, 20)
    rows = {row["id"]: row for row in index.rows(Query(), 0, -1)}
    assert len(chosen) <= 20 and chosen == sorted(set(chosen))
    assert [rows[one]["step"] for one in chosen if rows[one]["majority_is_right"] == 0] == [1, 2]
    steps = [rows[one]["step"] for one in chosen]
    assert max(later - earlier for earlier, later in pairwise(steps)) <= 5
    data = everything(Library([run], cached=False), 20)
    assert data["groups"]["run"]["total"] == len(lines) == 120
    assert len(data["groups"]["run"]["full"]) == len(chosen)
    assert sum(map(sum, data["histograms"]["run"]["reward"]["all"])) == 480, "histograms are of all completions"


def test_a_small_run_is_exported_whole(tmp_path: Path) -> None:
    data = everything(Library([write_run(tmp_path / "run", 3)], cached=False), NUM_EXPORTED)
    assert len(data["groups"]["run"]["rows"]) == data["groups"]["run"]["total"] == 6


def test_the_modules_are_joined_without_imports_and_exports() -> None:
    modules = ['import { a,\n  b } from "./x.js";\nexport const c = 1;\n', "export async function f() {}\n"]
    assert joined_modules(modules) == "const c = 1;\n\nasync function f() {}\n"


def test_the_command_says_where_the_file_is_and_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run, evaluation = write_run(tmp_path / "run", 2), write_evaluation(tmp_path / "evaluation", 2)
    assert main([str(run), str(evaluation), "--export", str(tmp_path / "new" / "out.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'out.html'} (0.2 MB)\n"
    data = data_of((tmp_path / "new" / "out.html").read_text())
    assert list(data["curves"]) == ["run", "evaluation"]
    for words, message in (
        ([str(tmp_path)], "neither a run nor an evaluation nor a pipeline"), (["nowhere"], "no run 'nowhere'"),
        ([str(run), "--port", "99999"], "--port: saw 99999"), ([str(run), "--groups", "0"], "--groups: saw 0"),
        ([str(run), "--export", "/proc/none/out.html"], "/proc/none")):
        assert main([*words, "--no-browser"]) == 2
        assert message in capsys.readouterr().err
