"""Cleaned text of one answer without structure -> its canonical form: number, words, or expression, with its unit.

Numbers are exact (rewards/answers/quantity.py), also those written as arithmetic: 1,234/2, 2^3, \\frac919. Words
compare without case. Everything else is an expression: its tree (rewards/answers/expression.py) where that grammar
knows it, and its text for computer algebra. Lists, intervals, equations and the like are taken apart before
(rewards/answers/reading.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from rewards.answers.expression import parse
from rewards.answers.notation import TEXT_CLOSE, TEXT_OPEN, unmark
from rewards.answers.quantity import Huge, read_quantity, read_unit
from rewards.answers.terms import Term
from rewards.answers.values import exact

Kind = Literal["number", "text", "expression"]


@dataclass(frozen=True, slots=True)
class Canonical:
    """Equal objects are the same answer.

    value: Fraction or Huge for numbers; lower-case words or digits_base for text; LaTeX without spaces for expressions.
    unit: "" for none. latex: the cleaned text for computer algebra. term: the tree of an expression, None where it has
    none. Neither is compared.
    """

    kind: Kind
    value: Fraction | Huge | str
    unit: str = ""
    latex: str = field(default="", compare=False)
    term: Term | None = field(default=None, compare=False)


_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[' .,:;!()&/\"-])*+")
_BASED = re.compile(
    r"[{(]?\s?(-?[0-9A-Fa-f]++(?:\.[0-9A-Fa-f]++)?)\s?[})]?\s?\\?_\s?\{?\s?\(?\s?([0-9]{1,2}|[a-z]{3,11})\s?\)?\s?\}?")
_BASE_NAMES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12", "sixteen": "16"}
_RANGE = re.compile(r"([0-9]{1,9})\s?-{1,2}\s?([0-9]{1,9})")
_CIRCLED = re.compile(r"[①-⑳](?:[①-⑳ ,;])*+")  # numbers of statements
_TRAILING_TEXT = re.compile(rf"(.+?)\s?({TEXT_OPEN}[^{TEXT_CLOSE}]*+{TEXT_CLOSE}\s?(?:\^\s?\{{?[0-9]\}}?)?)", re.DOTALL)
_TRAILING_WORD = re.compile(
    r"(.*(?:[0-9)}]|\\pi(?=\s?(?:sq|cubic|[A-Za-z]{4}|[cmk][mg](?![A-Za-z])))))"
    r"\s?((?:sq(?:uare)?\s|cubic\s)?[A-Za-z./]{2,20}(?:\s?\^\s?\{?[0-9]\}?)?|[%°])", re.DOTALL)
_LEADING_CURRENCY = re.compile(r"(-?)\s?([$€£¥])\s?(.+)", re.DOTALL)
_FUNCTION_PREFIXES = ("sin", "cos", "tan", "sec", "csc", "cot", "log", "exp", "sqrt", "arc", "pi", "binom", "frac")
_INFINITE = ("infinity", "infty", "inf")
_SHORT_WORDS = frozenset(
    ("yes", "no", "odd", "not", "none", "all", "mon", "tue", "wed", "thu", "fri", "sat", "sun", "red", "dne", "true"))


def leaf(text: str) -> Canonical:
    """The canonical form of cleaned text; never raises, linear in its length."""
    if (quantity := read_quantity(text)) is not None:
        return Canonical("number", *quantity, unmark(text))
    plain = unmark(text)
    if based := _BASED.fullmatch(plain):  # algebra would drop the base
        base = _BASE_NAMES.get(based.group(2).casefold(), based.group(2))
        return Canonical("text", f"{based.group(1).upper()}_{base}", "", plain)
    if (span := _RANGE.fullmatch(plain)) and int(span.group(1)) < int(span.group(2)):
        return Canonical("text", plain.replace(" ", ""), "", plain)  # 60-64, and no difference
    if _CIRCLED.fullmatch(plain):
        return Canonical("text", "".join(sorted(set(plain) - set(" ,;"))), "", plain)
    if _WORDS.fullmatch(plain) and _reads_as_words(plain, text):
        words = " ".join(re.sub(r"[.,:;!()\"-]", " ", plain).casefold().split())
        return Canonical("text", words.removeprefix("the ").removeprefix("a ").removeprefix("an "), "", plain)
    body, unit = _without_unit(text)
    return of_term(unmark(body), parse(body), unit)


def long_leaf(answer: str) -> Canonical:
    """For an answer so long that nobody meant it: a number where it is only that, else its text without spaces,
    compared as it is."""
    text = answer.strip()
    if (quantity := read_quantity(text)) is not None:
        return Canonical("number", *quantity, text)
    return Canonical("expression", "".join(text.split()), "", text)


def of_term(latex: str, term: Term | None, unit: str = "") -> Canonical:
    """The canonical form of an expression whose tree is known; None: the text alone."""
    if term is not None and (value := exact(term)) is not None:
        return Canonical("number", value, unit, latex, term)
    return Canonical("expression", latex.replace(" ", ""), unit, latex, term)


def _without_unit(text: str) -> tuple[str, str]:
    """An expression and its unit: 2\\sqrt{3}\\text{ cm}, 12\\pi square units, $5x."""
    if (found := _LEADING_CURRENCY.fullmatch(text)) and parse(found.group(1) + found.group(3)) is not None:
        return found.group(1) + found.group(3), found.group(2)
    for pattern in (_TRAILING_TEXT, _TRAILING_WORD):
        if len(text) <= 1000 and (found := pattern.fullmatch(text)):
            unit = read_unit(found.group(2))
            if (
                unit == "°"
                and (whole := parse(text)) is not None
                and (whole.args[-1] if whole.op == "*" else whole).op != "degrees"
            ):
                continue  # the degrees are inside: sin 30°
            if unit is not None and parse(found.group(1)) is not None:
                return found.group(1), unit
    return text, ""


def _reads_as_words(plain: str, marked: str) -> bool:
    """True for words; False for what may be a product of variables (xy), to be decided by algebra."""
    words = re.split(r"[\s,/&-]+", plain.casefold())
    if any(word.startswith(_FUNCTION_PREFIXES) or word in _INFINITE for word in words):
        return False
    is_marked = marked.startswith(TEXT_OPEN) and marked.endswith(TEXT_CLOSE)
    # HHT: the order of letters counts; Bob
    is_sequence = len(plain) > 2 and plain.isalpha() and (plain.isupper() or plain.istitle())
    return (
        is_marked
        or is_sequence
        or len(plain) == 1
        or plain.casefold() in _SHORT_WORDS
        or any(len(word) >= 4 for word in words))
