"""`python -m eval.run --generator vllm` against the embedded sampler, on a real vLLM: base and merged adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.run import main
from eval.store import read_completions
from rl.paths import project_root
from tests.reference.whole_run import in_process

BASE = str(project_root() / "models" / "tiny-arith")


def evaluate(out: Path, *words: str) -> list[list[str]]:
    """Texts by question and sample."""
    finished = in_process(
        main, "--out", str(out), "--benchmarks", "tiny_arith", "--limit", "24", "--no-plots", *words)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return [[sample.text for sample in question.samples] for question in read_completions(out)]


@pytest.mark.parametrize("subject", ["base", "adapter"])
def test_greedy_completions_are_those_of_the_embedded_sampler(tmp_path: Path, adapter: Path, subject: str) -> None:
    words = ("--model", BASE) if subject == "base" else ("--model", BASE, "--adapter", str(adapter))
    mine, theirs = (
        evaluate(tmp_path / name, *words, "-k", "1", "--generator", name) for name in ("vllm", "transformers"))
    assert mine == theirs
    assert not (tmp_path / "vllm" / "merged").exists()


def test_base_and_adapter_differ_and_a_sampled_evaluation_repeats_itself(tmp_path: Path, adapter: Path) -> None:
    words = ("-k", "4", "--generator", "vllm")
    first, second = (evaluate(tmp_path / name, "--model", BASE, *words) for name in ("first", "second"))
    assert first == second
    assert evaluate(tmp_path / "adapter", "--adapter", str(adapter), *words) != first
    entry = json.loads((tmp_path / "first" / "result.json").read_text())["benchmarks"]["tiny_arith"]
    assert 0.2 < entry["avg@4"]["value"] < 0.6 < entry["pass@4"]["value"]
