"""Which questions and gold answers a benchmark's name gives, from rows of the hub's shape and from local files."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import (
    BENCHMARKS,
    Benchmark,
    BenchmarkError,
    LoadedBenchmark,
    find_benchmark,
    list_benchmarks,
    load_benchmark,
)
from rewards.loading import load
from rewards.scoring import GroupInput, RewardSpec, RewardSum
from rl.questions.prompting import load_template

needs_data = pytest.mark.skipif(
    "OTHERHALF_DATA" not in os.environ, reason="OTHERHALF_DATA (folder with the benchmark data) is not set")

BY_NAME = {benchmark.name: benchmark for benchmark in BENCHMARKS}
FROM_HUB = [benchmark for benchmark in BENCHMARKS if benchmark.hub is not None]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def loaded_from(folder: Path, name: str, *rows: dict[str, Any], limit: int | None = None) -> LoadedBenchmark:
    """The rows as the local copy of a benchmark."""
    write(folder / BY_NAME[name].files[0], *rows)
    return load_benchmark(BY_NAME[name], folder, limit)


def refusal(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    with pytest.raises(BenchmarkError) as caught:
        loaded_from(folder, name, *rows)
    return str(caught.value)


def accuracies(loaded: LoadedBenchmark, completions: list[str]) -> tuple[float, ...]:
    """What the benchmark's own grader gives the completions of its first question."""
    grader, question = loaded.benchmark.grader, loaded.questions[0]
    group = GroupInput(question.id, question.text, completions, question.answer, dict(question.columns))
    return RewardSum([RewardSpec(grader.use, arguments=dict(grader.arguments))]).score([group])[0].rewards


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_each_entry_is_complete(benchmark: Benchmark) -> None:
    assert (benchmark.hub is None) != (benchmark.local is None)
    assert bool(benchmark.files) == (benchmark.hub is not None), "every data set can be read from --data-dir"
    assert benchmark.title and benchmark.licence and benchmark.num_questions
    assert benchmark.revision is None or re.fullmatch("[0-9a-f]{40}", benchmark.revision)
    assert load_template(benchmark.prompt).name == benchmark.prompt
    assert getattr(load(benchmark.grader.use), "needs_answer", False)
    protocol = benchmark.protocol
    assert protocol.source and protocol.samples >= 1 and protocol.max_tokens >= 48 and 0 < protocol.top_p <= 1
    assert (protocol.temperature == 0) == (protocol.samples == 1), "one greedy sample, or several that differ"
    assert benchmark.sampled.temperature > 0 and 0 < benchmark.sampled.top_p <= 1


def test_the_sets_that_are_easily_confused_have_names_of_their_own() -> None:
    sizes = {benchmark.name: benchmark.num_questions for benchmark in BENCHMARKS}
    assert (sizes["amc23"], sizes["amc22_23"], sizes["math500"], sizes["math"]) == (40, 83, 500, 5000)
    assert find_benchmark("amc23_40").name == "amc23" and find_benchmark("amc22_23_83").name == "amc22_23"


def test_every_name_and_every_file_belongs_to_one_benchmark() -> None:
    for benchmark in BENCHMARKS:
        assert all(find_benchmark(name) is benchmark for name in (benchmark.name, *benchmark.aliases))
    files = [file for benchmark in BENCHMARKS for file in benchmark.files]
    assert len(files) == len(set(files))


def test_only_gsm8k_takes_the_last_number_for_an_answer() -> None:
    assert [benchmark.name for benchmark in BENCHMARKS if benchmark.grader.arguments.get("last_number")] == ["gsm8k"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("math500", "math500"), ("MATH-500", "math500"), ("AIME2024", "aime24"), ("gpqa-diamond", "gpqa_diamond"),
        ("Minerva", "minerva_math"),
    ],
)
def test_names_are_found_whatever_their_case_and_hyphens(name: str, found: str) -> None:
    assert find_benchmark(name).name == found


@pytest.mark.parametrize(
    ("name", "near"),
    [("mth500", "math500"), ("aime26", "aime2"), ("olympiadbensh", "olympiadbench"), ("gsm8", "gsm8k")],
)
def test_an_unknown_name_is_answered_with_the_closest_and_all_names(name: str, near: str) -> None:
    with pytest.raises(
        BenchmarkError, match=f"--benchmarks: there is no benchmark '{name}'; did you mean {near}"
    ) as caught:
        find_benchmark(name)
    assert all(benchmark.name in str(caught.value) for benchmark in BENCHMARKS)


@pytest.mark.parametrize("name", ["", "zzz", "questions.csv", "a/b"])
def test_a_name_like_none_is_answered_with_all_names(name: str) -> None:
    with pytest.raises(BenchmarkError, match=re.escape(f"there is no benchmark {name!r}. There are: gsm8k, math500")):
        find_benchmark(name)


def test_the_table_has_a_line_for_each_benchmark_and_tells_the_rest() -> None:
    lines = list_benchmarks().splitlines()
    for benchmark, line in zip(BENCHMARKS, lines[1:], strict=False):
        assert (
            line.startswith(benchmark.name)
            and str(benchmark.num_questions) in line
            and benchmark.protocol.source in line)
    assert (
        "reasoning_gym:TASK" in list_benchmarks()
        and "--data-dir" in list_benchmarks()
        and "amc22_23_83 (amc22_23)" in list_benchmarks())


def test_gsm8k_rows_keep_what_stands_behind_the_hashes(tmp_path: Path) -> None:
    row = {
        "question": "How many clips?",
        "answer": "She sold 48/2 = <<48/2=24>>24 clips.\nAltogether <<48+24=72>>1,072.\n#### 1,072",
    }
    loaded = loaded_from(tmp_path, "gsm8k", row)
    assert (loaded.questions[0].text, loaded.questions[0].answer) == ("How many clips?", "1,072")
    assert accuracies(
        loaded, [r"\boxed{1072}", "so it is 1072 clips", "#### 1,072", r"\boxed{72}", "1072, no, 24"]
    ) == (1, 1, 1, 0, 0)


def test_math_rows_keep_the_last_box_of_the_solution_and_their_level(tmp_path: Path) -> None:
    row = {"problem": "Convert.", "level": "Level 2", "type": "Precalculus",
           "solution": r"First $\boxed{1}$? No: $\boxed{\left( 3, \frac{\pi}{2} \right)}.$"}
    loaded = loaded_from(tmp_path, "math", row)
    question = loaded.questions[0]
    assert (question.text, question.answer) == ("Convert.", r"\left( 3, \frac{\pi}{2} \right)")
    assert dict(question.columns) == {"level": "Level 2", "type": "Precalculus"}, "a worked solution is not handed on"
    assert accuracies(loaded, [r"\boxed{(3, \pi/2)}", "3", r"\boxed{1}"]) == (1, 0, 0)


def test_math500_rows_keep_their_ids(tmp_path: Path) -> None:
    row = {"problem": "Let $p$.", "solution": "...", "answer": "p - q", "subject": "Algebra", "level": 5,
           "unique_id": "test/algebra/1.json"}
    question = loaded_from(tmp_path, "math500", row).questions[0]
    assert (question.id, question.text, question.answer, dict(question.columns)) == (
        "test/algebra/1.json", "Let $p$.", "p - q", {"subject": "Algebra", "level": 5})


@pytest.mark.parametrize(
    ("name", "row", "gold"),
    [
        (
            "aime24",
            {"id": 60, "problem": "Find $n$.", "solution": "...", "answer": "073", "url": "u", "year": "2024"}, "073",
        ),
        ("aime25", {"id": "0", "problem": "Find $n$.", "answer": "73"}, "73"),
        ("amc23", {"id": 0, "question": "Find $n$.", "answer": "73.0", "url": "u"}, "73"),
        ("amc22_23", {"id": 0, "problem": "Find $n$.", "answer": 73.0, "url": "u"}, "73"),
    ],
)
def test_competition_rows_have_whole_numbers(tmp_path: Path, name: str, row: dict[str, Any], gold: str) -> None:
    loaded = loaded_from(tmp_path, name, row)
    assert (loaded.questions[0].text, loaded.questions[0].answer, dict(loaded.questions[0].columns)) == (
        "Find $n$.", gold, {})
    assert accuracies(loaded, [r"\boxed{73}", r"\boxed{073}", r"\boxed{72}"]) == (1, 1, 0)


@pytest.mark.parametrize("row", [
    {"question": "Compute.", "answer": "4.5e33"},
    {"problem": "Compute.", "type": "Astronomy", "idx": 1, "solution": r"\[L=4 \pi R^2=\boxed{4.5e33} \text{ergs}\]"},
])
def test_minerva_rows_have_an_answer_or_a_box_in_the_solution(tmp_path: Path, row: dict[str, Any]) -> None:
    loaded = loaded_from(tmp_path, "minerva_math", row)
    assert (loaded.questions[0].text, loaded.questions[0].answer) == ("Compute.", "4.5e33")
    assert accuracies(loaded, [r"\boxed{4.5 \times 10^{33}}", r"\boxed{4.5e33}", r"\boxed{4.5e32}"]) == (1, 1, 0)


@pytest.mark.parametrize(("final", "gold", "right", "wrong"), [
    (["2"], "2", r"\boxed{2}", r"\boxed{3}"),
    ([r"$\frac{1}{2 n+2}$"], r"$\frac{1}{2 n+2}$", r"\boxed{\frac{1}{2(n+1)}}", r"\boxed{\frac{1}{n+2}}"),
    (["$69$,$84$"], "$69$,$84$", r"\boxed{84, 69}", r"\boxed{69}"),
    (["$69$", "$84$"], "$69$, $84$", r"\boxed{69, 84}", r"\boxed{84}"),
    ("['$69$', '$84$']", "$69$, $84$", r"\boxed{69, 84}", r"\boxed{84}"),
    ("[1, 2)", "[1, 2)", r"\boxed{[1, 2)}", r"\boxed{[1, 2]}"),
])
def test_olympiadbench_rows_have_a_list_of_answers(
    tmp_path: Path, final: Any, gold: str, right: str, wrong: str
) -> None:
    row = {
        "id": 1606, "question": "How many?", "solution": ["..."], "final_answer": final, "context": None,
        "image_1": None, "modality": "Text-only", "is_multiple_answer": False, "unit": None, "answer_type": "Numerical",
        "error": None, "subfield": "Combinatorics"}
    loaded = loaded_from(tmp_path, "olympiadbench", row)
    assert (loaded.questions[0].id, loaded.questions[0].answer) == ("1606", gold)
    assert dict(loaded.questions[0].columns) == {
        "subfield": "Combinatorics", "answer_type": "Numerical", "is_multiple_answer": False}
    assert accuracies(loaded, [right, wrong]) == (1, 0)


def gpqa_row(number: int = 0, **other: Any) -> dict[str, Any]:
    return {
        "Record ID": f"rec{number}", "Question": f"Which gas is number {number}?\n", "Correct Answer": "Xenon\n",
        "Incorrect Answer 1": "Argon", "Incorrect Answer 2": "Neon", "Incorrect Answer 3": "Radon",
        "High-level domain": "Chemistry", "Explanation": "...", **other}


def test_gpqa_rows_become_questions_with_lettered_options(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path, "gpqa_diamond", gpqa_row())
    question = loaded.questions[0]
    options, order = question.columns["options"], question.columns["option_order"]
    assert isinstance(options, list) and isinstance(order, list)
    gold = "ABCD"[options.index("Xenon")]
    assert question.id == "rec0" and question.answer == gold and question.columns["High-level domain"] == "Chemistry"
    assert "Explanation" not in question.columns
    assert options == [("Xenon", "Argon", "Neon", "Radon")[int(number)] for number in order]  # type: ignore[arg-type]
    lines = [f"({letter}) {text}" for letter, text in zip("ABCD", options, strict=True)]
    assert question.text == "Which gas is number 0?\n\n" + "\n".join(lines)
    wrong = "ABCD"[options.index("Neon")]
    completions = [rf"\boxed{{{gold}}}", f"The answer is ({gold}) Xenon.", rf"\boxed{{{wrong}}}", r"\boxed{Xenon}"]
    assert accuracies(loaded, completions) == (1, 1, 0, 0)


def test_gpqa_options_have_the_same_letters_beside_any_other_questions_and_all_letters_occur(tmp_path: Path) -> None:
    many = loaded_from(tmp_path, "gpqa_diamond", *(gpqa_row(number) for number in range(200))).questions
    one = loaded_from(tmp_path, "gpqa_diamond", gpqa_row(7)).questions[0]
    assert one == many[7]
    shares = {letter: sum(question.answer == letter for question in many) for letter in "ABCD"}
    assert min(shares.values()) >= 30, shares


def test_gpqa_rows_without_ids_are_shuffled_by_their_text(tmp_path: Path) -> None:
    rows = [{name: value for name, value in gpqa_row(number).items() if name != "Record ID"} for number in (1, 2)]
    first, second = (loaded_from(tmp_path, "gpqa_diamond", *order).questions for order in (rows, rows[::-1]))
    assert {question.text: question.answer for question in first} == {
        question.text: question.answer for question in second}


def mmlu_row(**other: Any) -> dict[str, Any]:
    return {
        "question_id": 70, "question": "What is 2 + 2?", "options": [str(i) for i in range(10)], "answer": "E",
        "answer_index": 4, "cot_content": "", "category": "math", "src": "x", **other}


def test_mmlu_pro_rows_keep_the_order_of_their_options(tmp_path: Path) -> None:
    loaded = loaded_from(tmp_path, "mmlu_pro", mmlu_row())
    question = loaded.questions[0]
    assert (question.id, question.answer, question.columns["category"]) == ("70", "E", "math")
    assert question.text.splitlines() == [
        "What is 2 + 2?", "", *(f"({letter}) {i}" for i, letter in enumerate("ABCDEFGHIJ"))]
    assert accuracies(loaded, [r"\boxed{E}", r"\boxed{(E) 4}", "The answer is (E).", r"\boxed{4}", r"\boxed{D}"]) == (
        1, 1, 1, 0, 0)


def test_mmlu_pro_rows_may_have_fewer_options_and_only_letter_or_number(tmp_path: Path) -> None:
    rows = [mmlu_row(question_id=1, options=["3", "4", "N/A", "N/A"], answer="B", answer_index=1),
            mmlu_row(question_id=2, question="And 1?", options=["1", "N/A"], answer="B", answer_index=1),
            mmlu_row(question_id=3, question="And 3?", options=["3", "4"], answer_index=None, answer="A"),
            {"question_id": 4, "question": "And 4?", "options": ["3", "4"], "answer_index": 1}]
    questions = loaded_from(tmp_path, "mmlu_pro", *rows).questions
    assert [question.answer for question in questions] == ["B", "B", "A", "B"]
    assert [question.columns["options"] for question in questions] == [["3", "4"], ["1", "N/A"], ["3", "4"], ["3", "4"]]


def test_questions_with_the_same_text_and_other_options_are_different(tmp_path: Path) -> None:
    rows = [
        mmlu_row(question_id=1, question="Which?"),
        mmlu_row(question_id=2, question="Which?", options=list("abcdefghij")),
        mmlu_row(question_id=3, question="Which?")]
    loaded = loaded_from(tmp_path, "mmlu_pro", *rows)
    assert ([question.id for question in loaded.questions], loaded.num_rows, loaded.num_duplicates) == (
        ["1", "2"], 3, 1)


@pytest.mark.parametrize("name", ["gpqa_diamond", "mmlu_pro"])
def test_local_multiple_choice_may_list_its_options_in_the_question(tmp_path: Path, name: str) -> None:
    loaded = loaded_from(tmp_path, name, {"id": "q", "question": "Which?\n(A) 1\n(B) 2", "answer": "(B)"})
    assert (loaded.questions[0].text, loaded.questions[0].answer) == ("Which?\n(A) 1\n(B) 2", "B")
    assert accuracies(loaded, [r"\boxed{B}", r"\boxed{A}"]) == (1, 0)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("math500", {"question": "Q"}, "field 'answer': saw None; expected a gold answer"),
        ("math500", {"question": "Q", "answer": "  "}, "field 'answer'"),
        ("math500", {"answer": "4"}, "field 'problem': saw None; expected the question as text; the row has: answer"),
        ("math500", {"problem": 3, "answer": "4"}, "field 'problem': saw 3"),
        ("gsm8k", {"question": "Q", "answer": "It is 4.\n#### "}, "nothing stands behind its ####"),
        ("gsm8k", {"question": "Q", "answer": None}, "expected a gold answer"),
        (
            "math", {"problem": "Q", "solution": "So it is 4."},
            r"it ends 'So it is 4.'; expected a gold answer in \boxed{}",
        ),
        ("math", {"problem": "Q", "solution": r"So \boxed{4"}, r"expected a gold answer in \boxed{}"),
        ("math", {"problem": "Q"}, "neither 'answer' nor 'solution' has a gold answer; the row has: problem"),
        ("olympiadbench", {"question": "Q", "final_answer": []}, "saw []; expected a list of answers"),
        ("olympiadbench", {"question": "Q", "final_answer": ["4", 5]}, "saw ['4', 5]"),
        ("olympiadbench", {"question": "Q", "final_answer": None}, "field 'final_answer': saw None"),
        (
            "gpqa_diamond", {**gpqa_row(), "Incorrect Answer 2": None},
            "field 'Incorrect Answer 2': saw None; expected the text of an option",
        ),
        ("gpqa_diamond", gpqa_row(Question=""), "field 'Question'"),
        ("gpqa_diamond", {"question": "Q", "answer": "Xenon"}, "saw 'Xenon'; expected the letter of an option"),
        (
            "mmlu_pro", mmlu_row(answer_index=10, answer=None),
            "field 'answer_index': saw 10; expected the number of the right option, 0 to 9",
        ),
        ("mmlu_pro", mmlu_row(answer_index=True), "saw True"),
        ("mmlu_pro", mmlu_row(answer="D"), "saw 'D', and answer_index 4 is E"),
        ("mmlu_pro", mmlu_row(answer="", answer_index=None), "field 'answer_index': saw None"),
        ("mmlu_pro", mmlu_row(options=["one"]), "field 'options'"),
        ("mmlu_pro", mmlu_row(options="AB"), "field 'options': saw 'AB'"),
        ("mmlu_pro", mmlu_row(options=[str(i) for i in range(11)]), "expected a list of 2 to 10 texts"),
    ],
)
def test_a_row_that_cannot_be_graded_is_named_with_file_and_line(
    tmp_path: Path, name: str, row: dict[str, Any], message: str
) -> None:
    good: dict[str, dict[str, Any]] = {
        "gpqa_diamond": gpqa_row(), "mmlu_pro": mmlu_row(question_id=1, question="First?")}
    text = refusal(tmp_path, name, good.get(name, {"question": "First?", "answer": "1", "final_answer": ["1"]}), row)
    assert message in text
    assert f"{name}: {tmp_path / BY_NAME[name].files[0]}:2: " in text
    assert text.endswith(("Remedy: fill it in, or remove the row", "Remedy: correct one"))


@needs_data
@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime24", "aime25", "amc23", "amc22_23"])
def test_the_shared_files_hold_the_whole_benchmark(name: str) -> None:
    loaded = load_benchmark(BY_NAME[name], Path(os.environ["OTHERHALF_DATA"]))
    assert (len(loaded.questions), loaded.num_duplicates, loaded.warnings) == (BY_NAME[name].num_questions, 0, ())
    assert all(question.answer for question in loaded.questions)
    assert loaded.source.endswith(BY_NAME[name].files[0])
    assert not any("solution" in question.columns for question in loaded.questions)


@needs_data
def test_a_limit_takes_the_first_questions_and_warns_of_nothing() -> None:
    folder = Path(os.environ["OTHERHALF_DATA"])
    some, all_of_them = load_benchmark(BY_NAME["aime24"], folder, 7), load_benchmark(BY_NAME["aime24"], folder)
    assert some.questions == all_of_them.questions[:7] and some.warnings == () and some.digest != all_of_them.digest


def test_the_tiny_models_sums_need_no_folder_and_no_hub(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        loaded = load_benchmark(find_benchmark("tiny_arith"), folder)
        assert (len(loaded.questions), loaded.warnings) == (512, ())
        assert (loaded.questions[0].text, loaded.questions[0].answer) == ("24-26=?", "-2")


def test_the_digest_tells_questions_apart_and_not_places(tmp_path: Path) -> None:
    row = {"id": "1", "question": "1+1=?", "answer": "2"}
    first = loaded_from(tmp_path, "aime24", row)
    elsewhere = load_benchmark(find_benchmark(str(write(tmp_path / "mine.jsonl", row))))
    other = loaded_from(tmp_path, "aime24", {**row, "answer": "3"})
    assert first.digest == elsewhere.digest != other.digest


def test_a_copy_of_another_size_and_repeated_questions_are_told(tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "question": f"What is {min(i, 2)}?", "answer": str(i)} for i in range(4)]
    loaded = loaded_from(tmp_path, "aime24", *rows)
    assert (len(loaded.questions), loaded.num_rows, loaded.num_duplicates, loaded.num_contradicting) == (3, 4, 1, 1)
    assert len(loaded.warnings) == 2
    assert (
        "has 4 rows; AIME 2024, I and II has 30" in loaded.warnings[0]
        and "1 of 4 rows repeat an earlier question" in loaded.warnings[1])


def test_later_names_of_a_file_are_tried(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", {"question": "1+1=?", "answer": "2"})
    assert load_benchmark(BY_NAME["gsm8k"], tmp_path).source == str(tmp_path / "gsm8k.jsonl")


def test_a_missing_folder_and_a_file_in_its_place_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        BenchmarkError, match=r"--data-dir: .*nowhere does not exist; expected a folder with math500.jsonl \(math"
    ):
        load_benchmark(BY_NAME["math500"], tmp_path / "nowhere")
    with pytest.raises(BenchmarkError, match=r"--data-dir: .*file.jsonl is a file; expected a folder"):
        load_benchmark(BY_NAME["math500"], write(tmp_path / "file.jsonl", {}))


def test_a_folder_without_the_file_tells_what_was_looked_for_and_what_is_near(tmp_path: Path) -> None:
    with pytest.raises(
        BenchmarkError,
        match=r"no file for amc23; looked for amc23_40.jsonl, amc23.jsonl; it has: no such files. Remedy",
    ):
        load_benchmark(BY_NAME["amc23"], tmp_path)
    for name in ("amc23_test.jsonl", "notes.txt", "unlike.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(
        BenchmarkError, match=r"near ones there: amc23_test.jsonl. Remedy: put the benchmark there under one of"
    ):
        load_benchmark(BY_NAME["amc23"], tmp_path)


def test_two_rows_with_one_id_are_refused_without_speaking_of_a_configuration(tmp_path: Path) -> None:
    text = refusal(
        tmp_path, "aime24", {"id": "a", "question": "1?", "answer": "1"}, {"id": "a", "question": "2?", "answer": "2"})
    assert "aime24.jsonl:2: field 'id': the id 'a' is also that of" in text and text.endswith("Rename one")


def test_broken_files_are_refused_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "aime24.jsonl").write_text('{"question": "1?", "answer": "1"}\n{"question": \n')
    with pytest.raises(BenchmarkError, match=r"aime24: .*aime24.jsonl:2: malformed JSON"):
        load_benchmark(BY_NAME["aime24"], tmp_path)
    (tmp_path / "aime24.jsonl").write_text("")
    with pytest.raises(BenchmarkError, match="has no questions"):
        load_benchmark(BY_NAME["aime24"], tmp_path)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(BenchmarkError, match=f"--limit: saw {limit}; expected a number of questions >= 1"):
        load_benchmark(BY_NAME["tiny_arith"], limit=limit)


def test_any_file_with_question_and_answer_is_a_benchmark(tmp_path: Path) -> None:
    rows = {"question": "1+1=?", "answer": 2, "topic": "sums"}, {"problem": "2+2=?", "answer": "4", "id": "x"}
    path = write(tmp_path / "mine.jsonl", *rows)
    loaded = load_benchmark(find_benchmark(str(path)))
    assert loaded.benchmark.name == "mine" and loaded.source == str(path) and loaded.warnings == ()
    assert [(question.id, question.text, question.answer) for question in loaded.questions] == [
        ("line-1", "1+1=?", "2"), ("x", "2+2=?", "4")]
    assert loaded.questions[0].columns["topic"] == "sums", "somebody's own grader may want it"
    assert accuracies(loaded, [r"\boxed{2}", r"\boxed{3}"]) == (1, 0)


def test_parquet_files_are_read(tmp_path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    path = tmp_path / "gpqa_diamond.parquet"
    pq.write_table(pa.Table.from_pylist([gpqa_row()]), path)
    loaded = load_benchmark(BY_NAME["gpqa_diamond"], tmp_path)
    assert loaded.source == str(path) and loaded.questions[0].id == "rec0"


def test_a_file_of_ones_own_may_lie_in_the_data_folder(tmp_path: Path) -> None:
    write(tmp_path / "only_here.jsonl", {"question": "1+1=?", "answer": "2"})
    assert load_benchmark(find_benchmark("only_here.jsonl"), tmp_path).source == str(tmp_path / "only_here.jsonl")


def test_a_file_that_does_not_exist_or_has_no_answers_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.jsonl", {"question": "1+1=?"})
    with pytest.raises(
        BenchmarkError, match=r"questions: .*questions.jsonl:1: field 'answer': saw None; .*the row has: question"
    ):
        load_benchmark(find_benchmark(str(path)))
    with pytest.raises(
        BenchmarkError, match=r"no such file; did you mean .*questions.jsonl\? \(--benchmarks; a relative path"
    ):
        load_benchmark(find_benchmark(str(tmp_path / "question.jsonl")))


@pytest.mark.slow
def test_a_reasoning_gym_task_is_a_benchmark_with_its_own_scorer() -> None:
    pytest.importorskip("reasoning_gym")
    benchmark = find_benchmark("reasoning_gym:chain_sum")
    loaded = load_benchmark(benchmark, limit=5)
    assert benchmark.name == "reasoning_gym:chain_sum" and len(loaded.questions) == 5 and loaded.warnings == ()
    assert all(
        question.id.startswith("chain_sum-1000000000-") for question in loaded.questions
    ), "the seed of held-out questions"
    assert accuracies(loaded, [rf"\boxed{{{loaded.questions[0].answer}}}", r"\boxed{x}"]) == (1, 0)
    with pytest.raises(
        BenchmarkError, match=r"--benchmarks: reasoning-gym has no task 'chain_sm'; did you mean 'chain_sum'"
    ):
        load_benchmark(find_benchmark("reasoning_gym:chain_sm"))


@pytest.mark.parametrize("benchmark", FROM_HUB, ids=lambda benchmark: benchmark.name)
def test_without_network_the_message_names_the_folder_that_helps(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        BenchmarkError, match=f"{benchmark.name}: {benchmark.hub}: cannot be loaded as a Hugging Face data set"
    ) as caught:
        load_benchmark(benchmark)
    assert f"Remedy: --data-dir FOLDER with a file {benchmark.files[0]} in it" in str(caught.value)
    assert ("accepted its terms" in str(caught.value)) == benchmark.is_gated
    assert "benchmarks.path" not in str(caught.value) and "data.path" not in str(caught.value)


def test_a_data_set_is_read_with_its_subset_and_split(tmp_path: Path) -> None:
    """A folder laid out like the data set on the hub, which a test cannot reach."""
    write(tmp_path / "diamond.jsonl", gpqa_row(0), gpqa_row(1))
    write(tmp_path / "main.jsonl", gpqa_row(2))
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- {config_name: gpqa_main, data_files: main.jsonl}\n"
        "- {config_name: gpqa_diamond, data_files: diamond.jsonl}\n---\n")
    loaded = load_benchmark(replace(BY_NAME["gpqa_diamond"], hub=str(tmp_path)))
    assert [question.id for question in loaded.questions] == ["rec0", "rec1"]
    assert loaded.source == f"{tmp_path}@{BY_NAME['gpqa_diamond'].revision}" and "has 2 rows" in loaded.warnings[0]


def test_a_file_of_the_data_folder_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "my_sums.jsonl").write_text('{"question": "1+1=?", "answer": "2"}\n')
    found = find_benchmark("my_sums", tmp_path)
    assert found.name == "my_sums" and load_benchmark(found, tmp_path).questions[0].answer == "2"
    with pytest.raises(BenchmarkError, match="there is no benchmark 'my_sums'"):
        find_benchmark("my_sums")
