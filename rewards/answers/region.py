"""A tree -> a set of real numbers, where it describes one: so that [-2, 7], -2 <= x <= 7 and x \\in [-2, 7] are the
same answer.

A region is a sorted union of disjoint intervals; a point is [a, a]. End points are numbers without variables, to 60
digits. Intervals with variables in them stay sequences, compared item by item (rewards/answers/comparison.py).
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any

from rewards.answers.canonical import Canonical
from rewards.answers.expression import parse
from rewards.answers.quantity import Huge
from rewards.answers.terms import Term, number
from rewards.answers.trees import Collection, Node, Relation, Sequence, SetOperation
from rewards.answers.values import infinity, near, real_value

_EVERYTHING = frozenset(
    (
        "\\mathbb{R}", "all real numbers", "all reals", "real numbers", "all real values", "any real number", "reals",
        "all real number"))
_NOTHING = frozenset(
    (
        "\\emptyset", "no solution", "no solutions", "no real solution", "no real solutions", "empty set", "\\{\\}",
        "none"))
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Interval:
    """From low to high; closed: whether each end belongs to it."""

    low: Any
    low_closed: bool
    high: Any
    high_closed: bool


Region = tuple[Interval, ...]


def region(node: Node) -> Region | None:
    """The set of real numbers that the tree describes, None if it describes none."""
    if isinstance(node, Canonical):
        words = str(node.value) if node.kind == "text" else node.latex.replace(" ", "")
        return _everything() if words in _EVERYTHING else () if words in _NOTHING else None
    if isinstance(node, Sequence):
        return _interval(node)
    if isinstance(node, Relation):
        return _inequality(node)
    if isinstance(node, SetOperation):
        parts = [part for part in map(region, node.parts) if part is not None]
        return _combined(node.operation, parts) if len(parts) == len(node.parts) else None
    return _collection(node) if isinstance(node, Collection) else None


def same_region(first: Region, second: Region) -> bool:
    return len(first) == len(second) and all(
        near(left.low, right.low) and near(left.high, right.high)
        and (left.low_closed, left.high_closed) == (right.low_closed, right.high_closed)
        for left, right in zip(first, second, strict=True))


def value_of(node: Node) -> Any | None:
    """The real value of a leaf without variables, +-infinity included."""
    if not isinstance(node, Canonical) or (term := term_of(node)) is None:
        return None
    return real_value(term)


def term_of(leaf: Canonical) -> Term | None:
    """The leaf as a tree of terms; a single letter is a variable."""
    if leaf.term is not None:
        return leaf.term
    if leaf.kind == "number":
        return number(leaf.value) if not isinstance(leaf.value, (str, tuple)) else _huge(leaf.value)
    return parse(leaf.latex) if leaf.kind == "text" and len(str(leaf.value)) == 1 else None


def _huge(value: str | Huge) -> Term | None:
    if isinstance(value, str) or len(value[1]) > 1000 or abs(value[2]) > 10_000:
        return None
    power = Term("^", (number(10), number(value[2])))
    return Term("*", (number(-int(value[1]) if value[0] else int(value[1])), power))


def _everything() -> Region:
    return (Interval(-infinity(), False, infinity(), False),)


def _interval(node: Sequence) -> Region | None:
    if len(node.items) != 2 or node.brackets not in ("()", "[]", "(]", "[)"):
        return None
    low, high = value_of(node.items[0]), value_of(node.items[1])
    if low is None or high is None or low > high or (low == high and node.brackets != "[]"):
        return None  # a point of the plane, or no interval
    return _normal([Interval(low, node.brackets[0] == "[", high, node.brackets[1] == "]")])


def _inequality(node: Relation) -> Region | None:
    """x < 5, 1 < x <= 5, x != 3, x in (1, 2): one name and numbers."""
    if node.signs == ("in",):
        return region(node.parts[1]) if node.names[0] is not None else None
    if any(sign not in _TURNED for sign in node.signs):
        return None
    values = [value_of(part) for part in node.parts]
    named = [
        i for i, (name, value) in enumerate(zip(node.names, values, strict=True)) if name is not None and value is None]
    if len(named) != 1 or sum(value is None for value in values) != 1:
        return None
    at = named[0]
    result = _everything()
    for i, sign in enumerate(node.signs):
        if at not in (i, i + 1):
            return None  # 1 < 2 < x
        bound = values[i + 1] if at == i else values[i]
        result = _intersection(result, _half_line(sign if at == i else _TURNED[sign], bound))
    name = node.names[at]
    return _of_magnitude(result) if name is not None and name.startswith("|") else result


def _of_magnitude(sizes: Region) -> Region:
    """The x whose |x| is in the region."""
    from_zero = _intersection(sizes, (Interval(0, True, infinity(), False),))
    return _normal(
        [*from_zero, *(Interval(-part.high, part.high_closed, -part.low, part.low_closed) for part in from_zero)])


def _half_line(sign: str, bound: Any) -> Region:
    below, above = Interval(-infinity(), False, bound, sign == "<="), Interval(bound, sign == ">=", infinity(), False)
    return _normal([below, above] if sign == "!=" else [below] if sign in ("<", "<=") else [above])


def _collection(node: Collection) -> Region | None:
    if node.is_set:
        points = [point for point in map(value_of, node.items) if point is not None]
        if len(points) < len(node.items):
            return None
        return _normal([Interval(point, True, point, True) for point in points])
    found = [part for part in map(region, node.items) if part is not None]
    if len(found) < len(node.items) or not found:
        return None
    if any(isinstance(item, Relation) for item in node.items) and node.joined_by != "or":
        names = {name for item in node.items if isinstance(item, Relation) for name in item.names if name is not None}
        if len(names) > 1:
            return None
        both = _combined("intersection", found)
        if both or node.joined_by == "and":
            return both
    return _combined("union", found)


def _combined(operation: str, parts: Several[Region]) -> Region:
    result = parts[0]
    for part in parts[1:]:
        if operation == "union":
            result = _normal([*result, *part])
        else:
            result = _intersection(result, part if operation == "intersection" else _complement(part))
    return result


def _intersection(first: Region, second: Region) -> Region:
    found = []
    for left in first:
        for right in second:
            low, low_closed = max((left.low, not left.low_closed), (right.low, not right.low_closed))
            high, high_closed = min((left.high, left.high_closed), (right.high, right.high_closed))
            found.append(Interval(low, not low_closed, high, high_closed))
    return _normal(found)


def _complement(part: Region) -> Region:
    result = _everything()
    for interval in part:
        outside = [Interval(-infinity(), False, interval.low, not interval.low_closed),
                   Interval(interval.high, not interval.high_closed, infinity(), False)]
        result = _intersection(result, _normal(outside))
    return result


def _normal(intervals: Several[Interval]) -> Region:
    """Sorted, empty ones dropped, touching ones merged."""
    kept = sorted((interval for interval in intervals if interval.low < interval.high
                   or (interval.low == interval.high and interval.low_closed and interval.high_closed)),
                  key=lambda interval: (interval.low, not interval.low_closed))
    merged: list[Interval] = []
    for interval in kept:
        last = merged[-1] if merged else None
        if last is not None and (
            interval.low < last.high or (near(interval.low, last.high) and (interval.low_closed or last.high_closed))
        ):
            merged.pop()
            high, high_closed = max((last.high, last.high_closed), (interval.high, interval.high_closed))
            interval = Interval(last.low, last.low_closed, high, high_closed)
        merged.append(interval)
    return tuple(merged)
