"""docs/python.md and docs/first_run.ipynb: their code runs in order, in a running event loop, as in a notebook."""

from __future__ import annotations

import ast
import asyncio
import json
import linecache
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rl.paths import project_root

DOCS = project_root() / "docs"

pytestmark = pytest.mark.slow


def run_cells(cells: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the cells leave defined. Their sources are to be had, as a notebook's are."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "__main__"}

    async def kernel() -> None:
        for number, source in enumerate(cells):
            file = f"<cell {folder} {number}>"
            linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
            exec(compile(ast.parse(source, file), file, "exec"), names)

    asyncio.run(kernel())
    return names


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    names = run_cells(re.findall(r"```python\n(.*?)```", page, re.DOTALL), tmp_path, monkeypatch)
    assert names["result"].summary.steps == 2 and names["rewards"]
    told = capsys.readouterr().out
    assert "enough for now" in told and "(0, 0, 0, 1, 2)" in told


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads((DOCS / "first_run.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    names = run_cells(["".join(cell["source"]) for cell in code], tmp_path, monkeypatch)
    assert names["result"].summary.stop_reason == "completed" and len(names["seen"]) == 4
    assert names["evaluation"].benchmarks["tiny_arith"]["num_questions"] == 32
