"""rl/questions/files.py and rl/questions/order.py: what rows become, what is refused and how, and the order of
questions."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config import ColumnsSection, DataSection, HeldOutSection
from rl.errors import DataError
from rl.questions.files import ANSWER_COLUMNS, LoadedQuestions, QuestionCounts, RowAdapter, RowError, load_questions
from rl.questions.inputs import load_held_out_questions
from rl.questions.order import OrderState, QuestionOrder


def write(folder: Path, *rows: object, name: str = "questions.jsonl") -> str:
    """A JSONL file; rows that are text are written as they are."""
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def load(path: str, *, adapter: RowAdapter | None = None, **settings: Any) -> LoadedQuestions:
    """settings: of the section `data`."""
    return load_questions(DataSection(path=path, **settings), adapter=adapter)


def refusal(path: str, **arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **arguments)
    return str(caught.value)


def test_an_adapter_sees_every_row_first_and_its_refusal_has_file_and_line(tmp_path: Path) -> None:
    def adapter(row: Mapping[str, Any]) -> dict[str, Any]:
        if row["right"] not in row["options"]:
            raise RowError(f"saw {row['right']!r}; expected one of {row['options']}")
        return {"question": f"{row['asked']} {row['options']}", "answer": row["right"]}

    rows = [{"asked": "Which?", "options": options, "right": 2} for options in ([1, 2], [2, 3], [1, 2])]
    loaded = load(write(tmp_path, *rows), adapter=adapter)
    assert [question.text for question in loaded.questions] == [
        "Which? [1, 2]", "Which? [2, 3]",
    ], "duplicates are of adapted rows"
    path = write(tmp_path, rows[0], {**rows[1], "right": 9})
    assert refusal(path, adapter=adapter) == f"{path}:2: saw 9; expected one of [2, 3]"


def test_columns_are_mapped_and_the_others_are_passed_on(tmp_path: Path) -> None:
    path = write(tmp_path, {"uid": 7, "problem": "1+1=?", "gold": "2", "level": 3, "tags": ["a", {"b": None}]})
    columns = ColumnsSection(question="problem", answer="gold", id="uid")
    (question,) = load(path, columns=columns).questions
    assert (question.id, question.text, question.answer) == ("7", "1+1=?", "2")
    assert question.columns == {"level": 3, "tags": ["a", {"b": None}]}


@pytest.mark.parametrize(("value", "answer"), [
    (72, "72"), (7.5, "7.5"), (-3, "-3"), (10**30, "1" + "0" * 30), ("072", "072"), (True, "true"),
    (None, None), ("", None), (" ", None)])
def test_answers_become_text_and_empty_ones_none(tmp_path: Path, value: object, answer: str | None) -> None:
    (question,) = load(write(tmp_path, {"question": "q", "answer": value})).questions
    assert question.answer == answer


def test_without_an_answer_column_no_name_of_answers_reaches_rewards(tmp_path: Path) -> None:
    row = {"question": "q", "level": 1, **dict.fromkeys(ANSWER_COLUMNS, "SECRET")}
    (question,) = load(write(tmp_path, row), columns=ColumnsSection(answer=None)).questions
    assert question.answer is None and question.columns == {"level": 1}
    assert "SECRET" not in repr(question)


def test_with_an_answer_column_a_solution_is_passed_on(tmp_path: Path) -> None:
    (question,) = load(write(tmp_path, {"question": "q", "answer": "2", "solution": "1+1"})).questions
    assert question.columns == {"solution": "1+1"}


def test_rows_without_answers_are_fine_and_counted(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, {"question": "a"}, {"question": "b", "answer": "1"}))
    assert [question.answer for question in loaded.questions] == [None, "1"]
    assert loaded.counts == QuestionCounts(num_rows=2, num_duplicates=0, num_contradicting=0, num_with_answer=1)


def test_columns_that_rewards_use_for_something_else_are_not_passed_on(tmp_path: Path) -> None:
    row = {
        "problem": "q", "gold": "2", "question": "x", "answer": "y", "completions": ["z"], "rollouts": 1, "source": "s"}
    (question,) = load(write(tmp_path, row), columns=ColumnsSection(question="problem", answer="gold")).questions
    assert question.columns == {"source": "s"}


def test_rows_without_an_id_are_named_by_their_line(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, {"question": "a"}, {"question": "b", "id": "x"}, {"question": "c", "id": None}))
    assert [question.id for question in loaded.questions] == ["line-1", "x", "line-3"]


def test_repeated_questions_are_dropped_and_counted_with_their_contradictions(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"question": "a", "answer": 1}, {"question": "b"},
                                     {"question": "a", "answer": 1}, {"question": "a", "answer": 2}]
    loaded = load(write(tmp_path, *rows))
    assert [(question.text, question.answer) for question in loaded.questions] == [("a", "1"), ("b", None)]
    assert loaded.counts == QuestionCounts(num_rows=4, num_duplicates=2, num_contradicting=1, num_with_answer=1)


def test_the_limit_counts_different_questions_and_reads_no_further(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "a"}, {"question": "a"}, {"question": "b"}, "not read")
    loaded = load(path, limit=2)
    assert [question.text for question in loaded.questions] == ["a", "b"] and loaded.counts.num_rows == 3


def test_a_byte_order_mark_windows_line_ends_and_empty_lines_at_the_end_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a\xc3\xa9"}\r\n{"question": "b"}\r\n\r\n  \n')
    assert [question.text for question in load(str(path)).questions] == ["aé", "b"]


def test_a_relative_path_is_found_in_the_project_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load("models/tiny-arith/questions/train.jsonl", columns=ColumnsSection(answer=None), limit=3)
    assert len(loaded.questions) == 3 and loaded.counts.num_with_answer == 0


ROWS = [{"question": "a", "answer": 1, "level": 1}, {"question": "b", "answer": 2, "level": None}]


def test_a_parquet_file_gives_the_same_questions_as_its_jsonl(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "questions.parquet")
    assert load(str(tmp_path / "questions.parquet")) == load(write(tmp_path, *ROWS))


def test_a_saved_data_set_gives_the_same_questions_with_and_without_splits(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": dataset, "test": dataset.select([1])}).save_to_disk(tmp_path / "splits")
    expected = load(write(tmp_path, *ROWS))
    assert load(str(tmp_path / "plain")) == expected
    assert load(str(tmp_path / "splits")) == expected
    assert [question.text for question in load(str(tmp_path / "splits"), split="test").questions] == ["b"]
    message = "no split 'tset'; it has: train, test. Set {}.split=test"
    assert message.format("data") in refusal(str(tmp_path / "splits"), split="tset")
    with pytest.raises(DataError, match=message.format("evaluation")):
        load_held_out_questions(HeldOutSection(path=str(tmp_path / "splits"), split="tset"), ())


def test_a_folder_of_data_files_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, *ROWS, name="train.jsonl")
    assert [question.answer for question in load(str(folder)).questions] == ["1", "2"]
    assert "Remedy: check data.path, data.split" in refusal(str(folder), split="validation")


def test_dates_and_decimals_become_text_and_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "questions.parquet"
    row = {"question": "a", "answer": decimal.Decimal("1.50"), "day": datetime.date(2024, 1, 2)}
    pq.write_table(pa.Table.from_pylist([row]), path)
    (question,) = load(str(path)).questions
    assert question.answer == "1.50" and question.columns == {"day": "2024-01-02"}
    pq.write_table(pa.Table.from_pylist([{"question": "a", "picture": b"\x00"}]), path)
    assert "row 1: field 'picture': saw a value of type bytes" in refusal(str(path))


def test_a_data_set_that_cannot_be_had_offline_says_what_to_do() -> None:
    message = refusal("nobody/no-such-data-set")
    assert "nobody/no-such-data-set: cannot be loaded as a Hugging Face data set" in message
    assert "JSONL or parquet file" in message


def test_a_missing_file_names_the_closest_one(tmp_path: Path) -> None:
    there = write(tmp_path, {"question": "a"})
    assert f"no such file; did you mean {there}?" in refusal(str(tmp_path / "qestions.jsonl"))
    assert "does not exist either" in refusal(str(tmp_path / "nowhere" / "questions.jsonl"))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert "has no questions" in refusal(write(tmp_path, content))


@pytest.mark.parametrize(("second_row", "message"), [
    ('{"question": "b"', "malformed JSON at column"),
    ('{"question": 1' + "0" * 5000 + "}", "malformed JSON"),
    ("[" * 100_000, "malformed JSON"),
    ('["b"]', "expected a JSON object"),
    ("3", "expected a JSON object"),
    ("{}", "no 'question' field; the row has: none"),
    ({"qestion": "b", "level": 1}, "no 'question' field; the row has: qestion, level. "
                                   "Name the question's column with data.columns.question=qestion"),
    ({"question": " \n"}, "field 'question': the question is empty"),
    ({"question": 3}, "field 'question': saw 3; expected the question as text"),
    ({"question": None}, "field 'question': saw None"),
    ({"question": "b", "answer": ["1"]}, "field 'answer': saw ['1']; expected one answer as text or a number"),
    ({"question": "b", "id": [1]}, "field 'id': saw [1]; expected text or a whole number"),
    ({"question": "b", "id": "x"}, "field 'id': the id 'x' is also that of"),
    ('{"question": "b \\ud800"}', "field 'question': the character '\\ud800' is half of a pair"),
])
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, second_row: object, message: str) -> None:
    path = write(tmp_path, {"question": "a", "id": "x"}, second_row, {"question": "c"})
    found = refusal(path)
    assert found.startswith(f"{path}:2: ") and message in found and len(found) < 600


def test_an_empty_line_between_rows_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"question": "a"}, "", {"question": "b"})
    assert refusal(path).startswith(f"{path}:2: an empty line between rows")


def test_bytes_that_are_not_utf8_are_named_by_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"question": "a"}\n{"question": "\xe9"}\n')
    assert refusal(str(path)).startswith(f"{path}:2: not UTF-8 (byte 0xe9 at column 15)")


def test_other_endings_and_broken_parquet_are_refused(tmp_path: Path) -> None:
    assert "saw the ending '.csv'; expected one of .jsonl" in refusal(write(tmp_path, "question", name="questions.csv"))
    assert "not a readable parquet file" in refusal(write(tmp_path, "question", name="questions.parquet"))


def take(order: QuestionOrder, sizes: list[int]) -> list[list[int]]:
    return [order.next(size) for size in sizes]


@settings(max_examples=100, deadline=None)
@given(
    num_questions=st.integers(1, 12), sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20), shuffle=st.booleans()
)
def test_each_epoch_holds_every_index_once_and_no_call_repeats_one(
    num_questions: int, sizes: list[int], shuffle: bool
) -> None:
    order = QuestionOrder(num_questions, seed=3, shuffle=shuffle)
    calls = take(order, [min(size, num_questions) for size in sizes])
    assert all(len(set(call)) == len(call) for call in calls)
    stream = [index for call in calls for index in call]
    for start in range(0, len(stream) - num_questions + 1, num_questions):
        assert sorted(stream[start : start + num_questions]) == list(range(num_questions))


@settings(max_examples=100, deadline=None)
@given(num_questions=st.integers(1, 12), sizes=st.lists(st.integers(1, 15), min_size=2, max_size=20), data=st.data())
def test_a_resumed_order_equals_the_uninterrupted_one(
    num_questions: int, sizes: list[int], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(sizes)))
    uninterrupted = take(QuestionOrder(num_questions, 1, True), sizes)
    first = QuestionOrder(num_questions, 1, True)
    before = take(first, sizes[:cut])
    second = QuestionOrder(num_questions, 1, True)
    second.load_state(OrderState.from_json(json.loads(json.dumps(first.state().to_json()))))
    assert before + take(second, sizes[cut:]) == uninterrupted
    assert first.state().to_json()["num_questions"] == num_questions


def test_orders_differ_by_epoch_and_seed_and_are_the_rows_order_without_shuffling() -> None:
    order, other = QuestionOrder(100, 0, True), QuestionOrder(100, 1, True)
    first, second = order.next(100), order.next(100)
    assert first != second and first != other.next(100) and first != list(range(100))
    assert QuestionOrder(3, 0, False).next(8) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_the_state_does_not_grow_with_the_number_of_questions() -> None:
    order = QuestionOrder(10_000, 0, True)
    order.next(9_990)
    order.next(64)
    assert order.epoch == 1 and len(json.dumps(order.state().to_json())) < 400


@pytest.mark.parametrize("other", [QuestionOrder(9, 0, True), QuestionOrder(10, 1, True), QuestionOrder(10, 0, False)])
def test_the_state_of_another_order_is_refused(other: QuestionOrder) -> None:
    with pytest.raises(ValueError, match=r"the checkpoint's data order has (num_questions|seed|shuffle)"):
        QuestionOrder(10, 0, True).load_state(other.state())


def test_no_questions_and_no_demand_are_refused() -> None:
    with pytest.raises(ValueError, match="saw 0 questions"):
        QuestionOrder(0, 0, True)
    with pytest.raises(ValueError, match="saw n = 0"):
        QuestionOrder(3, 0, True).next(0)


def test_a_folder_with_a_malformed_file_is_an_error_that_names_the_folder_and_the_cause(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"question": "1+1=?"}\n{"question": "x"\n')
    with pytest.raises(DataError, match=r"cannot be loaded as a Hugging Face data set.*(?i:json|parse)"):
        load(str(tmp_path))
