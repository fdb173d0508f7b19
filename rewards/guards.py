"""Final answers -> the same answers without those that only game the reward: label-free rewards pay for agreement,
whatever on.

Two ways were seen in EMPO's training (arXiv:2504.05812): copying the question into the answer, on which all completions
agree easily, and answers so long that a comparison of them means nothing. Both look at the final answer as it was
written: extraction cuts "What is 17+25" down to 17+25, which is even right. A refused answer becomes None, that is
unanswered: a cluster of its own, which agrees with nobody, and the reward for unanswered completions. To add a guard: a
test here, its setting in `refuse`, its share in the metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.answer_place import answer_place
from rewards.extraction import Extraction

SHORTEST_COPY = 4
"""Questions with fewer characters than this, spaces apart, count as copied nowhere: the answer 7 to the question 7 is
no copy."""

_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Guarded:
    """answers: [G], None where there was none or it was refused. metrics: shares of the G completions, refused or
    not."""

    answers: list[str | None]
    metrics: dict[str, float]


def refuse(
    completions: Sequence[str], extractions: Sequence[Extraction], question: str, *, copied_question: bool = False,
    max_answer_length: int | None = None,
) -> Guarded:
    """The answers less the refused ones: copies of the question (if asked to) and those longer than max_answer_length
    characters.

    Raises ValueError for a max_answer_length below 1."""
    if max_answer_length is not None and (not isinstance(max_answer_length, int) or max_answer_length < 1):
        raise ValueError(f"max_answer_length is {max_answer_length}, expected at least 1 character or null")
    written = [
        _written(completion, extraction) for completion, extraction in zip(completions, extractions, strict=True)]
    core = _core(question)
    copied = [text is not None and _holds(text, core) for text in written]
    too_long = [
        text is not None and max_answer_length is not None and len(text) > max_answer_length for text in written]
    answers = [None if is_long or (is_copy and copied_question) else extraction.answer
               for extraction, is_copy, is_long in zip(extractions, copied, too_long, strict=True)]
    return Guarded(
        answers,
        {"copied_question_share": sum(copied) / len(answers), "long_answer_share": sum(too_long) / len(answers)})


def copies_question(answer: str, question: str) -> bool:
    """Whether the whole question stands in the answer; case, spaces and the question's last `=`, `?`, `.` and `:` do
    not matter."""
    return _holds(answer, _core(question))


def _written(completion: str, extraction: Extraction) -> str | None:
    """The final answer as it stands in the completion; the extracted one where it stands nowhere literally."""
    place = answer_place(completion, extraction)
    return extraction.answer if place is None else completion[place.start:place.end].strip()


def _core(question: str) -> str:
    return _plain(question).rstrip("=?.:？。：")


def _holds(answer: str, core: str) -> bool:
    return len(core) >= SHORTEST_COPY and core in _plain(answer)


def _plain(text: str) -> str:
    return _SPACES.sub("", text).casefold()
