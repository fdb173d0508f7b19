import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rl.picture import compare_runs, draw_curves, main

ROOT = Path(__file__).parents[2]


def write_run(folder: Path, accuracies: dict[int, float], steps: int = 20, **train: float) -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, "kind": "train", "reward": step / 40, "normalised_entropy": 1 - step / 40,
                         "refused/too_low": 0.1, "refused/too_high": 0.2, "refused/equal_rewards": 0.3, **train})
             for step in range(1, steps + 1)]
    lines += [json.dumps({"step": step, "kind": "eval", "held_out/accuracy": value, "held_out/low": value - 0.02,
                          "held_out/high": value + 0.02}) for step, value in accuracies.items()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "metrics.jsonl"


def size_of(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_a_run_becomes_a_small_png_of_two_by_two_panels(tmp_path: Path) -> None:
    out = tmp_path / "new" / "curve.png"
    draw_curves(write_run(tmp_path / "run", {0: 0.3, 10: 0.5, 20: 0.9}), out, "a run")
    assert size_of(out) == (1320, 840)
    assert 20_000 < out.stat().st_size < 200_000


@pytest.mark.slow
def test_the_picture_shows_the_numbers_and_equal_numbers_give_equal_bytes(tmp_path: Path) -> None:
    first, same, other = (tmp_path / name for name in ("first", "same", "other"))
    for folder, accuracy in ((first, 0.5), (same, 0.5), (other, 0.6)):
        draw_curves(write_run(folder, {0: 0.3, 20: accuracy}), folder / "curve.png", "a run")
    assert (first / "curve.png").read_bytes() == (same / "curve.png").read_bytes()
    assert (first / "curve.png").read_bytes() != (other / "curve.png").read_bytes()


@pytest.mark.parametrize("lines", [
    ['{"step": 1, "kind": "train", "reward": null, "num_not_finite": 1}'],
    ['{"step": 0, "kind": "eval", "held_out/accuracy": 0.5}'],
    ['{"step": 1, "kind": "train", "reward": -0.5, "accuracy": 0.2}', '{"step": 2, "kind": "tr'],
])
def test_a_run_that_has_hardly_begun_or_was_cut_can_be_drawn(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + ("\n" if len(lines) == 1 else ""))
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curve.png", "begun")
    assert size_of(tmp_path / "curve.png") == (1320, 840)


def test_a_run_without_a_line_is_refused_and_leaves_no_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="no metrics yet"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curve.png", "empty")
    assert not (tmp_path / "curve.png").exists()


def test_runs_of_several_seeds_are_compared_over_the_steps_they_share(tmp_path: Path) -> None:
    runs = {
        "EMPO": [write_run(tmp_path / "a", {0: 0.3, 20: 0.9}), write_run(tmp_path / "b", {0: 0.3, 10: 0.5, 20: 0.95})],
        "random": [write_run(tmp_path / "c", {0: 0.3, 20: 0.3})],
    }
    compare_runs(runs, tmp_path / "out.png")
    assert size_of(tmp_path / "out.png") == (960, 576)


def test_runs_without_a_shared_evaluation_are_refused_by_label(tmp_path: Path) -> None:
    runs = {"EMPO": [write_run(tmp_path / "a", {0: 0.3}), write_run(tmp_path / "b", {5: 0.3})]}
    with pytest.raises(ValueError, match="2 runs of 'EMPO'"):
        compare_runs(runs, tmp_path / "out.png")


def test_the_command_takes_folders_patterns_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("empo-0", "empo-1", "grpo-0"):
        write_run(tmp_path / name, {0: 0.3, 20: 0.9})
    one, many = tmp_path / "one.png", tmp_path / "many.png"
    assert main([str(tmp_path / "empo-0"), "--out", str(one)]) == 0
    assert main([f"EMPO={tmp_path}/empo-*", str(tmp_path / "grpo-0" / "metrics.jsonl"), "--out", str(many)]) == 0
    assert size_of(one) == (1320, 840) and size_of(many) == (960, 576)
    assert capsys.readouterr().out.split() == [str(one), str(many)]


def test_a_missing_run_is_one_line_on_stderr_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nothing"), "--out", str(tmp_path / "x.png")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no run at ") and error.count("\n") == 1


def test_importing_the_module_loads_neither_matplotlib_nor_torch() -> None:
    code = ("import sys, rl.picture, rl.runs.progress, rl.runs.watchdog, rl.runs.summary; "
            "print(*({'matplotlib', 'torch', 'rich'} & sys.modules.keys()))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
