"""Completions of a multiple-choice question, and the gold letter -> 1 where the final answer names that option and no
other.

accuracy.py decides by the letter too, but reads answers as mathematics: there C + 0 is C, and `C (but maybe D)` states
C. Here the final answer (extraction.py) has to be a letter A to J: alone (C, (c), \\text{C}, option C) or before the
option's own text ((C) 12 m, C. Carbon). Two letters, the text without its letter, and anything else are no answer, so
they are counted as unparsable and not as wrong options.
"""

from __future__ import annotations

import re

from rewards.contract import GroupScore, RewardError
from rewards.extraction import Extraction, extract_all, rule_shares

LETTERS = "ABCDEFGHIJ"

_MAX_ANSWER = 2000  # characters; an option's text is shorter
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:rm|bf|it|sf|bb)|mbox|hbox|operatorname|boldsymbol|bf|rm)(?![A-Za-z])"
)
_MARKS = re.compile(r"\\[()\[\]]|\$|\*\*|(?<!\\)[{}]")
_SPACE = re.compile(r"\\(?:[,;: ~!]|q?quad(?![A-Za-z]))|~|\s+")
_LEAD = re.compile(
    r"(?:the\s)?(?:(?:final|correct|right|best)\s)*(?:answer|option|choice|letter)\b\s?(?:is\b|[:=])?\s?(?:(?:option|choice|letter)\b\s?)?:?\s?",
    re.IGNORECASE)
_ALONE = re.compile(r"[(\[]?\s?([A-Ja-j])\s?[)\]]?")
_BEFORE_TEXT = re.compile(r"(?:[(\[]([A-Ja-j])[)\]](?![-+*/^_=!'])|([A-J])[).:](?=\s))(.*)", re.DOTALL)
# (C) or (D), (C)(D), C. D; but not the (E)-4-phenyl of chemistry, nor "(C) A bird".
_FURTHER_FIRST = re.compile(r"(?:[,;/&]|and\b|or\b)\s?[(\[]?[A-J](?![A-Za-z0-9])|[(\[][A-J][)\]](?!-)|[A-J][.)]?\Z")
_FURTHER = re.compile(r"\s(?:\([A-J]\)|[A-J][).:])(?=\s)")


def letter(text: str) -> str | None:
    """The option that a final answer names, as a capital; None where it names none or several."""
    if len(text) > _MAX_ANSWER:
        return None
    text = _SPACE.sub(" ", _MARKS.sub("", _FONT.sub("", text))).strip(" .,;")
    if lead := _LEAD.match(text):
        text = text[lead.end():]
    if alone := _ALONE.fullmatch(text):
        return alone.group(1).upper()
    named = _BEFORE_TEXT.fullmatch(text)
    if named is None:
        return None
    rest = named.group(3)
    if _FURTHER_FIRST.match(rest.strip()) or _FURTHER.search(rest):
        return None
    return (named.group(1) or named.group(2)).upper()


def choice(*, completions: list[str], answer: str, **columns: object) -> GroupScore:
    """r_i = 1 if completion i names the option of the gold letter, and no other, else 0. answers: letters, None where
    none is named.

    Raises RewardError if the gold answer is no letter A to J."""
    gold = letter(answer)
    if gold is None:
        raise RewardError(
            f"the gold answer is {answer[:80]!r}", expected="the letter of an option, A to J",
            remedy="rewards.accuracy:accuracy for questions without options")
    extractions = extract_all(completions)
    letters = [_letter_of(extraction) for extraction in extractions]
    found = sum(extraction.answer is not None for extraction in extractions)
    return GroupScore(
        scores=[float(named == gold) for named in letters],
        metrics={
            "no_letter_share": (found - sum(named is not None for named in letters)) / len(letters),
            **rule_shares(extractions)},
        answers=letters)


def _letter_of(extraction: Extraction) -> str | None:
    """From the answer as it was written: cut down to the value that it states, `C (but maybe D)` would be C."""
    written = extraction.written if extraction.written is not None else extraction.answer
    return None if extraction.answer is None or written is None else letter(written)


choice.needs_answer = True  # type: ignore[attr-defined]
