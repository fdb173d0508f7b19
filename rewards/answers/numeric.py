"""Two trees of terms -> are they the same function of their variables? Decided by values at fixed points, to 40 digits.

Two different expressions made of roots, powers and elementary functions agree to 40 digits at several points of no
special form only by a miracle, and a right identity always does: so one evaluation replaces a simplifier that may hang.
Variables are positive and negative in turn, unless a root or logarithm of them is taken. What a term is at a point, and
when it has no value there, is rewards/answers/values.py's business; without values nothing is decided (None).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards.answers import values
from rewards.answers.terms import Term, variables
from rewards.answers.values import TOP, WHICH, WORK, HopelessError, UndecidedError, Work, context, evaluate, is_real

_SLACK_BITS = 190  # between the largest number met and the last bit
_NUM_POINTS = 3
_NUM_POINTS_PIECEWISE = 10
_PIECEWISE = frozenset(("floor", "ceil", "min", "max", "binom", "gcd", "lcm"))
_LOCK = threading.RLock()  # the precision is the context's
_FRACTIONAL = frozenset(("root", "log", "ln", "arcsin", "arccos", "factorial"))


def same(first: Term, second: Term, work: Work | None = None) -> bool | None:
    """True or False where values decide, else None. Raises nothing; `work` shrinks by what was computed."""
    if first == second:
        return True
    work = work or Work()
    try:
        with _LOCK:
            is_same = all(_same_at(first, second, {**point, WORK: work}) for point in _points(first, second))
            return is_same and _same_where_both_are_real(first, second, work)
    except UndecidedError:
        return None


def _same_where_both_are_real(first: Term, second: Term, work: Work) -> bool:
    """At points with negative numbers, where roots keep them out of _points: sqrt(x^2) is |x|, not x."""
    names = variables(first) | variables(second)
    if len(names) != 1 or not (_takes_roots(first) or _takes_roots(second)):
        return True  # with more variables two complex roots may multiply to a real number
    for i in (1, 3):
        point = {name: values.value_at(name, i, True) for name in names} | {WHICH: i, WORK: work}
        try:
            if all(is_real(evaluate(term, point)) for term in (first, second)) and not _same_at(first, second, point):
                return False
        except HopelessError:
            raise
        except UndecidedError:
            continue
    return True


def _same_at(first: Term, second: Term, point: Mapping[str, Any]) -> bool:
    """At one point, with as many digits as the largest summand met takes, so that 2022! - 1 is not 2022! - 2."""
    mp = context()
    try:
        for _ in range(2):
            top: list[int] = [values.NOTHING]
            left, right = (evaluate(term, {**point, TOP: top}) for term in (first, second))
            size = max(abs(left), abs(right))
            largest = max(top[0], mp.mag(size) if size else values.NOTHING)
            if largest + _SLACK_BITS <= mp.prec:
                break
            if largest > values.MAX_PRECISION:
                raise UndecidedError
            mp.prec = largest + _SLACK_BITS
        noise = mp.ldexp(1, top[0] - mp.prec + _SLACK_BITS // 2)
        return bool(abs(left - right) <= max(noise, min(size, 1) * mp.mpf(10) ** -values.AGREE))
    finally:
        mp.dps = values.DIGITS


def has_value(term: Term) -> bool:
    """Whether the term can be evaluated here at its first point."""
    (point, *_) = _points(term, term)
    try:
        evaluate(term, {**point, WORK: Work()})
    except UndecidedError:
        return values.infinite_sign(term) is not None
    return True


def hopeless(term: Term, work: Work) -> bool:
    """Whether the term's value could not be computed by anybody: a tower of powers, a factorial of a factorial."""
    (point, *_) = _points(term, term)
    try:
        evaluate(term, {**point, WORK: work})
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
        ratio = _ratio(evaluate(first, {**points[0], WORK: work}), evaluate(second, {**points[0], WORK: work}))
        if ratio is None or not is_real(ratio) or (positive and context().re(ratio) < 0):
            return False
        with _LOCK:  # first = factor * second at all points, the factor from the first one to a few digits more
            factor = _fraction_near(context().re(ratio))
            scaled = Term("*", (Term("number", value=factor), second)) if factor is not None else None
            if scaled is not None:
                return all(_same_at(first, scaled, {**point, WORK: work}) for point in points)
        ratios = [
            _ratio(evaluate(first, {**point, WORK: work}), evaluate(second, {**point, WORK: work}))
            for point in points]
    except UndecidedError:
        return None
    return all(other is not None and values.is_close(other, ratio) for other in ratios)


def _fraction_near(value: Any) -> Fraction | None:
    """The fraction of small numerator and denominator that the value is to 40 digits, None if it is none."""
    fraction = Fraction(str(context().nstr(value, 50, min_fixed=-60, max_fixed=60))).limit_denominator(10**9)
    distance = abs(context().mpf(fraction.numerator) / fraction.denominator - value)
    return fraction if fraction and distance <= abs(value) * context().mpf(10) ** -values.AGREE else None


def _points(first: Term, second: Term, count: int = _NUM_POINTS) -> Sequence[Mapping[str, Any]]:
    names = variables(first) | variables(second)
    if not names:
        return ({},)
    signed = not (_takes_roots(first) or _takes_roots(second))
    if _is_piecewise(first) or _is_piecewise(second):
        return [
            {name: values.value_at(name, i, i % 3 > 0, wide=True) for name in names} | {WHICH: i}
            for i in range(_NUM_POINTS_PIECEWISE)]
    return [{name: values.value_at(name, i, signed) for name in names} | {WHICH: i} for i in range(count)]


def _takes_roots(term: Term) -> bool:
    """Whether a root, logarithm or the like is taken of something with a variable in it."""
    has_variable = bool(variables(term))
    fractional = term.op in _FRACTIONAL or (
        term.op == "^" and ((power := values.exact(term.args[1])) is None or power.denominator != 1))
    return (has_variable and fractional) or any(map(_takes_roots, term.args))


def _is_piecewise(term: Term) -> bool:
    return term.op in _PIECEWISE or any(map(_is_piecewise, term.args))


def _ratio(left: Any, right: Any) -> Any | None:
    tiny = context().mpf(10) ** -values.AGREE
    return None if abs(left) < tiny or abs(right) < tiny else left / right
