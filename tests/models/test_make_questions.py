"""models/make_questions.py: the committed files are what it writes, and the mixed ones hold what they say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from make_questions import KINDS, main

from rl.paths import project_root

MODELS = project_root() / "models" / "tiny-arith"
FILES = ("train.jsonl", "train_with_answers.jsonl", "held_out.jsonl")


@pytest.mark.parametrize(("committed", "options"), [("questions", []), ("mixed_questions", ["--mixed"])])
def test_the_committed_questions_are_made_again_byte_for_byte(
    tmp_path: Path, committed: str, options: list[str]
) -> None:
    with patch.object(sys, "argv", ["make_questions.py", str(tmp_path), *options]):
        main()
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (MODELS / committed / name).read_bytes(), name


@pytest.mark.parametrize("name", FILES)
def test_mixed_questions_are_of_their_kind(name: str) -> None:
    rows = [json.loads(line) for line in (MODELS / "mixed_questions" / name).read_text().splitlines()]
    assert [row["kind"] for row in rows[:4]] == ["usual", "larger", "usual", "longer"]
    for row in rows:
        text = row["question"].removesuffix("=?")
        numbers = [int(part) for part in text.replace("-", "+").split("+")]
        largest, (fewest, most) = KINDS[row["kind"]]
        assert max(numbers) <= largest and fewest <= len(numbers) <= most
        assert row["kind"] != "larger" or max(numbers) > 30
        assert "answer" not in row or int(row["answer"]) == eval(text)
