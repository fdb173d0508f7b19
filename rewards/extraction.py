"""Completion text -> final answer, by stated rules, the first that finds something wins.

1. `boxed`: the last \\boxed{...} or \\fbox{...} with balanced braces, or `\\boxed 5`. Boxes with nothing but `$`, commas, "and"
   or spaces between them form one list. Of nested boxes the innermost counts. When the last box is never closed (a completion cut
   short), nothing is found, and no later rule is asked: half an answer is not an answer.
2. `hash`: the rest of the line after the last `####` (GSM8K).
3. `answer_tag`: the last <answer>...</answer>.
4. `phrase`: what follows the last "answer is", "answer:" or 答案是, to the end of its sentence or line; or a last line `A: ...`.
5. `last_number`: the last number, only on request: in training it would pay for a number mentioned in passing.

Nothing found is a case of its own (answer None, rule `none`), never an empty string. Each rule is one pass over the text: the
time is linear in its length. To add a rule, write a function text -> answer | None and put it into RULES.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Rule = Literal["boxed", "hash", "answer_tag", "phrase", "last_number", "none"]


@dataclass(frozen=True, slots=True)
class Extraction:
    """answer: stripped and not empty, or None where nothing was found. rule: the rule that decided."""

    answer: str | None
    rule: Rule


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


_BRACES = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])(?P<open>\s*+\{)?|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"[ \t]*+([^\s${}\\]++)")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;]|\\[()\[\],; ]|\\quad|\\text\{\s*and\s*\}|and\b)*+")
_PHRASE = re.compile(r"\banswer(?:\s{1,4}is\b|\s{0,4}:)|答案(?:是|为|:|：)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)|[。\n]")
_NUMBER = re.compile(r"(?<![0-9.])[-+]?[0-9][0-9,]*+(?:\.[0-9]++)?(?:/[0-9]++)?")


def _boxes(text: str) -> tuple[list[_Box], int]:
    """Innermost closed boxes in order of appearance, and the start of the last box that is never closed (-1: none)."""
    closed: list[_Box] = []
    open_braces: list[tuple[int, int]] = []  # (start of the box, or -1 for a plain brace; start of the content)
    for token in _BRACES.finditer(text):
        symbol = token.group()
        if symbol.startswith(("\\boxed", "\\fbox")):
            if token.group("open") is not None:
                open_braces.append((token.start(), token.end()))
            elif bare := _BARE_BOX.match(text, token.end()):
                closed.append(_Box(token.start(), bare.end(), bare.group(1).rstrip(".,;:")))
        elif symbol == "{":
            open_braces.append((-1, token.end()))
        elif symbol == "}" and open_braces:
            start, content = open_braces.pop()
            contains_a_box = bool(closed) and closed[-1].start > start
            if start >= 0 and not contains_a_box:
                closed.append(_Box(start, token.end(), text[content:token.start()]))
    return closed, max((start for start, _ in open_braces), default=-1)


def _last_boxes(text: str) -> tuple[str | None, bool]:
    """Content of the last run of adjacent boxes, and whether the text has any box at all."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None, False
    closed, unclosed_start = _boxes(text)
    if not closed or unclosed_start > closed[-1].start:
        return None, bool(closed) or unclosed_start >= 0
    run = [closed[-1]]
    for box in reversed(closed[:-1]):
        between = text[box.end:run[-1].start]
        if len(between) > 40 or not _BETWEEN_BOXES.fullmatch(between):
            break
        run.append(box)
    contents = list(dict.fromkeys(box.content.strip() for box in reversed(run)))
    return ", ".join(content for content in contents if content), True


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


def _after_hashes(text: str) -> str | None:
    start = text.rfind("####")
    return None if start < 0 else text[start + 4:].lstrip("#").partition("\n")[0]


def _in_answer_tag(text: str) -> str | None:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else text[start + len("<answer>"):end]


def _after_phrase(text: str) -> str | None:
    last = _last_match(_PHRASE, text)
    if last is None:
        last_line = text.rstrip().rpartition("\n")[2]
        return last_line[2:] if last_line.startswith("A:") else None
    rest = text[last.end():].lstrip(" \t\r\n:*")
    end = _SENTENCE_END.search(rest)
    return (rest if end is None else rest[:end.start()]).rstrip(" *,;")


def _last_number(text: str) -> str | None:
    last = _last_match(_NUMBER, text)
    return None if last is None else last.group().rstrip(",")


RULES: tuple[tuple[Rule, Callable[[str], str | None]], ...] = (
    ("hash", _after_hashes), ("answer_tag", _in_answer_tag), ("phrase", _after_phrase))


def extract(text: str, last_number: bool = False) -> Extraction:
    """The final answer of a completion by the rules of the module docstring; last_number switches rule 5 on."""
    boxed, has_box = _last_boxes(text)
    if has_box:
        return Extraction(boxed or None, "boxed")
    for rule, find in RULES:
        if answer := (find(text) or "").strip():
            return Extraction(answer, rule)
    if last_number and (answer := _last_number(text) or ""):
        return Extraction(answer, "last_number")
    return Extraction(None, "none")


def extract_answers(completions: list[str], last_number: bool = False) -> list[str | None]:
    """[G] completions -> [G] answers."""
    return [extract(completion, last_number).answer for completion in completions]
