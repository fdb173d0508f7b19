"""What equations, inequalities and lists of them say: of what, which values, between which ends. The rules of
rewards/answers/comparison.py ask these functions."""

from __future__ import annotations

import re

from rewards.answers.canonical import Canonical, of_term
from rewards.answers.expression import parse
from rewards.answers.region import term_of
from rewards.answers.terms import Term, variables
from rewards.answers.trees import Collection, Node, Relation, Sequence

_CALL = re.compile(r"[A-Za-z]\([A-Za-z]\)")


def name_of(relation: Relation) -> str | None:
    """What the relation gives a value to."""
    return relation.names[0] or (relation.names[-1] if len(relation.parts) == 2 else None)


def same_name(first: str | None, second: str | None) -> bool:
    """Words in front of a value name nothing that could differ: Area = 5 and A = 5. The graph of f(x) is y = f(x)."""
    if first == second or "text" in (first, second):
        return True
    return any(one == "y" and other is not None and _CALL.fullmatch(other)
               for one, other in ((first, second), (second, first)))


def same_variable(left: Relation, right: Relation) -> bool:
    """Whether the first names in them are one, magnitudes (|x|) aside."""
    first, second = (
        next((name.strip("|") for name in side.names if name is not None), None) for side in (left, right))
    return same_name(first, second)


def symbolic_interval(relation: Relation) -> Sequence | None:
    """a < x <= b, x < a and the like as (a, b], (-infinity, a): for ends with letters in them."""
    signs, parts, names = relation.signs, relation.parts, relation.names
    if any(sign not in ("<", "<=", ">", ">=") for sign in signs) or len(parts) > 3:
        return None
    if signs[0][0] == ">":
        signs, parts, names = tuple(sign.replace(">", "<") for sign in reversed(signs)), parts[::-1], names[::-1]
    infinity = of_term("\\infty", parse("\\infty")), of_term("-\\infty", parse("-\\infty"))
    if len(parts) == 3 and names[1] is not None and signs[0][0] == signs[1][0]:
        return Sequence(("[" if "=" in signs[0] else "(") + ("]" if "=" in signs[1] else ")"), (parts[0], parts[2]))
    if len(parts) == 2 and names[0] is not None:
        return Sequence("(" + ("]" if "=" in signs[0] else ")"), (infinity[1], parts[1]))
    if len(parts) == 2 and names[1] is not None:
        return Sequence(("[" if "=" in signs[0] else "(") + ")", (parts[0], infinity[0]))
    return None


def is_total(node: Node) -> bool:
    """m + n, 100a + b, AB + BC: a sum of several letters with integer factors, which a question asks for as one
    number."""
    term = term_of(node) if isinstance(node, Canonical) else None
    if term is None or term.op != "+" or len(variables(term)) < 2:
        return False
    factors = [factor for summand in term.args for factor in (summand.args if summand.op == "*" else (summand,))]
    return all(factor.op in ("variable", "number") for factor in factors)


def is_nonzero_number(node: Node) -> bool:
    return isinstance(node, Canonical) and node.kind == "number" and node.value != 0


def is_constant(node: Node) -> bool:
    if not isinstance(node, Canonical):
        return False
    term = term_of(node)
    return node.kind != "text" and (term is None or not variables(term))


def named_values(collection: Collection) -> tuple[Node, ...] | None:
    """The values of y = 2, x = 1 in the order of their names, None if it is not that."""
    named: dict[str, Node] = {}
    for item in collection.items:
        if not isinstance(item, Relation) or item.names[0] is None or item.signs != ("=",):
            return None
        named[item.names[0]] = item.parts[1]
    return tuple(named[name] for name in sorted(named)) if len(named) == len(collection.items) else None


def differences(relation: Relation) -> list[tuple[str, Term]] | None:
    """a < b as (<, a - b), with the larger side turned so that only =, !=, < and <= occur; None where a part is no
    expression."""
    terms = [term_of(part) if isinstance(part, Canonical) else None for part in relation.parts]
    found = []
    for sign, left, right in zip(relation.signs, terms, terms[1:], strict=False):
        if left is None or right is None or sign not in ("=", "!=", "<", "<=", ">", ">="):
            return None
        if sign in (">", ">="):
            sign, left, right = {">": "<", ">=": "<="}[sign], right, left
        found.append((sign, Term("+", (left, Term("negate", (right,))))))
    return found
