"""Two trees -> equal, different, or undecided until computer algebra has been asked about some pairs of leaves.

Three-valued: None means that the answer depends on pairs whose verdict is not known yet; they are collected in `asked`.
With their verdicts the same comparison is run once more. The rules are in the docstring of rewards/equivalence.py; each
kind of node has its function here. Symmetric: the kinds are put into one order first, and every rule below is symmetric
in its two sides.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several

from rewards.answers.canonical import Canonical, of_term
from rewards.answers.expression import MAX_LENGTH, parse
from rewards.answers.numeric import Work, has_value, hopeless, infinite_sign, proportional, same
from rewards.answers.quantity import unit_of_letter
from rewards.answers.region import region, same_region, term_of
from rewards.answers.terms import Term, number, variables
from rewards.answers.trees import Choice, Collection, Matrix, Node, Ratio, Relation, Sequence, SetOperation

Pair = tuple[str, str]

_ORDER = (Choice, Relation, SetOperation, Collection, Matrix, Sequence, Ratio, Canonical)
_MAX_ASKED = 64  # pairs of one comparison that algebra is asked about
_MAX_UNMATCHED = 50  # items of two lists that are compared each with each
_ASSIGNING = frozenset(("=", "in", "approx"))
_LETTER_AT_END = re.compile(r"(.*[0-9)}])\s?([A-Za-z])(?:\s?\^\s?\{?([23])\}?)?", re.DOTALL)
_CALL = re.compile(r"[A-Za-z]\([A-Za-z]\)")


def decide(left: Canonical, right: Canonical, work: Work | None = None) -> bool | None:
    """True or False where canonical forms and values suffice, None where algebra has to be asked."""
    if left == right:
        return True
    if left.kind == right.kind and left.value == right.value:
        return one_may_be_missing(left.unit, right.unit)
    if left.kind == right.kind == "number":
        return False
    if left.kind == "text" or right.kind == "text":
        words = [side for side in (left, right) if side.kind == "text"]
        if len(words) == 2 or any(len(str(side.value)) > 1 for side in words):
            return False
    if max(len(left.latex), len(right.latex)) > MAX_LENGTH or not left.latex or not right.latex:
        return False
    if (bare := _with_letter_as_unit(left, right)) is not None:
        left, right = bare
    first, second = term_of(left), term_of(right)
    if first is not None and second is not None:
        signs = infinite_sign(first), infinite_sign(second)
        verdict = signs[0] == signs[1] if any(signs) else same(first, second, work)
        return one_may_be_missing(left.unit, right.unit) if verdict else verdict
    if str(left.value).casefold() == str(right.value).casefold():
        return False  # R and r are two variables; algebra would not tell them apart
    return None if one_may_be_missing(left.unit, right.unit) else False


def _with_letter_as_unit(left: Canonical, right: Canonical) -> tuple[Canonical, Canonical] | None:
    """5 m beside 5 \\text{ meters}: a last letter is a unit where the other side has that unit."""
    for one, other in ((left, right), (right, left)):
        found = _LETTER_AT_END.fullmatch(other.latex) if one.unit and not other.unit else None
        if found is not None and unit_of_letter(found.group(2), found.group(3) or "") == one.unit:
            return one, of_term(found.group(1), parse(found.group(1)), one.unit)
    return None


def one_may_be_missing(first: str, second: str) -> bool:
    return first == second or not first or not second


def for_algebra(left: Canonical, right: Canonical) -> Pair:
    """The two texts in sorted order, so that the verdict is symmetric."""
    return min(left.latex, right.latex), max(left.latex, right.latex)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown = unknown or verdict is None
    return None if unknown else True


class TreeComparison:
    """One comparison. verdicts: of algebra, by `for_algebra`. asked: pairs that were needed and are not in there.

    num_hopeless: pairs with a value that nobody could compute (9^9^9^9); they count as different, undecided, without
    being asked about.
    """

    def __init__(self, verdicts: Mapping[Pair, bool]) -> None:
        self._verdicts = verdicts
        self.asked: list[Pair] = []
        self.num_hopeless = 0
        self._work = Work()

    def equal(self, left: Node, right: Node) -> bool | None:
        if left == right:
            return True
        if _rank(left) > _rank(right):
            left, right = right, left
        if isinstance(left, Choice):
            return self._choice(left, right)
        if isinstance(left, Relation):
            return self._relations(left, right) if isinstance(right, Relation) else self._relation(left, right)
        if isinstance(left, SetOperation) or isinstance(right, SetOperation):
            return self._set_operation(left, right)
        if isinstance(left, Collection):
            return self._collection(left, right)
        if isinstance(left, Matrix):
            return self._matrix(left, right)
        if isinstance(left, Sequence):
            return self._sequence(left, right)
        if isinstance(left, Ratio):
            return self._ratio(left, right)
        assert isinstance(left, Canonical) and isinstance(right, Canonical)
        return self._leaf(left, right)

    def _leaf(self, left: Canonical, right: Canonical) -> bool | None:
        verdict = decide(left, right, self._work)
        if verdict is None:
            if (one := region(left)) is not None and (other := region(right)) is not None:
                return same_region(one, other)  # no solution, the empty set
            is_over = self._work.left < 0 or len(self.asked) >= _MAX_ASKED
            if is_over or any(term is not None and hopeless(term, self._work) for term in (left.term, right.term)):
                self.num_hopeless += 1
                return False
            pair = for_algebra(left, right)
            verdict = self._verdicts.get(pair)
            if verdict is None:
                self.asked.append(pair)
        elif verdict is False and left.kind != right.kind:
            return self._same_region(left, right) or False
        return verdict

    def _same_region(self, left: Node, right: Node) -> bool | None:
        one = region(left)
        other = None if one is None else region(right)
        return None if one is None or other is None else same_region(one, other)

    def _in_order(self, left: Several[Node], right: Several[Node]) -> bool | None:
        return len(left) == len(right) and _all(self.equal(*pair) for pair in zip(left, right, strict=True))

    def _in_any_order(self, left: Several[Node], right: Several[Node]) -> bool | None:
        """A one-to-one match of all items. None where there is one only if some undecided pairs are equal."""
        if len(left) != len(right):
            return False
        common = Counter(left) & Counter(right)
        items, others = list((Counter(left) - common).elements()), list((Counter(right) - common).elements())
        if len(items) > _MAX_UNMATCHED:
            return False
        verdicts = [[self.equal(item, other) for other in others] for item in items]
        if _has_perfect_match([[verdict is True for verdict in row] for row in verdicts]):
            return True
        return None if _has_perfect_match([[verdict is not False for verdict in row] for row in verdicts]) else False

    def _choice(self, left: Choice, right: Node) -> bool | None:
        """The letter decides; a value without a letter is compared with what stands behind the letter."""
        if isinstance(right, Choice):
            return left.letter == right.letter
        if isinstance(right, Canonical) and right.kind == "text" and len(str(right.value)) == 1:
            return left.letter == right.value
        return self.equal(left.content, right) if left.content is not None else False

    def _relation(self, left: Relation, right: Node) -> bool | None:
        value = self._value(left)
        if value is not None:
            return self.equal(value, right)
        verdict = self._same_region(left, right)
        if verdict is None and isinstance(right, Sequence) and (interval := _symbolic_interval(left)) is not None:
            return self._sequence(interval, right)
        return verdict or False

    def _value(self, relation: Relation) -> Node | None:
        """What the relation says that something is: 5 of x = 5, of 5 = x, of k = 2 * 5 = 10, of 5 \\approx 4.99 and of
        2 + 3 = 5."""
        if any(sign not in _ASSIGNING for sign in relation.signs):
            return None
        parts, names = relation.parts, relation.names
        if "approx" in relation.signs:
            at = relation.signs.index("approx") + 1
            if at > 1 or names[0] is None:  # what stands before the first approximation is the exact value
                parts, names = parts[:at], names[:at]
        if len(parts) == 1 or names[0] is not None:
            return parts[-1]
        if len(parts) >= 2 and _is_total(parts[0]) and _is_nonzero_number(parts[-1]):
            return parts[-1]
        if names[-1] is not None and len(parts) == 2 and relation.signs == ("=",) and _is_constant(parts[0]):
            return parts[0]
        if all(map(_is_constant, parts)) and _all(self.equal(part, parts[-1]) for part in parts[:-1]):
            return parts[-1]
        return None

    def _relations(self, left: Relation, right: Relation) -> bool | None:
        first, second = _name(left), _name(right)
        if first is not None and second is not None:
            values = self._value(left), self._value(right)
            if values[0] is not None and values[1] is not None:
                if _same_name(first, second):
                    return self.equal(values[0], values[1])
            elif _same_name(first, second) and (verdict := self._same_region(left, right)) is not None:
                return verdict
        elif (verdict := self._same_region(left, right)) is not None and _same_name(_variable(left), _variable(right)):
            return verdict
        if left.signs == right.signs and (verdict := self._in_order(left.parts, right.parts)) is not False:
            return verdict
        return self._as_differences(left, right)

    def _as_differences(self, left: Relation, right: Relation) -> bool | None:
        """Equations and inequalities are one if their differences are: 2x + 4y = 3 and y = 3/4 - x/2, a < b and b >
        a."""
        first, second = _differences(left), _differences(right)
        if first is None or second is None or len(first) != len(second):
            return False
        unknown = False
        for sign, term in first:
            verdicts = [sign == other_sign and proportional(term, other, self._work, positive=sign[0] == "<")
                        for other_sign, other in second]
            if True in verdicts:
                del second[verdicts.index(True)]
            elif None in verdicts:
                unknown = True
            else:
                return False
        return not unknown  # no values, and no single pair of leaves that algebra could be asked about

    def _set_operation(self, left: Node, right: Node) -> bool | None:
        if (verdict := self._same_region(left, right)) is not None:
            return verdict
        if isinstance(left, SetOperation) and isinstance(right, SetOperation) and left.operation == right.operation:
            if left.operation == "difference":
                return self._in_order(left.parts, right.parts)
            return self._in_any_order(left.parts, right.parts)
        return False

    def _collection(self, left: Collection, right: Node) -> bool | None:
        if not isinstance(right, Collection):
            if (verdict := self._same_region(left, right)) is not None:
                return verdict
            named = _named_values(left)
            if isinstance(right, Sequence) and right.brackets in ("()", "<>") and named is not None:
                return self._in_order(named, right.items)
            if isinstance(right, Sequence) and right.brackets == "[]" and len(right.items) > 2 and not left.is_set:
                return self._in_any_order(left.items, right.items)
            is_one_value = len(left.items) == 1 or (
                left.joined_by == "or" and _all(self.equal(left.items[0], item) for item in left.items[1:]) is True)
            return self.equal(left.items[0], right) if is_one_value else False
        items, others = left.items, right.items
        if (left.is_set or right.is_set) and max(len(items), len(others)) <= _MAX_UNMATCHED:
            items, others = self._distinct(items), self._distinct(others)
        are_conditions = all(
            isinstance(item, Relation) and item.signs[0] not in _ASSIGNING for item in (*items, *others))
        if are_conditions and left.joined_by != right.joined_by:
            return self._same_region(left, right) or False  # x > 1 and x < 2 is not x > 1 or x < 2
        verdict = self._in_any_order(items, others)
        if verdict is False:
            first, second = _named_values(left), _named_values(right)
            if (first is None) != (second is None) and not (left.is_set or right.is_set):
                return self._in_order(first or items, second or others)
            return self._same_region(left, right) or False
        return verdict

    def _distinct(self, items: Several[Node]) -> tuple[Node, ...]:
        kept: list[Node] = []
        for item in items:
            if not any(self.equal(item, other) for other in kept):
                kept.append(item)
        return tuple(kept)

    def _matrix(self, left: Matrix, right: Node) -> bool | None:
        if isinstance(right, Matrix):
            return len(left.rows) == len(right.rows) and _all(
                self._in_order(*rows) for rows in zip(left.rows, right.rows, strict=True))
        if isinstance(right, Sequence) and right.brackets in ("()", "<>"):  # a vector
            if len(left.rows) == 1:
                return self._in_order(left.rows[0], right.items)
            return all(len(row) == 1 for row in left.rows) and self._in_order(
                [row[0] for row in left.rows], right.items)
        return False

    def _sequence(self, left: Sequence, right: Node) -> bool | None:
        if not isinstance(right, Sequence):
            return self._same_region(left, right) or False
        return left.brackets.replace("<", "(").replace(">", ")") == right.brackets.replace("<", "(").replace(
            ">", ")"
        ) and self._in_order(left.items, right.items)

    def _ratio(self, left: Ratio, right: Node) -> bool | None:
        """a : b as a tuple up to a common factor; a : b is the fraction a/b too."""
        if isinstance(right, Ratio):
            verdict = self._in_order(left.items, right.items)
            if verdict is False and len(left.items) == len(right.items):
                return _proportional_items(left.items, right.items)
            return verdict
        if isinstance(right, Canonical) and len(left.items) == 2:
            return _proportional_items(left.items, (right, Canonical("number", number(1).value, "", "1")))
        return False


def _has_perfect_match(edges: Several[Several[bool]]) -> bool:
    """Whether rows can be paired with columns along True entries, by augmenting paths; edges: square."""
    row_of: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, is_edge in enumerate(edges[row]):
            if is_edge and column not in seen:
                seen.add(column)
                if column not in row_of or place(row_of[column], seen):
                    row_of[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(edges)))


def needs_algebra(node: Node) -> bool:
    """Whether some leaf of the tree is no number, word or expression with a value: comparing it may need computer
    algebra."""
    if isinstance(node, Canonical):
        return node.kind == "expression" and (node.term is None or not has_value(node.term))
    if isinstance(node, Choice):
        return node.content is not None and needs_algebra(node.content)
    if isinstance(node, Matrix):
        return any(needs_algebra(entry) for row in node.rows for entry in row)
    return any(map(needs_algebra, node.parts if isinstance(node, (Relation, SetOperation)) else node.items))


def _rank(node: Node) -> int:
    return next(i for i, kind in enumerate(_ORDER) if isinstance(node, kind))


def _name(relation: Relation) -> str | None:
    """The name that the relation gives a value to."""
    return relation.names[0] or (relation.names[-1] if len(relation.parts) == 2 else None)


def _variable(relation: Relation) -> str | None:
    return next((name.strip("|") for name in relation.names if name is not None), None)


def _same_name(first: str | None, second: str | None) -> bool:
    """Words in front of a value name nothing that could differ: Area = 5 and A = 5. The graph of f(x) is y = f(x)."""
    if first == second or "text" in (first, second):
        return True
    return any(
        one == "y" and other is not None and _CALL.fullmatch(other) for one, other in ((first, second), (second, first))
    )


def _symbolic_interval(relation: Relation) -> Sequence | None:
    """a < x <= b, x < a and the like as (a, b], (-infinity, a): for ends with letters in them."""
    signs, parts = relation.signs, relation.parts
    if any(sign not in ("<", "<=", ">", ">=") for sign in signs) or len(parts) > 3:
        return None
    if signs[0][0] == ">":
        signs, parts = tuple(sign.replace(">", "<") for sign in reversed(signs)), parts[::-1]
        names = relation.names[::-1]
    else:
        names = relation.names
    infinity = of_term("\\infty", parse("\\infty")), of_term("-\\infty", parse("-\\infty"))
    if len(parts) == 3 and names[1] is not None and signs[0][0] == signs[1][0]:
        return Sequence(("[" if "=" in signs[0] else "(") + ("]" if "=" in signs[1] else ")"), (parts[0], parts[2]))
    if len(parts) == 2 and names[0] is not None:
        return Sequence("(" + ("]" if "=" in signs[0] else ")"), (infinity[1], parts[1]))
    if len(parts) == 2 and names[1] is not None:
        return Sequence(("[" if "=" in signs[0] else "(") + ")", (parts[0], infinity[0]))
    return None


def _is_total(node: Node) -> bool:
    """m + n, 100a + b, AB + BC: a sum of several letters with integer factors, which a question asks for as one
    number."""
    term = term_of(node) if isinstance(node, Canonical) else None
    if term is None or term.op != "+" or len(variables(term)) < 2:
        return False
    factors = [factor for summand in term.args for factor in (summand.args if summand.op == "*" else (summand,))]
    return all(factor.op in ("variable", "number") for factor in factors)


def _is_nonzero_number(node: Node) -> bool:
    return isinstance(node, Canonical) and node.kind == "number" and node.value != 0


def _is_constant(node: Node) -> bool:
    if not isinstance(node, Canonical):
        return False
    term = term_of(node)
    return node.kind != "text" and (term is None or not variables(term))


def _named_values(collection: Collection) -> tuple[Node, ...] | None:
    """The values of y = 2, x = 1 in the order of their names, None if it is not that."""
    named: dict[str, Node] = {}
    for item in collection.items:
        if not isinstance(item, Relation) or item.names[0] is None or item.signs != ("=",):
            return None
        named[item.names[0]] = item.parts[1]
    return tuple(named[name] for name in sorted(named)) if len(named) == len(collection.items) else None


def _differences(relation: Relation) -> list[tuple[str, Term]] | None:
    """a < b as (<, a - b), with the larger side turned so that only =, !=, < and <= occur; None where a part is no
    expression."""
    terms = [term_of(part) if isinstance(part, Canonical) else None for part in relation.parts]
    differences = []
    for sign, left, right in zip(relation.signs, terms, terms[1:], strict=False):
        if left is None or right is None or sign not in ("=", "!=", "<", "<=", ">", ">="):
            return None
        if sign in (">", ">="):
            sign, left, right = {">": "<", ">=": "<="}[sign], right, left
        differences.append((sign, Term("+", (left, Term("negate", (right,))))))
    return differences


def _proportional_items(left: Several[Node], right: Several[Node]) -> bool:
    values = [
        (
            item.value
            if isinstance(item, Canonical)
            and item.kind == "number"
            and not item.unit
            and not item.latex.startswith("00")
            else None)
        for item in (*left, *right)
    ]  # 4:30 p.m. and 6:00 are times of day and no ratios
    if any(value is None or isinstance(value, (str, tuple)) for value in values):
        return False
    over, under = values[:len(left)], values[len(left):]
    return all(a * d == b * c for a, b in zip(over, under, strict=True) for c, d in zip(over, under, strict=True))  # type: ignore[operator]
