"""The tree of an expression: what rewards/answers/expression.py reads and rewards/answers/values.py evaluates."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Term:
    """op: number, variable, constant (pi, e, i, infinity), + and * (any number of args), / and ^ (two), negate, invert,
    root (degree, radicand), sum or prod over an index (low, high, body), or a function's name. + and * are flat, so
    that a long one is no deep tree.

    value: of a number; name: of a variable, constant or index.
    """

    op: str
    args: tuple[Term, ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


def variables(term: Term) -> frozenset[str]:
    """Names of the variables in the tree."""
    if term.op == "variable":
        return frozenset((term.name,))
    return frozenset().union(*map(variables, term.args))


def number(value: Fraction | int) -> Term:
    return Term("number", value=Fraction(value))
