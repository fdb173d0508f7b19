"""The benchmark scripts run and print what their readers parse; their figures are not tested, they are the
machine's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the benchmarks compare with TRL: pip install -e '.[trl]'")

ROOT = Path(__file__).resolve().parents[2]


def stdout_of(script: str, *arguments: str) -> str:
    finished = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def test_step_benchmark_prints_one_line_of_json_and_nothing_else() -> None:
    lines = stdout_of(
        "step_vs_trl.py", "--json", "--steps", "1", "--warmup", "1", "--questions", "2", "--group-size", "2"
    ).splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert set(result) == {"ours_s", "trl_s", "ratio"}
    assert result["ours_s"] > 0 and result["trl_s"] > 0
    assert result["ratio"] == pytest.approx(result["ours_s"] / result["trl_s"], rel=0.01)
