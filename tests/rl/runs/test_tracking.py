import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rl.runs.folder import RunFolder
from rl.runs.tracking import JsonLines, JsonLinesError, MetricsLog, RolloutsLog, read_json_lines
from tests.reference.scored_groups import scored_group


def test_each_metric_line_is_in_the_file_before_log_returns(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with MetricsLog(folder) as log:
        log.log(1, "train", {"reward": 0.5, "num_tokens": 12})
        assert folder.metrics_file.read_text() == '{"step": 1, "kind": "train", "reward": 0.5, "num_tokens": 12}\n'


def test_a_number_that_is_not_finite_becomes_null_and_is_counted(tmp_path: Path) -> None:
    forwarded: list[tuple[dict[str, float], int]] = []
    with MetricsLog(RunFolder(tmp_path), [lambda values, step: forwarded.append((values, step))]) as log:
        log.log(3, "eval", {"held_out/accuracy": 0.25, "kl": math.nan, "ratio": math.inf})
    assert read_json_lines(tmp_path / "metrics.jsonl") == [
        {"step": 3, "kind": "eval", "held_out/accuracy": 0.25, "kl": None, "ratio": None, "num_not_finite": 2}]
    assert forwarded == [({"held_out/accuracy": 0.25}, 3)]


def test_a_metric_named_like_a_key_of_the_line_is_refused(tmp_path: Path) -> None:
    with MetricsLog(RunFolder(tmp_path)) as log, pytest.raises(ValueError, match="'step'"):
        log.log(1, "train", {"step": 2.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_run_cut_back_to_its_checkpoint_writes_the_same_bytes_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "resumed")
    for folder in (whole, resumed):
        folder.path.mkdir()
    with MetricsLog(whole) as log:
        for step in range(6):
            log.log(step, "train", {"reward": step / 7})
    with MetricsLog(resumed) as log:
        for step in range(3):
            log.log(step, "train", {"reward": step / 7})
        position = log.position()
        for step in range(3, 5):
            log.log(step, "train", {"reward": step / 7})
    with MetricsLog(resumed) as log:
        log.truncate_to(position)
        for step in range(3, 6):
            log.log(step, "train", {"reward": step / 7})
    assert resumed.metrics_file.read_bytes() == whole.metrics_file.read_bytes()


@pytest.mark.parametrize("half", ['{"step": 2, "rew', '{"a": "' + "x" * 200_000, "{"])
def test_a_last_line_cut_by_a_kill_is_removed_at_the_next_opening_and_skipped_by_readers(
    tmp_path: Path, half: str
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n' + half)
    assert read_json_lines(path) == [{"step": 1}]
    with JsonLines(path) as lines:
        lines.append({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_that_is_one_cut_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step"')
    with JsonLines(path) as lines:
        assert lines.position() == 0


def test_lines_survive_sigkill_without_being_closed(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from rl.runs.folder import RunFolder
        from rl.runs.tracking import MetricsLog
        log = MetricsLog(RunFolder(Path(sys.argv[1])))
        for step in range(50):
            log.log(step, "train", {"reward": 0.5})
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [record["step"] for record in read_json_lines(tmp_path / "metrics.jsonl")] == list(range(50))


@pytest.mark.parametrize(
    ("position", "message"), [(100, "has 24 bytes"), (-1, "has 24 bytes"), (5, "no end of line at byte 5")]
)
def test_a_position_that_does_not_fit_the_file_is_refused_and_nothing_is_cut(
    tmp_path: Path, position: int, message: str
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    with JsonLines(path) as lines, pytest.raises(JsonLinesError, match=message):
        lines.truncate_to(position)
    assert len(path.read_bytes()) == 24


@pytest.mark.parametrize("line", ["{]", "[1]", "ÿ", ""])
def test_a_malformed_line_before_the_last_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(JsonLinesError, match=r"lines.jsonl:2 is"):
        read_json_lines(path)


def test_a_group_is_written_with_everything_that_decided_its_gradient(tmp_path: Path) -> None:
    scored = scored_group("q1", ["7", "7", "8", None], num_tokens=[3, 4, 5, 6], truncated=[3])
    with RolloutsLog(RunFolder(tmp_path)) as log:
        log.log(4, scored, advantages=[0.5, 0.5, -0.25, -0.75], refused=None)
        log.log(4, scored, advantages=None, refused="too_high")
    trained, refused = read_json_lines(tmp_path / "rollouts.jsonl")
    completions = trained.pop("completions")
    assert isinstance(completions, list) and len(completions) == 4
    assert trained == {
        "step": 4, "question_id": "q1", "question": "question q1", "answer": None, "columns": {},
        "prompt": "question q1\n", "entropy": pytest.approx(1.0397207708), "normalised_entropy": pytest.approx(0.75),
        "refused": None}
    assert completions[3] == {
        "text": "no idea at all", "answer": None, "cluster": 3, "reward": 0.0, "scores": {"semantic_entropy": 0.0},
        "advantage": -0.75, "num_tokens": 6, "finish_reason": "length", "policy_version": 3}
    assert refused["refused"] == "too_high"
    assert isinstance(refused["completions"], list)
    assert all(isinstance(item, dict) and item["advantage"] is None for item in refused["completions"])


def test_with_their_texts_tokens_stand_in_the_group_with_their_log_probabilities(tmp_path: Path) -> None:
    with RolloutsLog(RunFolder(tmp_path), token_texts=lambda ids: [f"<{token}>" for token in ids]) as log:
        log.log(1, scored_group("q1", ["7", "8"], num_tokens=[2, 3]), advantages=None, refused=None)
    (line,) = read_json_lines(tmp_path / "rollouts.jsonl")
    completions = line["completions"]
    assert isinstance(completions, list)
    assert [one["tokens"] for one in completions if isinstance(one, dict)] == [
        [["<1>", -0.5], ["<2>", -0.5]], [["<1>", -0.5], ["<2>", -0.5], ["<3>", -0.5]]]


@pytest.mark.parametrize(
    "text", ["求和 \\frac{1}{2}", "line\nbreak\u2028separator", "lone \ud800 surrogate", "nul \x00"])
def test_any_text_a_model_may_write_is_one_line_and_comes_back(tmp_path: Path, text: str) -> None:
    path = tmp_path / "lines.jsonl"
    with JsonLines(path) as lines:
        lines.append({"text": text})
    assert path.read_bytes().count(b"\n") == 1
    assert read_json_lines(path) == [{"text": text}]


def test_a_line_that_the_disk_has_no_room_for_gives_a_clear_error_and_leaves_whole_lines(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from rl.runs.tracking import JsonLines
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        lines = JsonLines(Path(sys.argv[1]))
        lines.append({"text": "x" * 500})
        try:
            lines.append({"text": "y" * 900})
        except OSError as error:
            print(error)
        lines.append({"text": "z" * 100})
    """)
    path = tmp_path / "lines.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[3],
                          capture_output=True, text=True, check=True)
    assert "cannot append to" in done.stdout and "--resume" in done.stdout
    assert read_json_lines(path) == [{"text": "x" * 500}, {"text": "z" * 100}]


def test_appending_goes_to_the_end_after_the_file_was_looked_at(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "lines.jsonl") as lines:
        lines.append({"step": 1})
        end = lines.position()
        lines.append({"step": 2})
        lines.truncate_to(end)
        lines.append({"step": 3})
    assert [record["step"] for record in read_json_lines(tmp_path / "lines.jsonl")] == [1, 3]
    assert os.stat(tmp_path / "lines.jsonl").st_size == 2 * end
