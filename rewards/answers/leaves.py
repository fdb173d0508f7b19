"""Two leaves -> equal, different, or undecided until computer algebra has been asked.

Canonical forms decide first, then values to 40 digits (rewards/answers/numeric.py), infinities by their sign. All of it
is symmetric.
"""

from __future__ import annotations

import re

from rewards.answers.canonical import Canonical, of_term
from rewards.answers.expression import MAX_LENGTH, parse
from rewards.answers.numeric import same
from rewards.answers.quantity import unit_of_letter
from rewards.answers.region import term_of
from rewards.answers.values import Work, infinite_sign

Pair = tuple[str, str]

_LETTER_AT_END = re.compile(r"(.*[0-9)}])\s?([A-Za-z])(?:\s?\^\s?\{?([23])\}?)?", re.DOTALL)


def decide(left: Canonical, right: Canonical, work: Work | None = None) -> bool | None:
    """True or False where canonical forms and values suffice, None where algebra has to be asked."""
    if left == right:
        return True
    if left.kind == right.kind and left.value == right.value:
        return one_may_be_missing(left.unit, right.unit)
    if left.kind == right.kind == "number":
        return False
    if left.kind == "text" or right.kind == "text":
        words = [side for side in (left, right) if side.kind == "text"]
        if len(words) == 2 or any(len(str(side.value)) > 1 for side in words):
            return False
    if max(len(left.latex), len(right.latex)) > MAX_LENGTH or not left.latex or not right.latex:
        return False
    if (bare := _with_letter_as_unit(left, right)) is not None:
        left, right = bare
    first, second = term_of(left), term_of(right)
    if first is not None and second is not None:
        signs = infinite_sign(first), infinite_sign(second)
        verdict = signs[0] == signs[1] if any(signs) else same(first, second, work)
        return one_may_be_missing(left.unit, right.unit) if verdict else verdict
    if str(left.value).casefold() == str(right.value).casefold():
        return False  # R and r are two variables; algebra would not tell them apart
    return None if one_may_be_missing(left.unit, right.unit) else False


def _with_letter_as_unit(left: Canonical, right: Canonical) -> tuple[Canonical, Canonical] | None:
    """5 m beside 5 \\text{ meters}: a last letter is a unit where the other side has that unit."""
    for one, other in ((left, right), (right, left)):
        found = _LETTER_AT_END.fullmatch(other.latex) if one.unit and not other.unit else None
        if found is not None and unit_of_letter(found.group(2), found.group(3) or "") == one.unit:
            return one, of_term(found.group(1), parse(found.group(1)), one.unit)
    return None


def one_may_be_missing(first: str, second: str) -> bool:
    return first == second or not first or not second


def for_algebra(left: Canonical, right: Canonical) -> Pair:
    """The two texts in sorted order, so that the verdict is symmetric."""
    return min(left.latex, right.latex), max(left.latex, right.latex)
