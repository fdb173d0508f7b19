"""A tree of terms -> its value at a point, to 60 digits, or exactly where it is made of fractions.

A point gives each variable a value of no special form, which depends on the variable's name alone (`value_at`). Letters
that usually count (n, m, k) get integers, so that (-1)^(2n) is 1. Roots of odd degree of negative numbers are real:
(-8)^(1/3) is -2. What has no value (1/0), is infinite, or is too large to write down (9^9^9^9) raises UndecidedError:
nothing is computed that is large, magnitudes are bounded before each operation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from rewards.answers.expression import parse
from rewards.answers.terms import Term, variables

DIGITS = 60
AGREE = 40  # digits
_MAX_LOG2 = 100_000.0  # values lie between 2^-this and 2^this
_HOPELESS_LOG2 = 1e7
_HOPELESS_FACTORIAL = 100_000
_MAX_BITS = 3300  # of exact values: about as many digits as rewards/answers/quantity.py keeps in a Fraction
MAX_PRECISION = 60_000  # bits
NOTHING = -10 * MAX_PRECISION  # the binary exponent of what is not there
# What leaves a value's relative error as it is. Sums and functions cancel: what they leave is known to the last bit of
# what they got.
_KEEPS_RELATIVE_PRECISION = frozenset((
    "*", "/", "invert", "negate", "abs", "degrees", "exp", "factorial", "binom", "max", "min", "gcd", "lcm"))
_COSTLY = {"factorial": 30, "binom": 30, "^": 3, "root": 3}  # what a term takes, as a multiple of an addition
_MAX_SUMMANDS = 200
# Keys of a point beside its variables: its number, whether an index runs, the work left, the largest binary exponent of
# what was added up or given to a function.
WHICH, _IN_SUM, WORK, TOP = "", "\0", "\1", "\2"
_INTEGERS = frozenset("nmk")


class UndecidedError(Exception):
    """A value that does not exist, or that this module refuses to compute."""


class HopelessError(UndecidedError):
    """A value so large that nobody could compute it, computer algebra included: asking would only cost a deadline."""


@dataclass(slots=True)
class Work:
    """What may still be computed, in terms evaluated: so that one comparison is short whatever is compared, on any
    machine alike."""

    left: int = 60_000

    def spend(self, terms: int = 1) -> None:
        self.left -= terms
        if self.left < 0:
            raise HopelessError


@cache
def context() -> Any:
    """mpmath's arithmetic with DIGITS digits; whoever changes its precision sets it back."""
    from mpmath import MPContext

    mp = MPContext()
    mp.dps = DIGITS
    return mp


def evaluate(term: Term, point: Mapping[str, Any]) -> Any:
    """The value at a point, an mpf or mpc of the context's digits. Raises UndecidedError."""
    if WORK in point:
        point[WORK].spend(_COSTLY.get(term.op, 1))
    if term.op == "number":
        if max(term.value.numerator.bit_length(), term.value.denominator.bit_length()) > 2 * _MAX_LOG2:
            raise UndecidedError
        return context().mpf(term.value.numerator) / term.value.denominator
    if term.op == "variable":
        return _of_sequence(term.name, point) if _IN_SUM in point and "_" in term.name else point[term.name]
    if term.op in ("sum", "prod"):
        return _sum_over(term, point)
    if term.op == "constant":
        return _constant(term.name)
    if term.op == "^":
        return _power(term, point)
    if term.op == "root":
        degree = exact(term.args[0])
        if degree is None or degree.denominator != 1 or not 0 < degree < 1000:
            raise UndecidedError
        return _rational_power(evaluate(term.args[1], point), 1 / degree)
    values = [evaluate(arg, point) for arg in term.args]
    if TOP in point and term.op not in _KEEPS_RELATIVE_PRECISION:
        point[TOP][0] = max(point[TOP][0], *(context().mag(value) if value else NOTHING for value in values))
    try:
        return _bounded(_OPERATIONS[term.op](*values))
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise UndecidedError from error


def _sum_over(term: Term, point: Mapping[str, Any]) -> Any:
    """The sum or product over an index; one that is infinite or long is undecided."""
    low, high = _whole(evaluate(term.args[0], point), evaluate(term.args[1], point))
    if high - low > _MAX_SUMMANDS or _IN_SUM in point:
        raise UndecidedError
    values = [
        evaluate(term.args[2], {**point, term.name: context().mpf(k), _IN_SUM: True}) for k in range(low, high + 1)]
    return _bounded(sum(values, context().mpf(0)) if term.op == "sum" else _product([context().mpf(1), *values]))


def _of_sequence(name: str, point: Mapping[str, Any]) -> Any:
    """F_{n-k-1} under an index: the member of the sequence F that the subscript's value names."""
    base, _, subscript = name.partition("_")
    term = parse(subscript)
    if term is None:
        return point[name]
    (member,) = _whole(evaluate(term, point))
    return value_at(f"{base}_{member}", point.get(WHICH, 0), False)


def _constant(name: str) -> Any:
    mp = context()
    if name == "infinity":
        raise UndecidedError
    return {"pi": +mp.pi, "e": +mp.e, "i": mp.j}[name]


def _power(term: Term, point: Mapping[str, Any]) -> Any:
    base = evaluate(term.args[0], point)
    power = exact(term.args[1])
    if power is not None:
        return _rational_power(base, power)
    return _general_power(base, evaluate(term.args[1], point))


def _rational_power(base: Any, power: Fraction) -> Any:
    """base^power; real for a negative base and an odd denominator."""
    mp = context()
    if is_real(base) and mp.re(base) < 0 and power.denominator % 2 and power.denominator != 1:
        root = _general_power(-mp.re(base), mp.mpf(1) / power.denominator)
        return _general_power(-root, mp.mpf(power.numerator))
    return _general_power(base, mp.mpf(power.numerator) / power.denominator)


def _general_power(base: Any, power: Any) -> Any:
    mp = context()
    if base == 0:
        if not is_real(power) or mp.re(power) <= 0:
            raise UndecidedError
        return mp.mpf(0)
    if (bits := abs(power) * (abs(float(mp.mag(base))) + 1)) > _MAX_LOG2:
        raise HopelessError if bits > _HOPELESS_LOG2 else UndecidedError
    if is_real(power) and mp.isint(mp.re(power)):
        return _bounded(base ** int(mp.re(power)))
    return _bounded(mp.power(base, power))


def _product(values: Sequence[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = _bounded(result * value)
    return result


def _angle(value: Any) -> Any:
    if abs(value) > 10**9:
        raise UndecidedError
    return value


def _whole(*values: Any) -> list[int]:
    mp = context()
    if not all(
        is_real(value)
        and abs(value - mp.nint(mp.re(value))) < mp.mpf(10) ** -AGREE
        and abs(value) < 10**30
        for value in values
    ):
        raise UndecidedError
    return [int(mp.nint(mp.re(value))) for value in values]


def _factorial(value: Any) -> Any:
    if abs(value) > 5000:
        raise HopelessError if abs(value) > _HOPELESS_FACTORIAL else UndecidedError
    return context().factorial(value)


def _binomial(n: Any, k: Any) -> Any:
    if max(abs(n), abs(k)) > 5000:
        raise UndecidedError
    return context().binomial(n, k)


def _floor(value: Any) -> Any:
    """The floor of a real number; a whole number up to rounding is itself."""
    mp = context()
    if not is_real(value):
        raise UndecidedError
    value = mp.re(value)
    nearest = mp.nint(value)
    return nearest if abs(value - nearest) < mp.mpf(10) ** -AGREE * max(1, abs(value)) else mp.floor(value)


def _exp(value: Any) -> Any:
    if abs(value) > _MAX_LOG2 / 2:
        raise UndecidedError
    return context().exp(value)


def _reals(*values: Any) -> list[Any]:
    if not all(map(is_real, values)):
        raise UndecidedError
    return [context().re(value) for value in values]


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "+": lambda *values: sum(values),
    "*": lambda *values: _product(values),
    "/": lambda over, under: over / under,
    "invert": lambda value: 1 / value,
    "negate": lambda value: -value,
    "degrees": lambda value: value * context().pi / 180,
    "abs": abs,
    "floor": _floor,
    "ceil": lambda value: -_floor(-value),
    "factorial": _factorial,
    "binom": _binomial,
    "exp": _exp,
    "sin": lambda value: context().sin(_angle(value)),
    "cos": lambda value: context().cos(_angle(value)),
    "tan": lambda value: _nonzero_cos(value, context().tan),
    "cot": lambda value: context().cot(_angle(value)),
    "sec": lambda value: _nonzero_cos(value, context().sec),
    "csc": lambda value: context().csc(_angle(value)),
    "arcsin": lambda value: context().asin(value),
    "arccos": lambda value: context().acos(value),
    "arctan": lambda value: context().atan(value),
    "sinh": lambda value: (_exp(value) - _exp(-value)) / 2,
    "cosh": lambda value: (_exp(value) + _exp(-value)) / 2,
    "tanh": lambda value: context().tanh(value),
    "ln": lambda value: context().log(value),
    "log": lambda base, value: context().log(value) / context().log(base),
    "max": lambda *values: max(_reals(*values)),
    "min": lambda *values: min(_reals(*values)),
    "gcd": lambda *values: context().mpf(math.gcd(*_whole(*values))),
    "lcm": lambda *values: context().mpf(math.lcm(*_whole(*values))),
}


def _nonzero_cos(value: Any, function: Callable[[Any], Any]) -> Any:
    """tan and sec have a pole where rounding leaves a huge number."""
    if abs(context().cos(_angle(value))) < context().mpf(10) ** -AGREE:
        raise UndecidedError
    return function(value)


def _bounded(value: Any) -> Any:
    mp = context()
    if not mp.isfinite(value):
        raise UndecidedError
    size = abs(value)
    if size and abs(mp.mag(size)) > _MAX_LOG2:
        raise UndecidedError
    return value


def exact(term: Term) -> Fraction | None:
    """The value of a term made of numbers, + - * / and small integer powers; None for others."""
    if term.op == "number":
        return term.value
    if term.op not in ("+", "*", "/", "^", "negate", "invert"):
        return None
    values: list[Fraction] = []
    for arg in term.args:
        if (value := exact(arg)) is None:
            return None
        values.append(value)
    if term.op == "negate":
        result = -values[0]
    elif term.op == "+":
        result = sum(values, Fraction(0))
    elif term.op == "*":
        result = math.prod(values, start=Fraction(1))
    elif term.op == "^":
        base, power = values
        bits = math.log2(max(abs(base.numerator), base.denominator))
        if power.denominator != 1 or bits * abs(power) > _MAX_BITS or (base == 0 and power < 0):
            return None
        result = base ** int(power)
    else:
        over, under = values if term.op == "/" else (Fraction(1), values[0])
        if not under:
            return None
        result = over / under
    return result if max(result.numerator.bit_length(), result.denominator.bit_length()) <= _MAX_BITS else None


@lru_cache(maxsize=4096)
def value_at(name: str, i: int, signed: bool, *, wide: bool = False) -> Any:
    """What stands for a variable at point i. signed: negative at every other point. wide: far apart, for functions with
    steps."""
    digest = int.from_bytes(hashlib.blake2b(f"{name} {i}".encode(), digest_size=6).digest(), "big")
    if wide:  # integers for the letters that count and now and then for the others, up to some hundred
        whole = 3 + digest % (17 if i % 2 else 400)
        part = 0 if name in _INTEGERS or i % 4 == 3 else digest % 97
        value = whole + context().mpf(part) / 97
        return -value if signed and digest % 2 and name not in _INTEGERS else value
    if name in _INTEGERS:
        return context().mpf(3 + 2 * i + digest % 2 + (i == 2) * 4)
    size = Fraction(1, 2) + Fraction(digest, 2**47)  # in [0.5, 2.5)
    return context().mpf(size.numerator) / size.denominator * (-1 if signed and i % 2 else 1)


def real_value(term: Term) -> Any | None:
    """The value of a term without variables as a real mpf, +-inf included; None if it has none."""
    if variables(term):
        return None
    if (sign := infinite_sign(term)) is not None:
        return context().inf * sign
    try:
        value = evaluate(term, {})
    except UndecidedError:
        return None
    return context().re(value) if is_real(value) else None


def infinite_sign(term: Term) -> int | None:
    """1 or -1 for plus or minus infinity, None for everything else."""
    if term.op == "negate":
        sign = infinite_sign(term.args[0])
        return None if sign is None else -sign
    return 1 if term == Term("constant", name="infinity") else None


def is_close(left: Any, right: Any) -> bool:
    mp = context()
    size = max(abs(left), abs(right))
    return bool(abs(left - right) <= size * mp.mpf(10) ** -AGREE or size < mp.mpf(10) ** -(DIGITS - 8))


def is_real(value: Any) -> bool:
    mp = context()
    return bool(abs(mp.im(value)) <= abs(value) * mp.mpf(10) ** -AGREE)


def infinity() -> Any:
    return context().inf


def near(left: Any, right: Any) -> bool:
    """Whether two real values agree to 40 digits; infinities are near themselves."""
    return bool(left == right) or (
        bool(context().isfinite(left)) and bool(context().isfinite(right)) and is_close(left, right))
