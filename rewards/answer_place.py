"""A completion and what extraction found in it -> where the final answer stands, as it was written.

Extraction says what the answer is, cleaned and cut down to the value that it states; this says where, for rewards that
put another answer in its place (reference_likelihood.py) or look at the whole of it (guards.py). The rule that found
the answer says which opening to look for, the last one in the text; of several adjacent boxes it is the last box.
Linear in the text's length. A new rule of extraction needs an entry in _OPENINGS only where its answer may also stand
elsewhere in the text.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from rewards.extraction import PHRASE, Extraction

_OPENINGS = {
    "boxed": re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,8}(?:\{\s{0,8})?"),
    "hash": re.compile(r"####\s{0,8}"),
    "answer_tag": re.compile(r"<answer>\s{0,8}"),
    "phrase": re.compile(rf"(?:{PHRASE.pattern})[\s:：*]{{0,8}}", re.IGNORECASE),
}
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class AnswerPlace:
    """Offsets into the completion: text[opening:start] opens the container (such as \\boxed{), text[start:end] is the
    answer."""

    opening: int
    start: int
    end: int


def answer_place(completion: str, extraction: Extraction) -> AnswerPlace | None:
    """Where `extraction`, that of this completion, found its answer; None without an answer, or where it stands nowhere
    literally."""
    if extraction.answer is None:
        return None
    pattern = _OPENINGS.get(extraction.rule)
    found = deque(pattern.finditer(completion), maxlen=1) if pattern is not None else None
    if found:
        return AnswerPlace(found[0].start(), found[0].end(), _end(completion, found[0]))
    start = completion.rfind(extraction.answer)
    return AnswerPlace(start, start, start + len(extraction.answer)) if start >= 0 else None


def _end(text: str, opening: re.Match[str]) -> int:
    """The closing brace or tag, for a box without braces the next space, else the end of the line."""
    start, mark = opening.end(), opening.group()
    if "{" in mark:
        depth = 1
        for brace in _BRACE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return brace.start()
        return len(text)
    if mark.startswith("\\"):
        space = _SPACE.search(text, start)
        return space.start() if space is not None else len(text)
    end = text.find("</answer>" if mark.startswith("<") else "\n", start)
    return end if end >= 0 else len(text)
