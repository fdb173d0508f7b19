"""`import otherhalf` costs nothing, and its names are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import otherhalf
from tests.reference.whole_run import own_environment

CODE = """
import json, sys, time
before = set(sys.modules)
started = time.process_time()
import otherhalf
took = time.process_time() - started
print(json.dumps([took, sorted(set(sys.modules) - before)]))
"""


def test_importing_it_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    root = str(Path(otherhalf.__file__).parent.parent)
    ended = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=own_environment() | {"PYTHONPATH": root})
    took_s, modules = json.loads(ended.stdout)
    assert took_s < 0.3
    assert not {"torch", "transformers", "numpy", "pydantic"} & {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("name", otherhalf.__all__)
def test_each_name_is_there(name: str) -> None:
    assert callable(getattr(otherhalf, name)) and name in dir(otherhalf)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'trian'; it has: .*train"):
        otherhalf.trian  # noqa: B018


def test_grading_and_clustering_are_the_rewards_own() -> None:
    assert otherhalf.grade(r"so \boxed{\frac12}", "0.5").correct
    assert [verdict.correct for verdict in otherhalf.grade_many([("4", "4"), ("5", "4")])] == [True, False]
    assert otherhalf.cluster(["1/2", "0.5", "2"]).labels == (0, 0, 1)
