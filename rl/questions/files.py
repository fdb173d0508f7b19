"""Turns a file of questions (JSONL, parquet), a Hugging Face dataset or a reasoning-gym task into Questions.

A new file format is one more function from a path to an iterator of Rows, and one more line in `read_rows`. The order
in which questions are sampled is in rl/questions/order.py, their prompts in rl/questions/prompting.py.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rewards.errors import UserError, named
from rl.config import ColumnsSection, DataSection
from rl.configuration.problems import closest
from rl.errors import DataError
from rl.paths import resolve_path, similar_path
from rl.questions.generated import is_generated, task_rows
from rl.records import Json, Question

FILE_SUFFIXES = (".jsonl", ".ndjson", ".parquet")

# Names under which data sets keep gold answers. With columns.answer = null none of them leaves this file, so that no
# reward and no template of a run without labels can see one. A reasoning-gym reference leads to the answer.
ANSWER_COLUMNS = frozenset(
    {
        "answer", "answers", "final_answer", "gold", "gold_answer", "ground_truth", "reference_answer", "solution",
        "solutions", "reasoning_gym"})

# Arguments that rewards receive from elsewhere: a column of such a name would collide with them.
RESERVED_COLUMNS = frozenset({"question", "answer", "prompts", "completions", "completion_ids", "rollouts"})

RowAdapter = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class RowError(UserError):
    """A RowAdapter cannot use a row. where: the field; load_questions puts file and line before it."""


@dataclass(frozen=True, slots=True)
class QuestionCounts:
    """num_rows: rows read (no more than `limit` asks for). num_duplicates: rows dropped because an earlier one has the
    same question text; num_contradicting: those among them whose answer differs from the kept one's. num_with_answer:
    kept questions that have an answer. num_excluded: rows dropped because they are among `exclude`."""

    num_rows: int
    num_duplicates: int
    num_contradicting: int
    num_with_answer: int
    num_excluded: int = 0


@dataclass(frozen=True, slots=True)
class LoadedQuestions:
    questions: tuple[Question, ...]
    counts: QuestionCounts


@dataclass(frozen=True, slots=True)
class Row:
    """where: "file:line" or "file: row N", for messages. number: the line, from 1."""

    where: str
    number: int
    values: Mapping[str, Any]


def load_questions(
    data: DataSection, *, exclude: Collection[str] = (), adapter: RowAdapter | None = None
) -> LoadedQuestions:
    """The questions of a JSONL or parquet file, a data-set folder, a Hugging Face data set or a task, in the order of
    the rows.

    exclude: texts of questions to leave out. adapter: makes of each row, as it was read, the one that is used; what it
    raises as RowError is reported with the row's place. Rows with the same question text are dropped but for the first.
    Answers that are numbers become text (72 -> "72"); an empty one is none. Column names that rewards use for something
    else (question, answer, completions, ...) are not passed on; with data.columns.answer = None neither are
    ANSWER_COLUMNS.
    Raises: DataError, which names settings data.path, data.columns.id, ...; for questions of another section the caller
    renames them."""
    kept: dict[str, Question] = {}
    places: dict[str, str] = {}
    num_rows = num_duplicates = num_contradicting = num_excluded = 0
    for row in read_rows(data):
        num_rows += 1
        question = _question(row if adapter is None else _adapted(row, adapter), data.columns)
        if question.text in exclude:
            num_excluded += 1
        elif (earlier := kept.get(question.text)) is not None:
            num_duplicates += 1
            num_contradicting += earlier.answer != question.answer
        elif question.id in places:
            other = "" if adapter is not None else f", or name another column with {named('data.columns.id')}"
            raise DataError(
                f"field {data.columns.id!r}: the id {question.id!r} is also that of {places[question.id]}; ids must "
                f"differ, since they enter the sampling seeds. Rename one{other}", where=row.where)
        else:
            kept[question.text], places[question.id] = question, row.where
        if len(kept) == data.limit:
            break
    if not kept:
        raise _no_questions(data, num_excluded)
    questions = tuple(kept.values())
    num_with_answer = sum(question.answer is not None for question in questions)
    return LoadedQuestions(
        questions, QuestionCounts(num_rows, num_duplicates, num_contradicting, num_with_answer, num_excluded))


def _no_questions(data: DataSection, num_excluded: int) -> DataError:
    if not num_excluded:
        return DataError(
            "has no questions", where=data.path, expected=f"at least one row with a {data.columns.question!r} field")
    return DataError(
        f"all of its {num_excluded} questions are training questions too; give {named('data.task')} other parameters "
        "or another seed, or train on fewer", where=data.path)


def read_rows(data: DataSection) -> Iterator[Row]:
    """The rows of a file, a data set or a task, each with its place; of a task no more than data.limit, if that is set.
    Raises: DataError."""
    path = data.path
    if is_generated(path):
        return _generated_rows(data)
    if data.task:
        raise DataError(
            f"saw {dict(data.task)!r}, and {named('data.path')} is {path}; only reasoning_gym:TASK has task "
            "parameters. Remove the key", where=named("data.task"))
    local = resolve_path(path)
    suffix = local.suffix.lower()
    if local.is_dir():
        return _dataset_folder_rows(local, data)
    if suffix == ".parquet" and local.is_file():
        return _parquet_rows(local)
    if local.is_file():
        if suffix in FILE_SUFFIXES:
            return _jsonl_rows(local)
        raise DataError(
            where=str(local), seen=f"the ending {suffix!r}",
            expected=f"one of {', '.join(FILE_SUFFIXES)} ({named('data.path')})")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if looks_local or suffix in (*FILE_SUFFIXES, ".json", ".csv", ".tsv", ".txt"):
        raise DataError(
            f"no such file{_similar_file(local)} ({named('data.path')}; a relative path starts from the working "
            "directory or the project's folder)", where=path)
    return _hub_rows(path, data, data.revision)


def _similar_file(path: Path) -> str:
    if not resolve_path(path.parent).is_dir():
        return f"; the folder {path.parent} does not exist either"
    return similar_path(path, lambda entry: entry.suffix in FILE_SUFFIXES or entry.is_dir())


def _generated_rows(data: DataSection) -> Iterator[Row]:
    for number, values in enumerate(task_rows(data.path, data.task, data.limit), start=1):
        yield Row(f"{data.path}: question {number}", number, values)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    blank_line = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                text = raw.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1}); save the file as UTF-8",
                    where=where) from None
            if not text:
                blank_line = blank_line or number
                continue
            if blank_line:
                raise DataError(
                    "an empty line between rows", where=f"{path}:{blank_line}", expected="one JSON object a line",
                    remedy="remove it")
            yield Row(where, number, _json_object(text, where))


def _json_object(text: str, where: str) -> dict[str, Json]:
    seen = repr(text if len(text) <= 80 else text[:77] + "...")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"malformed JSON at column {error.colno} ({error.msg})", where=where, seen=seen,
            expected='one JSON object a line, such as {"question": "1+1=?"}') from None
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits and nesting of thousands of levels end here.
        raise DataError(f"malformed JSON ({error})", where=where, seen=seen) from None
    if not isinstance(values, dict):
        raise DataError(where=where, seen=seen, expected='a JSON object, such as {"question": "1+1=?"}')
    return values


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not a readable parquet file: {error}", where=str(path)) from None


def _dataset_folder_rows(folder: Path, data: DataSection) -> Iterator[Row]:
    import datasets

    if not (folder / "dataset_info.json").exists() and not (folder / "dataset_dict.json").exists():
        return _hub_rows(str(folder), data, revision=None)
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"not a readable data set: {error}", where=str(folder)) from None
    if isinstance(dataset, datasets.DatasetDict):
        if data.split not in dataset:
            near = closest(data.split, list(dataset)) or "NAME"
            raise DataError(
                f"no split {data.split!r}; it has: {', '.join(dataset)}. Set {named('data.split', near)}",
                where=str(folder))
        dataset = dataset[data.split]
    return _dataset_rows(str(folder), dataset)


def _hub_rows(path: str, data: DataSection, revision: str | None) -> Iterator[Row]:
    """path: a hub id, or a local folder of data files."""
    import datasets

    try:
        dataset = datasets.load_dataset(path, data.subset, split=data.split, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        # datasets raises one of these for a missing data set, a missing split or subset, for a hub that cannot be
        # reached, and for a file that it cannot parse, where only the cause names the place.
        reason = str(error.__cause__ or error).strip().splitlines()
        raise DataError(
            f"cannot be loaded as a Hugging Face data set (split {data.split!r}, subset {data.subset!r}): "
            f"{type(error).__name__}: {reason[0] if reason else ''}", where=path,
            remedy=f"check {named('data.path')}, {named('data.split')} and {named('data.subset')}; without network, "
            "download it beforehand or give a JSONL or parquet file") from None
    return _dataset_rows(path, dataset)


def _dataset_rows(name: str, dataset: Any) -> Iterator[Row]:
    for number, values in enumerate(dataset, start=1):
        yield Row(f"{name}: row {number}", number, values)


def _adapted(row: Row, adapter: RowAdapter) -> Row:
    try:
        return Row(row.where, row.number, adapter(row.values))
    except RowError as error:
        (problem,) = error.problems
        raise DataError(replace(problem, where=": ".join(filter(None, (row.where, problem.where))))) from None


def _question(row: Row, columns: ColumnsSection) -> Question:
    values = row.values
    if columns.question not in values:
        near = closest(columns.question, list(values)) or "NAME"
        raise DataError(
            f"no {columns.question!r} field; the row has: {', '.join(values) or 'none'}. Name the question's column "
            f"with {named('data.columns.question', near)}", where=row.where)
    text = values[columns.question]
    if not isinstance(text, str):
        raise bad_field(row, columns.question, text, "the question as text")
    if not text.strip():
        raise DataError(
            f"field {columns.question!r}: the question is empty; fill it in or remove the row", where=row.where)
    check_unicode(text, row, columns.question)
    left_out = (
        {columns.question, columns.id} | RESERVED_COLUMNS | ({columns.answer} if columns.answer else ANSWER_COLUMNS))
    others = {name: as_json(value, row, name) for name, value in values.items() if name not in left_out}
    return Question(_id(row, columns.id), text, _answer(row, columns.answer), others)


def _id(row: Row, column: str) -> str:
    value = row.values.get(column)
    if value is None:
        return f"line-{row.number}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise bad_field(row, column, value, "text or a whole number as the row's id")
    return str(value)


def _answer(row: Row, column: str | None) -> str | None:
    value = row.values.get(column) if column is not None else None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | decimal.Decimal):
        return str(value)
    assert column is not None
    if not isinstance(value, str):
        raise bad_field(row, column, value, "one answer as text or a number")
    check_unicode(value, row, column)
    return value if value.strip() else None


def bad_field(row: Row, column: str, value: object, expected: str) -> DataError:
    """The error about a field that holds something else than expected."""
    return DataError(where=f"{row.where}: field {column!r}", seen=shown_value(value), expected=expected)


def check_unicode(text: str, row: Row, column: str) -> None:
    """JSON can spell half of a surrogate pair, which no tokenizer and no file accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"the character {text[error.start]!r} is half of a pair (a broken \\u escape); correct the text",
            where=f"{row.where}: field {column!r}") from None


def as_json(value: Any, row: Row, column: str) -> Json:
    """Parquet and data sets know more kinds of values than JSON: dates, times and decimals become text, others are
    refused."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [as_json(item, row, column) for item in value]
    if isinstance(value, dict):
        return {str(name): as_json(item, row, column) for name, item in value.items()}
    if isinstance(value, datetime.date | datetime.time | decimal.Decimal):
        return str(value)
    raise DataError(
        f"saw a value of type {type(value).__name__}; columns are passed to rewards, so they must be text, numbers, "
        "lists or mappings. Remove the column", where=f"{row.where}: field {column!r}")


def shown_value(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
