"""Two trees of terms -> are they the same function of their variables? Decided by values at fixed points, to 40 digits.

Two different expressions made of roots, powers and elementary functions agree to 40 digits at several points of no
special form only by a miracle, and a right identity always does: so one evaluation replaces a simplifier that may hang.
The points depend on the variables' names alone. Letters that usually count (n, m, k) get integers, so that (-1)^(2n) is
1; others are positive and negative in turn, unless a root or logarithm of them is taken. Roots of odd degree of
negative numbers are real: (-8)^(1/3) is -2. None, not decided, for what has no value there (1/0), is too large to write
down (9^9^9^9), or is infinite. Nothing is
computed that is large: magnitudes are bounded before each operation.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from rewards.answers.expression import parse
from rewards.answers.terms import Term, variables

_DIGITS = 60
_AGREE = 40  # digits
_MAX_LOG2 = 100_000.0  # values lie between 2^-this and 2^this
_HOPELESS_LOG2 = 1e7
_HOPELESS_FACTORIAL = 100_000
_MAX_BITS = 3300  # of exact values: about as many digits as rewards/answers/quantity.py keeps in a Fraction
_SLACK_BITS = 190  # between the largest number met and the last bit
_MAX_PRECISION = 60_000  # bits
_NOTHING = -10 * _MAX_PRECISION  # the binary exponent of what is not there
# What leaves a value's relative error as it is. Sums and functions cancel: what they leave is known to the last bit of
# what they got.
_KEEPS_RELATIVE_PRECISION = frozenset((
    "*", "/", "invert", "negate", "abs", "degrees", "exp", "factorial", "binom", "max", "min", "gcd", "lcm"))
_NUM_POINTS = 3
_NUM_POINTS_PIECEWISE = 10
_COSTLY = {"factorial": 30, "binom": 30, "^": 3, "root": 3}  # what a term takes, as a multiple of an addition
_PIECEWISE = frozenset(("floor", "ceil", "min", "max", "binom", "gcd", "lcm"))
_MAX_SUMMANDS = 200
# Keys of a point beside its variables: its number, whether an index runs, the work left, the largest binary exponent of
# what was added up or given to a function.
_WHICH, _IN_SUM, _WORK, _TOP = "", "\0", "\1", "\2"
_LOCK = threading.RLock()  # the precision is the context's
_INTEGERS = frozenset("nmk")
_FRACTIONAL = frozenset(("root", "log", "ln", "arcsin", "arccos", "factorial"))


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


def same(first: Term, second: Term, work: Work | None = None) -> bool | None:
    """True or False where values decide, else None. Raises nothing; `work` shrinks by what was computed."""
    if first == second:
        return True
    work = work or Work()
    try:
        with _LOCK:
            return all(
                _same_at(first, second, {**point, _WORK: work}) for point in _points(first, second)
            ) and _same_where_both_are_real(first, second, work)
    except UndecidedError:
        return None


def _same_where_both_are_real(first: Term, second: Term, work: Work) -> bool:
    """At points with negative numbers, where roots keep them out of _points: sqrt(x^2) is |x|, not x."""
    names = variables(first) | variables(second)
    if len(names) != 1 or not (_takes_roots(first) or _takes_roots(second)):
        return True  # with more variables two complex roots may multiply to a real number
    for i in (1, 3):
        point = {name: _value_at(name, i, True) for name in names} | {_WHICH: i, _WORK: work}
        try:
            if all(_is_real(evaluate(term, point)) for term in (first, second)) and not _same_at(first, second, point):
                return False
        except HopelessError:
            raise
        except UndecidedError:
            continue
    return True


def _same_at(first: Term, second: Term, point: Mapping[str, Any]) -> bool:
    """At one point, with as many digits as the largest summand met takes, so that 2022! - 1 is not 2022! - 2."""
    context = _context()
    try:
        for _ in range(2):
            top: list[int] = [_NOTHING]
            values = [evaluate(term, {**point, _TOP: top}) for term in (first, second)]
            size = max(map(abs, values))
            largest = max(top[0], context.mag(size) if size else _NOTHING)
            if largest + _SLACK_BITS <= context.prec:
                break
            if largest > _MAX_PRECISION:
                raise UndecidedError
            context.prec = largest + _SLACK_BITS
        noise = context.ldexp(1, top[0] - context.prec + _SLACK_BITS // 2)
        return bool(abs(values[0] - values[1]) <= max(noise, min(size, 1) * context.mpf(10) ** -_AGREE))
    finally:
        context.dps = _DIGITS


def has_value(term: Term) -> bool:
    """Whether the term can be evaluated here at its first point."""
    (point, *_) = _points(term, term)
    try:
        evaluate(term, {**point, _WORK: Work()})
    except UndecidedError:
        return infinite_sign(term) is not None
    return True


def hopeless(term: Term, work: Work) -> bool:
    """Whether the term's value could not be computed by anybody: a tower of powers, a factorial of a factorial."""
    (point, *_) = _points(term, term)
    try:
        evaluate(term, {**point, _WORK: work})
    except HopelessError:
        return True
    except UndecidedError:
        pass
    return False


def proportional(first: Term, second: Term, work: Work | None = None, *, positive: bool = False) -> bool | None:
    """Whether first = c * second for a constant c that is not 0 (above 0 if positive): the equations first = 0 and
    second = 0 are one.

    None where values do not decide, False for constants.
    """
    if not variables(first) or variables(first) != variables(second):
        return False
    work = work or Work()
    points = _points(first, second, _NUM_POINTS + 2)
    try:
        ratio = _ratio(evaluate(first, {**points[0], _WORK: work}), evaluate(second, {**points[0], _WORK: work}))
        if ratio is None or not _is_real(ratio) or (positive and _context().re(ratio) < 0):
            return False
        with _LOCK:  # first = factor * second at all points, the factor from the first one to a few digits more
            factor = _fraction_near(_context().re(ratio))
            scaled = Term("*", (Term("number", value=factor), second)) if factor is not None else None
            if scaled is not None:
                return all(_same_at(first, scaled, {**point, _WORK: work}) for point in points)
        ratios = [
            _ratio(evaluate(first, {**point, _WORK: work}), evaluate(second, {**point, _WORK: work}))
            for point in points]
    except UndecidedError:
        return None
    return all(other is not None and _close(other, ratio) for other in ratios)


def _fraction_near(value: Any) -> Fraction | None:
    """The fraction of small numerator and denominator that the value is to 40 digits, None if it is none."""
    fraction = Fraction(str(_context().nstr(value, 50, min_fixed=-60, max_fixed=60))).limit_denominator(10**9)
    close = (
        abs(_context().mpf(fraction.numerator) / fraction.denominator - value)
        <= abs(value) * _context().mpf(10) ** -_AGREE)
    return fraction if close and fraction else None


def real_value(term: Term) -> Any | None:
    """The value of a term without variables as a real mpf, +-inf included; None if it has none."""
    if variables(term):
        return None
    if (sign := infinite_sign(term)) is not None:
        return _context().inf * sign
    try:
        value = evaluate(term, {})
    except UndecidedError:
        return None
    return _context().re(value) if _is_real(value) else None


def infinite_sign(term: Term) -> int | None:
    """1 or -1 for plus or minus infinity, None for everything else."""
    if term.op == "negate":
        sign = infinite_sign(term.args[0])
        return None if sign is None else -sign
    return 1 if term == Term("constant", name="infinity") else None


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


@cache
def _context() -> Any:
    from mpmath import MPContext

    context = MPContext()
    context.dps = _DIGITS
    return context


def _points(first: Term, second: Term, count: int = _NUM_POINTS) -> Sequence[Mapping[str, Any]]:
    names = variables(first) | variables(second)
    if not names:
        return ({},)
    signed = not (_takes_roots(first) or _takes_roots(second))
    if _is_piecewise(first) or _is_piecewise(second):
        return [
            {name: _value_at(name, i, i % 3 > 0, wide=True) for name in names} | {_WHICH: i}
            for i in range(_NUM_POINTS_PIECEWISE)]
    return [{name: _value_at(name, i, signed) for name in names} | {_WHICH: i} for i in range(count)]


def _takes_roots(term: Term) -> bool:
    """Whether a root, logarithm or the like is taken of something with a variable in it."""
    has_variable = bool(variables(term))
    fractional = term.op in _FRACTIONAL or (
        term.op == "^" and ((power := exact(term.args[1])) is None or power.denominator != 1))
    return (has_variable and fractional) or any(map(_takes_roots, term.args))


def _is_piecewise(term: Term) -> bool:
    return term.op in _PIECEWISE or any(map(_is_piecewise, term.args))


@lru_cache(maxsize=4096)
def _value_at(name: str, i: int, signed: bool, *, wide: bool = False) -> Any:
    digest = int.from_bytes(hashlib.blake2b(f"{name} {i}".encode(), digest_size=6).digest(), "big")
    if wide:  # integers for the letters that count and now and then for the others, up to some hundred
        whole = 3 + digest % (17 if i % 2 else 400)
        part = 0 if name in _INTEGERS or i % 4 == 3 else digest % 97
        value = whole + _context().mpf(part) / 97
        return -value if signed and digest % 2 and name not in _INTEGERS else value
    if name in _INTEGERS:
        return _context().mpf(3 + 2 * i + digest % 2 + (i == 2) * 4)
    size = Fraction(1, 2) + Fraction(digest, 2**47)  # in [0.5, 2.5)
    return _context().mpf(size.numerator) / size.denominator * (-1 if signed and i % 2 else 1)


def _close(left: Any, right: Any) -> bool:
    context = _context()
    size = max(abs(left), abs(right))
    return bool(abs(left - right) <= size * context.mpf(10) ** -_AGREE or size < context.mpf(10) ** -(_DIGITS - 8))


def _is_real(value: Any) -> bool:
    context = _context()
    return bool(abs(context.im(value)) <= abs(value) * context.mpf(10) ** -_AGREE)


def _ratio(left: Any, right: Any) -> Any | None:
    tiny = _context().mpf(10) ** -_AGREE
    return None if abs(left) < tiny or abs(right) < tiny else left / right


def _bounded(value: Any) -> Any:
    context = _context()
    if not context.isfinite(value):
        raise UndecidedError
    size = abs(value)
    if size and abs(context.mag(size)) > _MAX_LOG2:
        raise UndecidedError
    return value


def evaluate(term: Term, point: Mapping[str, Any]) -> Any:
    """The value at a point, an mpf or mpc of the context's digits. Raises UndecidedError."""
    if _WORK in point:
        point[_WORK].spend(_COSTLY.get(term.op, 1))
    if term.op == "number":
        if max(term.value.numerator.bit_length(), term.value.denominator.bit_length()) > 2 * _MAX_LOG2:
            raise UndecidedError
        return _context().mpf(term.value.numerator) / term.value.denominator
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
    if _TOP in point and term.op not in _KEEPS_RELATIVE_PRECISION:
        point[_TOP][0] = max(point[_TOP][0], *(_context().mag(value) if value else _NOTHING for value in values))
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
        evaluate(term.args[2], {**point, term.name: _context().mpf(k), _IN_SUM: True}) for k in range(low, high + 1)]
    return _bounded(sum(values, _context().mpf(0)) if term.op == "sum" else _product([_context().mpf(1), *values]))


def _of_sequence(name: str, point: Mapping[str, Any]) -> Any:
    """F_{n-k-1} under an index: the member of the sequence F that the subscript's value names."""
    base, _, subscript = name.partition("_")
    term = parse(subscript)
    if term is None:
        return point[name]
    (member,) = _whole(evaluate(term, point))
    return _value_at(f"{base}_{member}", point.get(_WHICH, 0), False)


def _constant(name: str) -> Any:
    context = _context()
    if name == "infinity":
        raise UndecidedError
    return {"pi": +context.pi, "e": +context.e, "i": context.j}[name]


def _power(term: Term, point: Mapping[str, Any]) -> Any:
    base = evaluate(term.args[0], point)
    power = exact(term.args[1])
    if power is not None:
        return _rational_power(base, power)
    return _general_power(base, evaluate(term.args[1], point))


def _rational_power(base: Any, power: Fraction) -> Any:
    """base^power; real for a negative base and an odd denominator."""
    context = _context()
    if _is_real(base) and context.re(base) < 0 and power.denominator % 2 and power.denominator != 1:
        root = _general_power(-context.re(base), context.mpf(1) / power.denominator)
        return _general_power(-root, context.mpf(power.numerator))
    return _general_power(base, context.mpf(power.numerator) / power.denominator)


def _general_power(base: Any, power: Any) -> Any:
    context = _context()
    if base == 0:
        if not _is_real(power) or context.re(power) <= 0:
            raise UndecidedError
        return context.mpf(0)
    if (bits := abs(power) * (abs(float(context.mag(base))) + 1)) > _MAX_LOG2:
        raise HopelessError if bits > _HOPELESS_LOG2 else UndecidedError
    if _is_real(power) and context.isint(context.re(power)):
        return _bounded(base ** int(context.re(power)))
    return _bounded(context.power(base, power))


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
    context = _context()
    if not all(
        _is_real(value)
        and abs(value - context.nint(context.re(value))) < context.mpf(10) ** -_AGREE
        and abs(value) < 10**30
        for value in values
    ):
        raise UndecidedError
    return [int(context.nint(context.re(value))) for value in values]


def _factorial(value: Any) -> Any:
    if abs(value) > 5000:
        raise HopelessError if abs(value) > _HOPELESS_FACTORIAL else UndecidedError
    return _context().factorial(value)


def _binomial(n: Any, k: Any) -> Any:
    if max(abs(n), abs(k)) > 5000:
        raise UndecidedError
    return _context().binomial(n, k)


def _floor(value: Any) -> Any:
    """The floor of a real number; a whole number up to rounding is itself."""
    context = _context()
    if not _is_real(value):
        raise UndecidedError
    value = context.re(value)
    nearest = context.nint(value)
    return nearest if abs(value - nearest) < context.mpf(10) ** -_AGREE * max(1, abs(value)) else context.floor(value)


def _exp(value: Any) -> Any:
    if abs(value) > _MAX_LOG2 / 2:
        raise UndecidedError
    return _context().exp(value)


def _reals(*values: Any) -> list[Any]:
    if not all(map(_is_real, values)):
        raise UndecidedError
    return [_context().re(value) for value in values]


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "+": lambda *values: sum(values),
    "*": lambda *values: _product(values),
    "/": lambda over, under: over / under,
    "invert": lambda value: 1 / value,
    "negate": lambda value: -value,
    "degrees": lambda value: value * _context().pi / 180,
    "abs": abs,
    "floor": _floor,
    "ceil": lambda value: -_floor(-value),
    "factorial": _factorial,
    "binom": _binomial,
    "exp": _exp,
    "sin": lambda value: _context().sin(_angle(value)),
    "cos": lambda value: _context().cos(_angle(value)),
    "tan": lambda value: _nonzero_cos(value, _context().tan),
    "cot": lambda value: _context().cot(_angle(value)),
    "sec": lambda value: _nonzero_cos(value, _context().sec),
    "csc": lambda value: _context().csc(_angle(value)),
    "arcsin": lambda value: _context().asin(value),
    "arccos": lambda value: _context().acos(value),
    "arctan": lambda value: _context().atan(value),
    "sinh": lambda value: (_exp(value) - _exp(-value)) / 2,
    "cosh": lambda value: (_exp(value) + _exp(-value)) / 2,
    "tanh": lambda value: _context().tanh(value),
    "ln": lambda value: _context().log(value),
    "log": lambda base, value: _context().log(value) / _context().log(base),
    "max": lambda *values: max(_reals(*values)),
    "min": lambda *values: min(_reals(*values)),
    "gcd": lambda *values: _context().mpf(math.gcd(*_whole(*values))),
    "lcm": lambda *values: _context().mpf(math.lcm(*_whole(*values))),
}


def _nonzero_cos(value: Any, function: Callable[[Any], Any]) -> Any:
    """tan and sec have a pole where rounding leaves a huge number."""
    if abs(_context().cos(_angle(value))) < _context().mpf(10) ** -_AGREE:
        raise UndecidedError
    return function(value)


def infinity() -> Any:
    return _context().inf


def near(left: Any, right: Any) -> bool:
    """Whether two real values agree to 40 digits; infinities are near themselves."""
    return bool(left == right) or (
        bool(_context().isfinite(left)) and bool(_context().isfinite(right)) and _close(left, right))
