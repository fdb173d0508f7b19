"""The command on folders as an evaluation leaves them: its table, its warnings, its JSON, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.compare import main
from eval.comparison import compare_questions
from eval.records import GradedQuestion, Sample, to_lines

ROOT = Path(__file__).parents[2]
PROTOCOL = {
    "prompt": "qwen_math", "prompt_digest": "0123456789abcdef", "chat_template": True, "temperature": 0.0, "top_p": 1.0,
    "max_tokens": 512, "samples": 1, "seed": 0, "grader": "rewards.accuracy:accuracy", "source": "math500.jsonl"}


def graded(benchmark: str, name: str, verdicts: str) -> GradedQuestion:
    """One sample per letter: r is right, every other letter a wrong answer."""
    return GradedQuestion(
        benchmark, name, f"What is\n{name}?", "r", {"answer": "r"},
        tuple(
            Sample(f"it is {letter}", letter, float(letter == "r"), ord(letter), False, 7, place)
            for place, letter in enumerate(verdicts)))


def benchmark(name: str, verdicts: list[str]) -> list[GradedQuestion]:
    return [graded(name, f"{name}/{place}", each) for place, each in enumerate(verdicts)]


def write(
    folder: Path, questions: list[GradedQuestion], model: str = "base", adapter: str | None = None, **protocol: Any
) -> Path:
    folder.mkdir()
    lines = [json.dumps(line) for question in questions for line in to_lines(question)]
    (folder / "completions.jsonl").write_text("".join(f"{line}\n" for line in lines))
    names = dict.fromkeys(question.benchmark for question in questions)
    entries = {name: {
        "num_questions": len(own := [question for question in questions if question.benchmark == name]),
        "num_samples": (samples := len(own[0].samples)), "k": [samples],
        "protocol": {**PROTOCOL, "samples": samples, **protocol}} for name in names}
    (folder / "result.json").write_text(json.dumps({"model": model, "adapter": adapter, "benchmarks": entries}))
    return folder


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_the_table_holds_the_numbers_of_the_comparison_and_names_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = benchmark("math500", ["r"] * 10 + ["w"] * 30), benchmark(
        "math500", ["r"] * 9 + ["w"] + ["r"] * 11 + ["w"] * 19)
    same = benchmark("gsm8k", ["r", "w"])
    a = write(tmp_path / "a", [*before, *same])
    b = write(tmp_path / "b", [*same, *after], adapter="runs/grpo", seed=3, source="another/folder")
    assert main([str(a), str(b), "--flips", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A  base ({a})" and lines[1] == f"B  base with runs/grpo ({b})"
    expected = compare_questions(before, after)
    low, high = expected.difference.low, expected.difference.high
    row = next(line for line in lines if line.startswith("math500"))
    # p: 12 signs, at least 10 from 0: 2 * (1 + 12) of 4096.
    assert row.split() == [
        "math500", "40", "25.0", "50.0", "+25.0", f"[{low:+.1f},", f"{high:+.1f}]", "0.0063", "+11", "-1", "B", "is",
        "better"]
    assert next(line for line in lines if line.startswith("gsm8k")).split()[4:] == [
        "+0.0", "[+0.0,", "+0.0]", "1", "+0", "-0", "no", "difference", "shown"]
    gained = lines.index("math500, gained:")
    assert lines[gained + 1 : gained + 4] == [
        "  math500/10  0% -> 100%  What is math500/10?", "  math500/11  0% -> 100%  What is math500/11?",
        "  and 9 more (--flips, --json)"]
    assert lines[lines.index("math500, lost:") + 1] == "  math500/9  100% -> 0%  What is math500/9?"
    assert not any(line.startswith("warning:") for line in lines)


def test_json_has_every_number_and_every_changed_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = benchmark("aime24", ["rw", "ww", "rr"]), benchmark("aime24", ["rr", "rr", "ww"])
    write(tmp_path / "a", before)
    write(tmp_path / "b", after, adapter="grpo")
    assert main([str(tmp_path / "a" / "result.json"), str(tmp_path / "b"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = compare_questions(before, after)
    entry = told["benchmarks"]["aime24"]
    assert (
        told["a"] == {"path": str(tmp_path / "a"), "model": "base", "adapter": None} and told["b"]["adapter"] == "grpo")
    assert entry["difference"] == {
        "value": expected.difference.value, "low": expected.difference.low, "high": expected.difference.high}
    assert (
        entry["p_value"] == expected.p_value
        and entry["is_exact"] is True
        and entry["num_needed"] == expected.num_needed)
    assert [flip["id"] for flip in entry["gained"]] == ["aime24/0", "aime24/1"] and [
        flip["id"] for flip in entry["lost"]
    ] == ["aime24/2"]
    assert (
        told["warnings"]
        == [warning for warning in told["warnings"] if "aime24: too small for this difference" in warning]
        != [])


def test_another_protocol_is_a_warning_that_names_its_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = benchmark("math500", ["r", "w"])
    a = write(tmp_path / "a", questions)
    other_prompt = write(
        tmp_path / "b", questions, prompt="plain", prompt_digest="f", seed=9, source="elsewhere", questions_digest="d")
    longer = write(tmp_path / "c", questions, max_tokens=1024)
    assert main([str(a), str(other_prompt)]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "warning: math500: A and B were evaluated differently: prompt (qwen_math in A, plain in B), prompt_digest"
        " (0123456789abcdef in A, f in B); base and trained models are compared under the same prompt")
    assert main([str(a), str(longer)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "warning: math500: A and B were evaluated differently: max_tokens (512 in A, 1024 in B)")


def test_other_questions_and_other_numbers_of_samples_are_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = write(tmp_path / "a", benchmark("math500", ["rr"] * 5))
    b = write(tmp_path / "b", [graded("math500", f"math500/{place}", "r") for place in (3, 4, 99)], prompt_digest="f")
    assert main([str(a), str(b)]) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:")]
    assert warnings == [
        (
            "warning: math500: questions 3 only in A (math500/0, math500/1, math500/2) and 1 only in B (math500/99); "
            "compared over the 2 that both have"),
        (
            "warning: math500: A has 2 samples of each question, B 1; averages can be compared, but majorities of more "
            "samples are more often right, so the changed questions say less")]


def test_aime_is_called_too_small_for_one_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a", benchmark("aime24", ["r"] * 3 + ["w"] * 27))
    b = write(tmp_path / "b", benchmark("aime24", ["r"] * 4 + ["w"] * 26))
    assert main([str(a), str(b)]) == 0
    out = capsys.readouterr().out
    # d is 100 once and 0 otherwise: variance over mean^2 is 30, and 7.849 * 30 = 235.5.
    assert "too few questions" in out
    assert (
        "warning: aime24: too small for this difference: one of 30 questions is 3.3 points, the seen difference is "
        "+3.3, uncertain by ±5.0; about 236 such questions would show it"
        in out)


def test_chosen_benchmarks_alone_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [*benchmark("math500", ["r", "w"]), *benchmark("gsm8k", ["r"]), *benchmark("aime24", ["w"])]
    a, b = write(tmp_path / "a", questions), write(tmp_path / "b", questions)
    assert main([str(a), str(b), "--json", "--benchmarks", "aime24, math500"]) == 0
    assert list(json.loads(capsys.readouterr().out)["benchmarks"]) == ["aime24", "math500"]
    assert "Did you mean gsm8k?" in error_of([str(a), str(b), "--benchmarks", "gsm8"], capsys)
    assert "expected names separated by commas" in error_of([str(a), str(b), "--benchmarks", ","], capsys)


def test_what_is_no_evaluation_is_one_line_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good", benchmark("math500", ["rw", "ww"]))
    (tmp_path / "empty").mkdir()
    assert "there is no result.json in" in error_of([str(tmp_path / "empty"), str(good)], capsys)
    assert "there is no result.json in" in error_of([str(good), str(tmp_path / "nowhere")], capsys)
    other = write(tmp_path / "other", benchmark("gsm8k", ["rw"]))
    assert "no benchmark is in both: A has math500; B has gsm8k" in error_of([str(good), str(other)], capsys)
    apart = write(tmp_path / "apart", [graded("math500", "x", "rw")])
    assert "math500: no question is in both: A has 2 (math500/0, math500/1), B has 1 (x)" in error_of(
        [str(good), str(apart)], capsys)
    changed = write(tmp_path / "changed", [replace(graded("math500", "math500/0", "rw"), gold="s")])
    assert "question 'math500/0' is" in error_of([str(good), str(changed)], capsys)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace('{"benchmark"', "{'benchmark'", 1), "completions.jsonl:1 is not JSON"),
        (lambda text: text.replace('"correct": 0.0', '"corect": 0.0', 1), "completions.jsonl:2: KeyError: 'correct'"),
        (
            lambda text: text.replace('"correct": 0.0', '"correct": NaN', 1),
            "completions.jsonl:2: ValueError: correct is nan, outside [0, 1]",
        ),
        (
            lambda text: text.replace('"correct": 0.0', '"correct": "no"', 1),
            "completions.jsonl:2: ValueError: could not convert",
        ),
        (
            lambda text: text.replace('"sample": 1', '"sample": 0', 1),
            "completions.jsonl:2: sample 0 of question 'math500/0' follows 1 samples",
        ),
        (
            lambda text: text[:-10],
            "completions.jsonl has 3 completions of math500, and result.json beside it counts 2 questions with 2",
        ),
    ],
)
def test_a_damaged_line_is_named_and_a_cut_file_is_not_taken_for_a_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    good = write(tmp_path / "good", benchmark("math500", ["rw", "ww"]))
    bad = write(tmp_path / "bad", benchmark("math500", ["rw", "ww"]))
    text = (bad / "completions.jsonl").read_text()
    assert damage(text) != text
    (bad / "completions.jsonl").write_text(damage(text))
    assert message in error_of([str(good), str(bad)], capsys)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model": "m", "benchmarks": {"math500": {}}}', '{"model": "m", "benchmarks": 3}', "\x00"]
)
def test_a_damaged_result_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    good = write(tmp_path / "good", benchmark("math500", ["r"]))
    bad = write(tmp_path / "bad", benchmark("math500", ["r"]))
    (bad / "result.json").write_text(text)
    assert f"{bad / 'result.json'} is not the result of an evaluation" in error_of([str(good), str(bad)], capsys)


def test_the_command_runs_by_its_name_without_loading_torch(tmp_path: Path) -> None:
    a = write(tmp_path / "a", benchmark("math500", ["r", "w"]))
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "eval.compare", str(a), str(a)], cwd=ROOT, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "no difference shown" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "transformers", "matplotlib"} & loaded and "numpy" in loaded
