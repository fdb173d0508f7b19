import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rl.runs.folder import RunFolder
from rl.runs.intervals import Interval
from rl.runs.summary import Best, Summary, installed_versions, peak_rss_gb, read_summary, render_summary, write_summary

ROOT = Path(__file__).parents[3]
SUMMARY = Summary(
    steps=40, stop_reason="finished", message=None,
    held_out_before={"avg@8": Interval(0.352, 0.331, 0.374)}, held_out_after={"avg@8": Interval(0.968, 0.957, 0.978)},
    best=Best(40, 0.968, "checkpoints/step-40"), wall_s=95.4, peak_rss_gb=1.234, num_sampled_tokens=1234567, seed=0,
    versions={"python": "3.11.9"})


def test_the_file_has_the_keys_that_others_rely_on(tmp_path: Path) -> None:
    write_summary(RunFolder(tmp_path), SUMMARY)
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["held_out_before"] == {"avg@8": {"value": 0.352, "low": 0.331, "high": 0.374}}
    assert written["held_out_after"]["avg@8"]["value"] == 0.968
    assert written["best"] == {"step": 40, "value": 0.968, "checkpoint": "checkpoints/step-40", "metric": "accuracy"}
    assert (written["wall_s"], written["peak_rss_gb"], written["steps"], written["stop_reason"]) == (
        95.4, 1.234, 40, "finished")


@pytest.mark.parametrize("summary", [
    SUMMARY, replace(SUMMARY, held_out_before=None, held_out_after=None, best=None, message="stopped")])
def test_a_summary_comes_back_as_it_was_written(tmp_path: Path, summary: Summary) -> None:
    write_summary(RunFolder(tmp_path), summary)
    assert read_summary(RunFolder(tmp_path)) == summary


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"held_out_before": {"avg@8": 1}}'])
def test_a_file_that_is_no_summary_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"summary.json is not a run's summary"):
        read_summary(RunFolder(tmp_path))


def test_the_text_says_before_after_gain_cost_places_and_the_next_command() -> None:
    text = render_summary(SUMMARY, RunFolder(Path("runs/quickstart")))
    for part in (
        "held-out avg@8    0.352 [0.331, 0.374] -> 0.968 [0.957, 0.978]   +61.6 points", "40 (finished), seed 0",
        "0.968 at step 40, runs/quickstart/checkpoints/step-40", "95 s, 1.23 GB of memory, 1,234,567 sampled tokens",
        "runs/quickstart/curve.png", "python -m rl.export runs/quickstart exported/quickstart",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 100
    text = render_summary(SUMMARY, RunFolder(Path("runs/quickstart")), merges=False)
    assert "rl.export" not in text and "python -m eval.run --adapter runs/quickstart --benchmarks NAMES" in text


def test_a_run_without_evaluation_says_so_and_an_alarm_is_told() -> None:
    text = render_summary(
        replace(SUMMARY, held_out_before=None, held_out_after=None, best=None, message="step 7: it fell"),
        RunFolder(Path("runs/x")))
    assert "not evaluated (set evaluation.path)" in text and "step 7: it fell" in text and "best" not in text


def test_a_run_stopped_before_its_last_evaluation_shows_the_first_without_a_gain() -> None:
    text = render_summary(replace(SUMMARY, held_out_after=None), RunFolder(Path("runs/x")))
    assert "0.352 [0.331, 0.374] -> not measured\n" in text


def test_peak_memory_counts_what_was_freed_again_and_a_living_child() -> None:
    code = (
        "import subprocess, sys\nfrom rl.runs.summary import peak_rss_gb\nbefore = peak_rss_gb()\nblock = "
        "bytearray(200_000_000)\nblock[::4096] = b'x' * len(block[::4096])\ndel block\nalone = peak_rss_gb()\nchild = "
        "subprocess.Popen([sys.executable, '-c', 'b = bytearray(b\"x\") * 100_000_000; print(1, flush=True); "
        "input()'],\n                         stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE)\nchild.stdout.readline()\nboth = "
        "peak_rss_gb()\nchild.communicate(b'\\n')\nprint(before, alone, both)\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, alone, both = (float(word) for word in done.stdout.split())
    assert before < 0.15
    assert 0.19 < alone - before < 0.25
    assert 0.1 < both - alone < 0.15


def test_peak_memory_of_this_process_is_between_10_mb_and_what_a_machine_has() -> None:
    assert 0.01 < peak_rss_gb() < 1000


def test_versions_are_read_without_importing_the_packages() -> None:
    code = ("import sys, rl.runs.summary; versions = rl.runs.summary.installed_versions(); "
            "print('torch' in sys.modules, 'transformers' in sys.modules, *versions)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "python", "torch", "transformers", "peft", "accelerate"]
    assert installed_versions()["python"] == sys.version.split()[0]
