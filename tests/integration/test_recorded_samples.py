"""Recorded model samples through extraction, grading and clustering, by the benchmarks that use them; their numerics by
hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
needs_samples = pytest.mark.skipif(
    "OTHERHALF_DATA" not in os.environ, reason="OTHERHALF_DATA (folder with samples/) is not set")


def json_of(script: str, *arguments: str) -> object:
    finished = subprocess.run([sys.executable, str(ROOT / "benchmarks" / script), "--json", *arguments], cwd=ROOT,
                              env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def entropy_and_correctness() -> ModuleType:
    path = ROOT / "benchmarks" / "entropy_and_correctness.py"
    spec = importlib.util.spec_from_file_location("entropy_and_correctness", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@needs_samples
def test_recorded_correctness_and_clusters_are_reproduced_and_low_entropy_goes_with_right_majorities() -> None:
    summaries = json_of("entropy_and_correctness.py")
    assert isinstance(summaries, dict) and set(summaries) == {"math100_n8_dev", "gsm8k_gpt3_n4_dev"}
    for summary in summaries.values():
        assert summary["grading_agreement"] >= 0.98
        assert summary["auroc"] > 0.7
        assert summary["lowest_third"] > summary["highest_third"]
    assert summaries["math100_n8_dev"]["cluster_agreement"] >= 0.98


@needs_samples
def test_grading_benchmark_counts_what_it_does() -> None:
    rows = json_of("grading_speed.py", "--skip-plain", "--repeats", "1")
    assert isinstance(rows, list)
    cold, emptied, cached, _ = rows
    assert cold["items"] == emptied["items"] == cached["items"] == 512
    assert cold["num_correct"] == emptied["num_correct"] == cached["num_correct"] > 256
    assert cold["algebra"] == emptied["algebra"] and cached["algebra"] == 0


def test_summary_of_four_small_groups_is_as_computed_by_hand(
    tmp_path: Path, entropy_and_correctness: ModuleType
) -> None:
    """Majorities: right, wrong, tied between right and wrong, tied among four. Entropies: 0, 0.406, 0.5, 1."""
    answers = {
        "all agree": ("1111", "1"), "wrong majority": ("2223", "3"), "tie": ("1212", "1"), "all differ": ("1234", "4")}
    rows = [
        {
            "id": name, "answer": gold,
            "samples": [{"text": f"\\boxed{{{answer}}}", "correct": answer == gold} for answer in given]}
        for name, (given, gold) in answers.items()]
    rows[0]["samples"][0]["correct"] = False  # type: ignore[index]
    rows[1].update(clusters=[[0, 1], [2, 3]], contested_pairs=[[2, 1]])  # type: ignore[list-item]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    groups = entropy_and_correctness.read(tmp_path / "rows.jsonl", "correct")
    summary = entropy_and_correctness.summarise(groups)
    assert [group.majority_correct for group in groups] == [1.0, 0.0, 0.5, 0.25]
    assert [group.entropy for group in groups] == pytest.approx([0.0, 0.40564, 0.5, 1.0], abs=1e-5)
    assert summary.grading_agreement == 15 / 16
    assert summary.cluster_agreement == 3 / 5  # of the five uncontested pairs, 0-2 and 2-3 differ
    assert summary.majority_accuracy == 1.75 / 4
    assert summary.auroc == pytest.approx((2.25 + 0.125 + 0.375 + 0.09375) / (1.75 * 2.25))
    assert (summary.lowest_third, summary.highest_third) == (1.0, 0.25)
    assert entropy_and_correctness.disagreements(groups) == [
        "| all agree | 0 | `1` | `1` | boxed | False | equal for us |"]


def test_groups_of_equal_entropy_count_as_their_mean_in_thirds(
    tmp_path: Path, entropy_and_correctness: ModuleType
) -> None:
    rows = [
        {
            "id": str(k), "answer": "1",
            "samples": [{"text": f"\\boxed{{{answer}}}", "correct": True} for answer in given]}
        for k, given in enumerate(["22", "11", "12"])]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert entropy_and_correctness.tie_averaged(entropy_and_correctness.read(tmp_path / "rows.jsonl", "correct")) == [
        0.5, 0.5, 0.5]


def test_score_interval_has_the_published_values(entropy_and_correctness: ModuleType) -> None:
    assert entropy_and_correctness.wilson(0.5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert entropy_and_correctness.wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
