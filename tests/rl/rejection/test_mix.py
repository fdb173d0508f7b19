"""rl/rejection/mix.py: so many rows by ratio, none twice, the same for one seed; and they warm up as in their own
file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rl.errors import ConfigError
from rl.rejection.config import MixSection
from rl.rejection.mix import draw, read_mix
from rl.supervised.config import WarmupDataSection
from rl.supervised.solutions import load_solutions

ROWS: list[dict[str, Any]] = [
    {"question": f"{i}+1=?", "solution": f"\\boxed{{{i + 1}}}", "level": i} for i in range(20)]


def mix_file(folder: Path, rows: list[dict[str, Any]], name: str = "other.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def drawn(path: str, num_kept: int, seed: int = 0, **settings: Any) -> list[dict[str, Any]]:
    (file,) = read_mix([MixSection.model_validate({"path": path, **settings})])
    return draw(file, num_kept, seed)


def test_the_ratio_is_to_the_kept_rows_and_no_row_comes_twice(tmp_path: Path) -> None:
    path = mix_file(tmp_path, ROWS)
    for ratio, num_kept, wanted in ((0.5, 10, 5), (0.25, 10, 3), (2.0, 10, 20), (0.01, 10, 1)):
        found = drawn(path, num_kept, ratio=ratio)
        assert len(found) == wanted == len({row["question"] for row in found})
        assert all(row in ROWS for row in found)


def test_the_seed_decides_the_rows_and_each_can_be_drawn(tmp_path: Path) -> None:
    path = mix_file(tmp_path, ROWS)
    assert drawn(path, 10, ratio=0.3) == drawn(path, 10, ratio=0.3)
    assert {row["level"] for seed in range(60) for row in drawn(path, 10, seed, ratio=0.3)} == set(range(20))


def test_too_small_a_file_is_named_with_the_ratio_that_fits(tmp_path: Path) -> None:
    path = mix_file(tmp_path, ROWS)
    with pytest.raises(ConfigError) as caught:
        drawn(path, 30, ratio=1.0)
    assert (
        str(caught.value)
        == f"mix.0.ratio: 1 rows of {path} for each of 30 kept completions are 30, and it has 20. Remedy: "
        "mix.0.ratio=0.666666 or less, or a larger file")
    assert len(drawn(path, 30, ratio=0.666666)) == 20


def test_conversations_and_columns_of_other_names_warm_up_as_in_their_own_file(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=?"},
        {"role": "assistant", "content": "2"}]
    rows: list[dict[str, Any]] = [{"messages": turns}, {"problem": "2+2=?", "worked": "2+2=4", "level": 3}]
    path = mix_file(tmp_path, rows)
    columns = {"question": "problem", "solution": "worked"}
    again = mix_file(tmp_path, drawn(path, 2, columns=columns), "again.jsonl")
    before, after = (load_solutions(WarmupDataSection.model_validate({"path": name, "columns": its}))
                     for name, its in ((path, columns), (again, {})))
    assert [(s.question.text, s.text, s.before, s.question.columns) for s in before] == [
        (s.question.text, s.text, s.before, s.question.columns) for s in after]


def test_a_file_without_solutions_is_named_by_key_and_line(tmp_path: Path) -> None:
    path = mix_file(tmp_path, [{"question": "1+1=?", "answer": "2"}])
    with pytest.raises(ConfigError) as caught:
        read_mix([MixSection(path=path)])
    assert (
        str(caught.value)
        == f"mix.0.path: {path}:1: no 'solution' field; the row has: question, answer. A warm-up learns from "
        "solutions: name their column with mix.0.columns.solution=question")
    with pytest.raises(ConfigError, match=r"mix.0.path: .*missing.jsonl: no such file"):
        read_mix([MixSection(path=str(tmp_path / "missing.jsonl"))])
