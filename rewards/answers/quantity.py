"""Cleaned text -> an exact number with its unit, where the whole text is that.

Numbers become exact rationals: integers of any size, decimals, a/b and \\frac, mixed numbers (3 \\frac{1}{2}),
scientific notation, repeating decimals (0.\\overline{3}), thousands separators. Nothing is rounded. A unit behind (%,
degrees, currency, \\text{cm}, words) is kept beside the value. Single bare letters after a number (0.64N, 3x) are
factors and not units; write \\text{N} for a unit.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TypeAlias

from rewards.answers.notation import TEXT_CLOSE, TEXT_OPEN

# A number outside Fraction's limits: negative?, significant digits without zeros at either end, power of ten. So
# 1e999999999 and a megabyte of digits are compared exactly without ever being multiplied out.
Huge: TypeAlias = tuple[bool, str, int]

_MAX_DIGITS = 1000  # longer numbers stay digits: Fraction's arithmetic is quadratic, and int() refuses 4300 digits
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
_UNIT = re.compile(
    rf"({TEXT_OPEN}[^{TEXT_CLOSE}]*+{TEXT_CLOSE}|[A-Za-z][A-Za-z."
    r" /-]*+|°\s?[CF]?(?![A-Za-z])|[%$€£¥¢])\s?(?:\^\s?\{?([0-9])\}?)?")
_ORDINAL = re.compile(rf"\s?\^?\s?\{{?\s?{TEXT_OPEN}?\s?(?:st|nd|rd|th)\s?{TEXT_CLOSE}?\s?\}}?")
_POWER_IN_TEXT = re.compile(r"([A-Za-z. /-]++)\^?\{?([23])\}?")

_NO_UNITS = frozenset(
    (
        "or", "and", "to", "by", "if", "is", "are", "not", "for", "mod", "base", "when", "with", "where", "times",
        "over", "infinity", "plus", "minus", "approximately", "about", "squared", "cubed", "dozen", "factorial",
        "halves", "thirds", "quarters", "fourths", "fifths", "sixths", "sevenths", "eighths", "ninths", "tenths",
        "hundredths", "pi", "maybe", "perhaps", "possibly", "incorrect", "wrong", "no", "none", "never", "cannot",
        "million", "billion", "thousand", "hundred", "trillion", "unless", "except", "but", "then", "because", "hence",
        "so", "thus", "more", "less", "each", "half"))
_FUNCTIONS = ("sin", "cos", "tan", "sec", "csc", "cot", "log", "exp", "sqrt", "arc", "pi", "binom", "frac", "infinity")
# Spellings of one unit; a word that is not listed (apples, daps) describes what is counted and is no unit that could
# differ.
_SPELLINGS = {
    "%": "percent percentage",
    "°": "degree deg",
    "$": "dollar usd",
    "€": "euro eur",
    "£": "gbp",
    "¢": "cent",
    "mm": "millimeter millimetre",
    "cm": "centimeter centimetre",
    "m": "meter metre",
    "km": "kilometer kilometre",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard",
    "mi": "mile",
    "mg": "milligram",
    "g": "gram",
    "kg": "kilogram",
    "lb": "pound lbs",
    "oz": "ounce",
    "t": "ton tonne",
    "ml": "milliliter mL",
    "l": "liter litre L",
    "gal": "gallon",
    "s": "second sec",
    "min": "minute",
    "h": "hour hr",
    "day": "",
    "week": "",
    "month": "",
    "year": "yr",
    "mph": "mi/h",
    "km/h": "kph kmh",
    "m/s": "",
    "ft/s": "",
    "hz": "hertz",
    "n": "newton",
    "j": "joule",
    "w": "watt",
    "v": "volt",
    "pa": "pascal",
    "kj/mol": "",
    "rad": "radian",
    "a.m": "am",
    "p.m": "pm",
    "°c": "celsius",
    "°f": "fahrenheit",
}
_UNIT_NAMES = {
    spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in (unit, *spellings.casefold().split())}
_BARE_UNITS = frozenset(
    name for name in _UNIT_NAMES if len(name) in (2, 3, 4) and name.strip(".").replace("/", "").isalpha()
) | {
    "sq", "a.m", "p.m", "hrs", "km/h", "m/s", "ft/s", "mi/h", "kj/mol",
}  # short words that are units without \text{}
_GENERIC = frozenset(("unit", "square", "cubic", "sq"))
_MULTIPLE = re.compile(
    rf"{TEXT_OPEN}?\s?(hundred|thousand|million|billion|trillion)(?![A-Za-z])\s?{TEXT_CLOSE}?", re.IGNORECASE)
_MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def read_quantity(text: str) -> tuple[Fraction | Huge, str] | None:
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
    if isinstance(value, Fraction) and (multiple := _MULTIPLE.match(rest)):
        is_marked = multiple.group(0).startswith(TEXT_OPEN) and not multiple.group(0).endswith(TEXT_CLOSE)
        value *= 10 ** _MULTIPLES[multiple.group(1).casefold()]
        rest = (TEXT_OPEN if is_marked else "") + rest[multiple.end():]
    unit = read_unit(rest)
    if unit is None or (unit and currency and unit != currency):
        return None
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


def read_unit(rest: str) -> str | None:
    """The canonical unit that the text is, "" for none or for words that only say what is counted, None if it is
    something else."""
    rest = rest.strip()
    if not rest or _ORDINAL.fullmatch(rest):
        return ""
    found = _UNIT.fullmatch(rest)
    if found is None:
        return None
    text, power = found.group(1), found.group(2) or ""
    is_marked = text.startswith(TEXT_OPEN)
    text = text.strip(TEXT_OPEN + TEXT_CLOSE).strip()
    if is_marked and not power and (inside := _POWER_IN_TEXT.fullmatch(text)):
        text, power = inside.groups()
    words = [word.rstrip(".,") for word in text.casefold().replace("°", "° ").split()]
    if not words or words == [""]:
        return "" if not power else None
    if len(words) > 6 or any(word.strip("()") in _NO_UNITS or any(map(str.isdigit, word)) for word in words):
        return None
    is_known = words[0] in _BARE_UNITS or _singular(words[0]) in _BARE_UNITS or words[0][:1] in "%°$€£¥¢"
    if not is_marked and not is_known and (len(words[0]) < 4 or words[0].startswith(_FUNCTIONS)):
        return None
    return _canonical_unit(words, power)


def unit_of_letter(letter: str, power: str) -> str:
    """The unit that a single letter is (m, s, N), "" for none; its power is written as in other units."""
    name = _UNIT_NAMES.get(letter.casefold(), "")
    return name + (f"^{power}" if power and name else "")


def _canonical_unit(words: list[str], power: str) -> str:
    """"square meters" and "m^2" are m^2; unlisted words are ""."""
    if {_singular(word) for word in words} <= _GENERIC:
        return ""
    if words[0] in ("square", "sq") and len(words) > 1:
        words, power = words[1:], "2"
    elif words[0] == "cubic" and len(words) > 1:
        words, power = words[1:], "3"
    if "per" in words[1:-1]:
        at = words.index("per")
        over, under = _name(words[:at]), _name(words[at + 1:])
        return _UNIT_NAMES.get(f"{over}/{under}", f"{over}/{under}") if over and under else ""
    name = _name(words)
    return "" if not name else name + (f"^{power}" if power else "")


def _name(words: list[str]) -> str:
    joined = "".join(words) if len(words) == 1 or words[0] == "°" else words[0]
    return next((_UNIT_NAMES[word] for word in (joined, _singular(joined)) if word in _UNIT_NAMES), "")


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
