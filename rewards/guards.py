"""Final answers -> the same answers without those that only game the reward: label-free rewards pay for agreement, whatever on.

Two ways were seen in EMPO's training (arXiv:2504.05812): copying the question into the answer, on which all completions agree easily,
and answers so long that a comparison of them means nothing. A refused answer becomes None, that is unanswered: a cluster
of its own, which agrees with nobody, and the reward for unanswered completions. To add a guard: a test here, its setting in
`refuse`, its share in the metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST_COPY = 4
"""Questions with fewer characters than this, spaces apart, count as copied nowhere: the answer 7 to the question 7 is no copy."""

_SPACES = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Guarded:
    """answers: [G], None where there was none or it was refused. metrics: shares of the G completions, refused or not."""

    answers: list[str | None]
    metrics: dict[str, float]


def refuse(
    answers: Sequence[str | None], question: str, *, copied_question: bool = False, max_answer_length: int | None = None
) -> Guarded:
    """The answers less the refused ones: copies of the question (if asked to) and those longer than max_answer_length characters.

    Raises ValueError for a max_answer_length below 1."""
    if max_answer_length is not None and max_answer_length < 1:
        raise ValueError(f"max_answer_length is {max_answer_length}, expected at least 1 character or null")
    copied = [answer is not None and copies_question(answer, question) for answer in answers]
    too_long = [answer is not None and max_answer_length is not None and len(answer) > max_answer_length for answer in answers]
    kept = [None if is_long or (is_copy and copied_question) else answer
            for answer, is_copy, is_long in zip(answers, copied, too_long, strict=True)]
    return Guarded(kept, {"copied_question_share": sum(copied) / len(answers), "long_answer_share": sum(too_long) / len(answers)})


def copies_question(answer: str, question: str) -> bool:
    """Whether the whole question stands in the answer; case, spaces and the question's last `=`, `?`, `.` and `:` do not matter."""
    core = _plain(question).rstrip("=?.:？。：")
    return len(core) >= SHORTEST_COPY and core in _plain(answer)


def _plain(text: str) -> str:
    return _SPACES.sub("", text).casefold()
