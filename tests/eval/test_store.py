"""The folder of an evaluation: what a kill may leave behind, and what is not the evaluation's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.records import GradedQuestion, RecordsError, Sample
from eval.store import COMPLETIONS, Completions, open_settings, read_completions, read_result
from eval.tasks import EvaluationError

CHUNKS = [(("a", "1"), ("a", "2")), (("a", "3"),), (("b", "1"), ("b", "2"))]
SAMPLES = {"a": 2, "b": 1}


def question(task: str, name: str) -> GradedQuestion:
    return GradedQuestion(task, name, f"What is {name}?", "1", {"level": 3}, tuple(
        Sample(f"It is \\boxed{{{i}}}. Ünïcode 數", str(i) if i else None, float(i == 1), i, bool(i), 5 + i, 77 + i)
        for i in range(SAMPLES[task])))


def fill(folder: Path, num_chunks: int) -> list[GradedQuestion]:
    completions = Completions(folder, CHUNKS, SAMPLES)
    for chunk in CHUNKS[completions.num_chunks:num_chunks]:
        completions.append([question(*place) for place in chunk])
    completions.close()
    return completions.questions


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    written = fill(tmp_path, 3)
    assert read_completions(tmp_path) == written == [question(*place) for chunk in CHUNKS for place in chunk]


@pytest.mark.parametrize("cut", range(0, 1400, 13))
def test_wherever_a_kill_cuts_the_file_whole_chunks_are_kept_and_the_rest_is_done_again(
    tmp_path: Path, cut: int
) -> None:
    fill(tmp_path, 3)
    whole = (tmp_path / COMPLETIONS).read_bytes()
    (tmp_path / COMPLETIONS).write_bytes(whole[:cut])
    completions = Completions(tmp_path, CHUNKS, SAMPLES)
    completions.close()
    assert len(completions.questions) in (0, 2, 3, 5)
    assert (tmp_path / COMPLETIONS).read_bytes() == whole[:(tmp_path / COMPLETIONS).stat().st_size]
    fill(tmp_path, 3)
    assert (tmp_path / COMPLETIONS).read_bytes() == whole


def test_completions_of_other_questions_are_refused_and_kept(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    before = (tmp_path / COMPLETIONS).read_bytes()
    with pytest.raises(RecordsError, match=r"completions.jsonl:1: saw .*'1', 0.*expected .*'9', 0"):
        Completions(tmp_path, [(("a", "9"),)], SAMPLES)
    assert (tmp_path / COMPLETIONS).read_bytes() == before


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    lines = (tmp_path / COMPLETIONS).read_text().splitlines()
    lines[1] = lines[1][:-3]
    (tmp_path / COMPLETIONS).write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordsError, match=r"completions.jsonl:2: not JSON"):
        Completions(tmp_path, CHUNKS, SAMPLES)


def test_the_same_settings_go_on_and_others_are_refused_by_key(tmp_path: Path) -> None:
    settings = {"generator": "transformers", "tasks": {"a": {"temperature": 0.0, "samples": 2}}}
    assert not open_settings(tmp_path, settings, restart=False)
    assert open_settings(tmp_path, settings, restart=False)
    fill(tmp_path, 1)
    other = {"generator": "transformers", "tasks": {"a": {"temperature": 0.6, "samples": 2}}}
    with pytest.raises(EvaluationError, match=r"tasks.a.temperature is 0.0 there and 0.6 here.*--restart"):
        open_settings(tmp_path, other, restart=False)
    assert len(read_completions(tmp_path)) == 2
    assert not open_settings(tmp_path, other, restart=True)
    assert not (tmp_path / COMPLETIONS).exists()


def test_completions_of_unknown_settings_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with pytest.raises(EvaluationError, match="what they were sampled with is not known"):
        open_settings(tmp_path, {}, restart=False)


def test_a_result_that_is_none_says_whether_the_evaluation_has_ended(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="is not the folder of an evaluation"):
        read_result(tmp_path)
    fill(tmp_path, 1)
    with pytest.raises(RecordsError, match="has not ended yet"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"benchmarks": []}))
    with pytest.raises(RecordsError, match="is not a result"):
        read_result(tmp_path)
