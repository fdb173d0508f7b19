"""The trees that answers are read into: tuples, intervals, sets, lists, matrices, equations and inequalities over
canonical leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rewards.answers.canonical import Canonical


@dataclass(frozen=True, slots=True)
class Sequence:
    """Ordered items in brackets: a tuple, an interval, a vector. brackets: opening and closing one, "<>" for angles."""

    brackets: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Collection:
    """Unordered items. is_set: written in braces, so that repetitions do not count. joined_by: comma, and, or."""

    items: tuple[Node, ...]
    is_set: bool
    joined_by: str = "comma"


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """parts[0] signs[0] parts[1] signs[1] ...; signs: = < <= > >= != in approx.

    names: of the parts that are names (x, f(x), \\angle ABC), None for the others.
    """

    signs: tuple[str, ...]
    parts: tuple[Node, ...]
    names: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class SetOperation:
    """operation: union, intersection, difference."""

    operation: str
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """An option of multiple choice: its letter and what stands behind it, if anything."""

    letter: str
    content: Node | None = None


Node: TypeAlias = Canonical | Sequence | Collection | Matrix | Relation | SetOperation | Ratio | Choice
