"""An answer as written -> its canonical form, so that most pairs of answers are decided without computer algebra.

Numbers become exact rationals: integers of any size, decimals, a/b and \\frac, mixed numbers (3 \\frac{1}{2}), scientific
notation, repeating decimals (0.\\overline{3}), thousands separators. Nothing is rounded. A name in front (`x = 5`) and a unit
behind (%, degrees, currency, \\text{cm}, words) are kept beside the value: two answers may differ in them only by leaving
them out. Letters of multiple choice and words are text, compared without case. Everything else is an expression: its cleaned
LaTeX, equal as a string or left to rewards/symbolic.py.

Single bare letters after a number (0.64N, 3x) are factors and not units; write \\text{N} for a unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal, TypeAlias

Kind = Literal["number", "text", "expression"]

# A number outside Fraction's limits: negative?, significant digits without zeros at either end, power of ten. So 1e999999999
# and a megabyte of digits are compared exactly without ever being multiplied out.
Huge: TypeAlias = tuple[bool, str, int]

_MAX_DIGITS = 1000  # longer numbers stay digits: Fraction's arithmetic is quadratic, and int() refuses 4300 digits
_MAX_CACHED = 400  # characters; a longer answer is read again each time, so that the cache's memory is bounded


@dataclass(frozen=True, slots=True)
class Canonical:
    """Equal objects are the same answer. latex: the cleaned text for computer algebra, no part of the comparison.

    value: Fraction or Huge for numbers; lower-case words or digits_base for text; LaTeX without spaces for expressions.
    """

    kind: Kind
    value: Fraction | Huge | str
    unit: str = ""
    name: str = ""
    latex: str = field(default="", compare=False)


_UNICODE: dict[int, str] = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}  # full-width forms
_UNICODE |= str.maketrans({
    "−": "-", "–": "-", "π": "\\pi ", "×": "\\times ", "·": "\\cdot ", "⋅": "\\cdot ", "√": "\\sqrt ", "≤": "\\le ", "≥": "\\ge ",
    "≠": "\\neq ", "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "∈": "\\in ", "½": "\\frac{1}{2}",
    "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "²": "^2", "³": "^3", "\u00a0": " ", "\u3000": " ", "，": ",",
})
# Control characters, zero-width characters, marks of writing direction, and the two private marks used below.
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ue000\ue001]")
_TEXT_OPEN, _TEXT_CLOSE = "\ue000", "\ue001"  # where \text{ and } were: a unit may be one letter only in there
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname)\s{0,4}\{([^{}]*+)\}")
_SUBSTITUTIONS: tuple[tuple[re.Pattern[str], str], ...] = tuple((re.compile(pattern), new) for pattern, new in (
    (r"\\(?:left|right|displaystyle|bigl?|bigr?|Bigl?|Bigr?)(?![A-Za-z])", ""),
    (r"\\!\s?", ""), (r"\{,\}", ","), (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])", " "), (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\^\s{0,2}\{\s{0,2}\\circ\s{0,2}\}|\^\s{0,2}\\circ(?![A-Za-z])|\\degree(?![A-Za-z])", "°"), (r"\\([%$#&])", r"\1"),
    (r"\\leq(?![A-Za-z])", r"\\le"), (r"\\geq(?![A-Za-z])", r"\\ge"), (r"\\ne(?![A-Za-z])", r"\\neq"),
    (r"<=", r"\\le "), (r">=", r"\\ge "),
    (r"\\varnothing(?![A-Za-z])", r"\\emptyset"), (r"\\lt(?![A-Za-z])", "<"), (r"\\gt(?![A-Za-z])", ">"), (r"\s++", " "),
))
_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
_NAME = re.compile(r"((?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\w|\{\w+\}))?'?(?:\s?\([A-Za-z]\))?)\s?=\s?(.+)", re.DOTALL)
_CURRENCY = re.compile(r"(-?)\s?([$€£¥])\s?(?=[-+.0-9\\])")
_SIGN = re.compile(r"([+-]?)\s?")
_GROUPED = r"[0-9]{1,3}(?:(?:,[0-9]{3})++|(?: [0-9]{3})++)(?![0-9])"
_DECIMAL = rf"(?:(?:{_GROUPED}|[0-9]++)(?:\.[0-9]*+)?|\.[0-9]++)"
_DECIMAL_AT = re.compile(_DECIMAL)
_REPEATING = re.compile(r"\s?\\overline\s?\{\s?([0-9]{1,200})\s?\}")
_EXPONENT = r"(?:\{\s?([+-]?[0-9]{1,15})\s?\}|([+-]?[0-9]{1,15}))(?![0-9])"
_SCIENTIFIC = re.compile(rf"\s?(?:\\times|\\cdot|\*|x)\s?10\s?\^\s?{_EXPONENT}|[eE]([+-]?[0-9]{{1,15}})(?![0-9A-Za-z])")
_POWER_OF_TEN = re.compile(rf"\s?\^\s?{_EXPONENT}")
_PART = rf"(?:\s?\{{\s?([+-]?\s?{_DECIMAL})\s?\}}|\s?([0-9]))"
_FRACTION = re.compile(rf"\s?\\frac{_PART}{_PART}")
_MIXED_SLASH = re.compile(r"\s([0-9]{1,200}+)\s?/\s?([0-9]{1,200}+)")
_SLASH = re.compile(rf"\s?/\s?({_DECIMAL})")
_UNIT = re.compile(rf"({_TEXT_OPEN}[^{_TEXT_CLOSE}]*+{_TEXT_CLOSE}|[A-Za-z][A-Za-z. /]*+|[%°$€£¥])\s?(?:\^\s?\{{?([0-9])\}}?)?")
_WORDS = re.compile(r"[^\W\d_](?:[^\W\d_]|[' .,:;!()\-])*+")
_BASED = re.compile(r"\{?([0-9A-F]++)\}?_\{?([0-9]{1,2})\}?")
_CHOICE = re.compile(r"\(?([A-J])(?:\)[.:]?|[.:])(?:\s.*)?|\(([A-Ja-j])\)", re.DOTALL)

_SHORT_UNITS = frozenset((
    "cm", "mm", "km", "kg", "mg", "ml", "ft", "yd", "mi", "lb", "lbs", "oz", "hr", "hrs", "min", "mins", "sec", "secs", "mph",
    "sq", "deg", "usd", "am", "pm", "a.m.", "p.m."))
_NO_UNITS = frozenset((
    "or", "and", "to", "by", "if", "is", "not", "for", "mod", "base", "when", "with", "where", "times", "over", "infinity",
    "plus", "minus", "approximately", "about"))
_FUNCTIONS = ("sin", "cos", "tan", "sec", "csc", "cot", "log", "exp", "sqrt", "arc", "pi", "binom", "frac")
_UNIT_NAMES = {"percent": "%", "degree": "°", "deg": "°", "dollar": "$", "usd": "$", "euro": "€", "pound": "£",
               "inches": "inch", "feet": "foot", "ft": "foot"}
_MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def canonical(answer: str) -> Canonical:
    """The canonical form of one answer; never raises, linear in the answer's length."""
    return _cached(answer) if len(answer) <= _MAX_CACHED else _canonical(answer)


def _canonical(answer: str) -> Canonical:
    text = _clean(answer)
    name, body = "", text
    if (named := _NAME.fullmatch(text)) and "=" not in named.group(2):
        name, body = named.group(1).replace(" ", "").replace("{", "").replace("}", ""), named.group(2)
    if number := _number_with_unit(body):
        value, unit = number
        return Canonical("number", value, unit, name, _unmark(body))
    plain = _unmark(body)
    if based := _BASED.fullmatch(plain.replace(" ", "")):  # algebra would drop the base
        return Canonical("text", f"{based.group(1)}_{based.group(2)}", "", name, plain)
    if choice := _CHOICE.fullmatch(plain):
        return Canonical("text", (choice.group(1) or choice.group(2)).lower(), "", name, plain)
    if _WORDS.fullmatch(plain) and _reads_as_text(plain, body):
        return Canonical("text", " ".join(re.sub(r"[.,:;!()]", " ", plain).casefold().split()), "", name, plain)
    return Canonical("expression", plain.replace(" ", ""), "", name, plain)


_cached = lru_cache(maxsize=65536)(_canonical)


def _clean(answer: str) -> str:
    text = _INVISIBLE.sub("", answer).translate(_UNICODE).strip()
    for _ in range(8):
        before = text
        for opening, closing in _WRAPPERS:
            if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
                text = text[len(opening):-len(closing)].strip()
        for command in ("\\boxed{", "\\fbox{"):
            if text.startswith(command) and text.endswith("}"):
                text = text[len(command):-1].strip()
        # A full stop ends the sentence; one that follows "p.m" belongs to it, and as a unit both are the same.
        text = text.rstrip(".,; ") if not text.endswith("\\,") else text[:-2]
        if text == before:
            break
    if text.replace("\\$", "").count("$") % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)
    text = _TEXT_COMMAND.sub(rf"{_TEXT_OPEN}\1{_TEXT_CLOSE}", text)
    for pattern, new in _SUBSTITUTIONS:
        text = pattern.sub(new, text)
    return text.strip()


def _unmark(text: str) -> str:
    return re.sub(r"\s++", " ", text.replace(_TEXT_OPEN, " ").replace(_TEXT_CLOSE, " ")).strip()


def _reads_as_text(plain: str, marked: str) -> bool:
    """True for words; False for what may be a product of variables (xy), to be decided by algebra."""
    words = plain.casefold().replace(",", " ").split()
    if any(word.startswith(_FUNCTIONS) or word == "infinity" for word in words):
        return False
    is_marked = marked.startswith(_TEXT_OPEN) and marked.endswith(_TEXT_CLOSE)
    return is_marked or len(plain) == 1 or plain.casefold() in ("yes", "no", "odd") or any(len(word) >= 4 for word in words)


def _number_with_unit(text: str) -> tuple[Fraction | Huge, str] | None:
    """Value and unit if the whole text is one number with at most a currency sign and a unit."""
    currency = ""
    if found := _CURRENCY.match(text):
        currency = found.group(2)
        text = found.group(1) + text[found.end():]
    elif text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1]
    parsed = _number(text)
    if parsed is None:
        return None
    value, rest = parsed
    unit = _unit(rest)
    if unit is None or (unit and currency and unit != currency):
        return None
    word, _, remaining = unit.partition(" ")
    if word in _MULTIPLES and isinstance(value, Fraction):
        value, unit = value * 10 ** _MULTIPLES[word], _UNIT_NAMES.get(remaining, remaining)
    return value, unit or currency


def _number(text: str) -> tuple[Fraction | Huge, str] | None:
    """The number that the text begins with, and what follows it."""
    sign = _SIGN.match(text)
    assert sign is not None
    negative, at = sign.group(1) == "-", sign.end()
    value: Fraction | Huge | None
    if fraction := _FRACTION.match(text, at):
        value, at = _ratio(_either(fraction, 1), _either(fraction, 3)), fraction.end()
    elif decimal := _DECIMAL_AT.match(text, at):
        digits, at = decimal.group(), decimal.end()
        is_integer = "." not in digits
        if "." in digits and (repeating := _REPEATING.match(text, at)):
            value, at = _repeating(digits, repeating.group(1)), repeating.end()
        elif scientific := _SCIENTIFIC.match(text, at):
            exponent = scientific.group(1) or scientific.group(2) or scientific.group(3)
            value, at = _decimal(digits, int(exponent)), scientific.end()
        elif digits == "10" and (power := _POWER_OF_TEN.match(text, at)):
            value, at = _decimal("1", int(_either(power, 1))), power.end()
        elif is_integer and (fraction := _FRACTION.match(text, at)):
            value, at = _mixed(digits, _either(fraction, 1), _either(fraction, 3)), fraction.end()
        elif is_integer and (fraction := _MIXED_SLASH.match(text, at)):
            value, at = _mixed(digits, fraction.group(1), fraction.group(2)), fraction.end()
        elif slash := _SLASH.match(text, at):
            value, at = _ratio(digits, slash.group(1)), slash.end()
        else:
            value = _decimal(digits, 0)
    else:
        return None
    if value is None:
        return None
    if negative:
        value = -value if isinstance(value, Fraction) else (not value[0], *value[1:])
    return value, text[at:].strip()


def _either(match: re.Match[str], group: int) -> str:
    return match.group(group) or match.group(group + 1)


def _decimal(digits: str, exponent: int) -> Fraction | Huge:
    """digits * 10**exponent, exactly."""
    whole, _, part = re.sub(r"[ ,+]", "", digits).partition(".")
    negative = whole.startswith("-")
    significant = (whole.lstrip("-") + part).lstrip("0")
    exponent -= len(part)
    stripped = significant.rstrip("0")
    exponent += len(significant) - len(stripped)
    if not stripped:
        return Fraction(0)
    if len(stripped) + abs(exponent) > _MAX_DIGITS:
        return negative, stripped, exponent
    return Fraction(int(stripped)) * Fraction(10) ** exponent * (-1 if negative else 1)


def _ratio(numerator: str, denominator: str) -> Fraction | Huge | None:
    over, under = _decimal(numerator, 0), _decimal(denominator, 0)
    if not isinstance(over, Fraction) or not isinstance(under, Fraction) or under == 0:
        return None
    return over / under


def _mixed(whole: str, numerator: str, denominator: str) -> Fraction | Huge | None:
    ratio, units = _ratio(numerator, denominator), _decimal(whole, 0)
    if not isinstance(ratio, Fraction) or not isinstance(units, Fraction) or ratio < 0:
        return None
    return units + ratio


def _repeating(digits: str, period: str) -> Fraction | Huge | None:
    """1.2 and period 34 -> 1.2343434..."""
    head = _decimal(digits, 0)
    places = len(digits.partition(".")[2])
    if not isinstance(head, Fraction) or places > _MAX_DIGITS:
        return None
    return head + Fraction(int(period), (10 ** len(period) - 1) * 10 ** places)


def _unit(rest: str) -> str | None:
    """The canonical unit that the text is, "" for none, None if it is something else."""
    if not rest:
        return ""
    found = _UNIT.fullmatch(rest)
    if found is None:
        return None
    text, power = found.group(1), found.group(2)
    is_marked = text.startswith(_TEXT_OPEN)
    words = text.strip(_TEXT_OPEN + _TEXT_CLOSE).casefold().split()
    if not words:
        return "" if power is None else None
    if len(words) > 5 or any(word in _NO_UNITS or any(map(str.isdigit, word)) for word in words):
        return None
    if not is_marked and words[0] not in _SHORT_UNITS and words[0] not in "%°$€£¥" and (
            len(words[0]) < 4 or words[0].startswith(_FUNCTIONS)):
        return None
    named = [_UNIT_NAMES.get(word, _UNIT_NAMES.get(_singular(word), _singular(word))) for word in words]
    return " ".join(named) + (f"^{power}" if power else "")


def _singular(word: str) -> str:
    word = word.rstrip(".,")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
