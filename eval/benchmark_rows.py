"""A row of a benchmark, as its data set has it -> a row with question, answer and id.

One function per shape of rows. Each also takes rows that have question and answer already: local copies come in both
shapes. They raise RowError, to which rl/questions/files.py adds file and line. A new shape is one more function;
eval/benchmarks.py names it in an entry.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.choice import LETTERS
from rewards.extraction import extract
from rl.questions.files import RowError, shown_value

RowValues = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """Names in the data set. id: None where it has none; rows are then numbered. others: columns that are kept for
    templates and graders; everything else is left out, images and worked solutions among it."""

    question: str = "question"
    answer: str = "answer"
    id: str | None = "id"
    others: tuple[str, ...] = ()


RowReader = Callable[[RowValues, Columns], dict[str, Any]]

_REMEDY = "fill it in, or remove the row"
_WHOLE = re.compile(r"(-?\d+)\.0")


def plain(row: RowValues, columns: Columns) -> dict[str, Any]:
    """Question and answer in columns of their own."""
    return _row(row, columns, _answer(row, columns))


def whole_number(row: RowValues, columns: Columns) -> dict[str, Any]:
    """Answers that are whole numbers and were stored as floats: 27.0 -> 27."""
    answer = _answer(row, columns)
    found = _WHOLE.fullmatch(str(answer))
    return _row(row, columns, answer if found is None else found.group(1))


def gsm8k(row: RowValues, columns: Columns) -> dict[str, Any]:
    """The answer is what stands behind #### in a worked solution."""
    answer = _answer(row, columns)
    if isinstance(answer, str) and "####" in answer:
        answer = answer.rpartition("####")[2].strip()
        if not answer:
            raise RowError("nothing stands behind its ####", where=f"field {columns.answer!r}", remedy=_REMEDY)
    return _row(row, columns, answer)


def boxed_solution(row: RowValues, columns: Columns) -> dict[str, Any]:
    """The answer is the last \\boxed{} of the worked solution, where there is no column with it."""
    if not _is_empty(answer := _first(row, (columns.answer, "answer"))):
        return _row(row, columns, answer)
    solution = row.get("solution")
    if not isinstance(solution, str) or not solution.strip():
        raise RowError(
            f"neither {columns.answer!r} nor 'solution' has a gold answer; the row has: {', '.join(row)}",
            remedy=_REMEDY)
    extraction = extract(solution)
    if extraction.rule != "boxed" or extraction.written is None:
        raise RowError(
            f"it ends {solution[-60:]!r}", where="field 'solution'", expected="a gold answer in \\boxed{}",
            remedy=_REMEDY)
    return _row(row, columns, extraction.written)


def answer_list(row: RowValues, columns: Columns) -> dict[str, Any]:
    """The answer is a list of texts, such as ["$69$,$84$"]: several are one answer, in any order. Some copies keep the
    list as text."""
    answer = _answer(row, columns)
    if isinstance(answer, str) and answer.startswith("["):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):  # [1, 2) is an interval
            answer = ast.literal_eval(answer)
    if not isinstance(answer, list | tuple):
        return _row(row, columns, answer)
    if not answer or not all(isinstance(item, str) and item.strip() for item in answer):
        raise _wrong(columns.answer, answer, "a list of answers as text")
    return _row(row, columns, ", ".join(item.strip() for item in answer))


def gpqa(row: RowValues, columns: Columns) -> dict[str, Any]:
    """The right option and three wrong ones, each in a column -> a question with lettered options, and a letter.

    The options are in the order of a hash of (id, number), so that a question has the same letters in every run, on
    every machine and beside any other questions. option_order tells which is which: 0 is the right one, 1 to 3 are
    Incorrect Answer 1 to 3."""
    if columns.answer not in row and "answer" in row:
        return _with_letter(plain(row, columns))
    names = (columns.answer, "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    texts = []
    for name in names:
        text = row.get(name)
        if not isinstance(text, str) or not text.strip():
            raise _wrong(name, text, "the text of an option")
        texts.append(text.strip())
    question = _question(row, columns).strip()
    # The hash of the text where a copy has lost the ids.
    key = _first(row, (columns.id, "id"))
    key = question if key is None else str(key)
    order = sorted(
        range(4), key=lambda number: hashlib.sha256(f"{key}\n{number}".encode("utf-8", "surrogatepass")).digest())
    options = [texts[number] for number in order]
    asked = _row(row, columns, LETTERS[order.index(0)])
    return {**asked, "question": with_options(question, options), "options": options, "option_order": order}


def mmlu_pro(row: RowValues, columns: Columns) -> dict[str, Any]:
    """Up to ten options and the number of the right one -> a question with lettered options, and a letter; in the data
    set's order."""
    if "options" not in row:
        return _with_letter(plain(row, columns))
    options, index, letter = row["options"], row.get("answer_index"), row.get(columns.answer)
    is_list = isinstance(options, list | tuple) and all(isinstance(text, str) for text in options)
    if not is_list or not 2 <= len(options) <= len(LETTERS):
        raise _wrong("options", options, f"a list of 2 to {len(LETTERS)} texts")
    if index is None and isinstance(letter, str) and letter and letter in LETTERS[: len(options)]:
        index = LETTERS.index(letter)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(options):
        raise _wrong("answer_index", index, f"the number of the right option, 0 to {len(options) - 1}")
    if letter not in (None, LETTERS[index]):
        raise RowError(
            where=f"field {columns.answer!r}", seen=f"{letter!r}, and answer_index {index} is {LETTERS[index]}",
            expected="the same", remedy="correct one")
    # Early copies fill up to ten options with N/A; the benchmark's own code leaves these out.
    offered = [text.strip() for text in options]
    while len(offered) > index + 1 and offered[-1] == "N/A":
        offered.pop()
    return {
        **_row(row, columns, LETTERS[index]), "question": with_options(_question(row, columns).strip(), offered),
        "options": offered}


def with_options(question: str, options: Sequence[str]) -> str:
    """The question, an empty line, and "(A) ..." on a line for each option."""
    return "\n".join(
        [question, "", *(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))])


def _with_letter(row: dict[str, Any]) -> dict[str, Any]:
    answer = str(row["answer"]).strip().strip("()")
    if len(answer) != 1 or answer not in LETTERS:
        raise _wrong("answer", row["answer"], "the letter of an option (A to J) that the question lists")
    return {**row, "answer": answer}


def _row(row: RowValues, columns: Columns, answer: Any) -> dict[str, Any]:
    kept = {name: row[name] for name in columns.others if row.get(name) is not None}
    key = _first(row, (columns.id, "id"))
    return {**kept, "question": _question(row, columns), "answer": answer, **({} if key is None else {"id": key})}


def _question(row: RowValues, columns: Columns) -> str:
    text = _first(row, (columns.question, "question", "problem"))
    if not isinstance(text, str) or not text.strip():
        raise _wrong(columns.question, text, f"the question as text; the row has: {', '.join(row) or 'none'}")
    return text


def _answer(row: RowValues, columns: Columns) -> Any:
    answer = _first(row, (columns.answer, "answer"))
    if _is_empty(answer):
        raise _wrong(
            columns.answer, answer,
            f"a gold answer: without one nothing can be graded; the row has: {', '.join(row) or 'none'}")
    return answer


def _first(row: RowValues, names: Sequence[str | None]) -> Any:
    """The value of the first of these columns that has one."""
    return next((row[name] for name in names if name is not None and not _is_empty(row.get(name))), None)


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _wrong(column: str, value: object, expected: str) -> RowError:
    return RowError(where=f"field {column!r}", seen=shown_value(value), expected=expected, remedy=_REMEDY)
