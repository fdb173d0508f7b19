"""Two trees -> equal, different, or undecided until computer algebra has been asked about some pairs of leaves.

Three-valued: None means that the answer depends on pairs whose verdict is not known yet; they are collected in `asked`.
With their verdicts the same comparison is run once more. The rules are in the docstring of rewards/equivalence.py; each
kind of node has its function here. Symmetric: the kinds are put into one order first, and every rule below is symmetric
in its two sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several
from fractions import Fraction

from rewards.answers import relations
from rewards.answers.canonical import Canonical
from rewards.answers.leaves import Pair, decide, for_algebra
from rewards.answers.numeric import has_value, hopeless, proportional
from rewards.answers.region import region, same_region
from rewards.answers.trees import Choice, Collection, Matrix, Node, Ratio, Relation, Sequence, SetOperation
from rewards.answers.values import Work

_ORDER = (Choice, Relation, SetOperation, Collection, Matrix, Sequence, Ratio, Canonical)
_MAX_ASKED = 64  # pairs of one comparison that algebra is asked about
_MAX_UNMATCHED = 50  # items of two lists that are compared each with each
_ASSIGNING = frozenset(("=", "in", "approx"))


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
        if (verdict := self._same_region(left, right)) is not None:
            return verdict
        interval = relations.symbolic_interval(left) if isinstance(right, Sequence) else None
        return self._sequence(interval, right) if interval is not None else False

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
        if len(parts) >= 2 and relations.is_total(parts[0]) and relations.is_nonzero_number(parts[-1]):
            return parts[-1]
        if names[-1] is not None and len(parts) == 2 and relation.signs == ("=",) and relations.is_constant(parts[0]):
            return parts[0]
        if all(map(relations.is_constant, parts)) and _all(self.equal(part, parts[-1]) for part in parts[:-1]):
            return parts[-1]
        return None

    def _relations(self, left: Relation, right: Relation) -> bool | None:
        first, second = relations.name_of(left), relations.name_of(right)
        if first is not None and second is not None:
            values = self._value(left), self._value(right)
            if values[0] is not None and values[1] is not None:
                if relations.same_name(first, second):
                    return self.equal(values[0], values[1])
            elif relations.same_name(first, second) and (verdict := self._same_region(left, right)) is not None:
                return verdict
        elif relations.same_variable(left, right) and (verdict := self._same_region(left, right)) is not None:
            return verdict
        if left.signs == right.signs and (verdict := self._in_order(left.parts, right.parts)) is not False:
            return verdict
        return self._as_differences(left, right)

    def _as_differences(self, left: Relation, right: Relation) -> bool | None:
        """Equations and inequalities are one if their differences are: 2x + 4y = 3 and y = 3/4 - x/2, a < b and b >
        a."""
        first, second = relations.differences(left), relations.differences(right)
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
            return self._collection_and_other(left, right)
        is_set = left.is_set or right.is_set
        items, others = left.items, right.items
        if is_set and max(len(items), len(others)) <= _MAX_UNMATCHED:
            items, others = self._distinct(items), self._distinct(others)
        are_conditions = all(
            isinstance(item, Relation) and item.signs[0] not in _ASSIGNING for item in (*items, *others))
        if are_conditions and left.joined_by != right.joined_by:
            return self._same_region(left, right) or False  # x > 1 and x < 2 is not x > 1 or x < 2
        verdict = self._in_any_order(items, others)
        if verdict is not False:
            return verdict
        first, second = relations.named_values(left), relations.named_values(right)
        if (first is None) != (second is None) and not is_set:  # x = 1, y = 2 beside 1, 2
            return self._in_order(first or items, second or others)
        return self._same_region(left, right) or False

    def _collection_and_other(self, left: Collection, right: Node) -> bool | None:
        """A list or set beside something else: one set of numbers, x = 1, y = 2 beside (1, 2), [1, 2, 3], one value."""
        if (verdict := self._same_region(left, right)) is not None:
            return verdict
        if isinstance(right, Sequence):
            named = relations.named_values(left)
            if right.brackets in ("()", "<>") and named is not None:
                return self._in_order(named, right.items)
            if right.brackets == "[]" and len(right.items) > 2 and not left.is_set:
                return self._in_any_order(left.items, right.items)
        is_one_value = len(left.items) == 1 or (
            left.joined_by == "or" and _all(self.equal(left.items[0], item) for item in left.items[1:]) is True)
        return self.equal(left.items[0], right) if is_one_value else False

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
        return _round(left.brackets) == _round(right.brackets) and self._in_order(left.items, right.items)

    def _ratio(self, left: Ratio, right: Node) -> bool | None:
        """a : b as a tuple up to a common factor; a : b is the fraction a/b too."""
        if isinstance(right, Ratio):
            verdict = self._in_order(left.items, right.items)
            if verdict is False and len(left.items) == len(right.items):
                return _proportional_items(left.items, right.items)
            return verdict
        if isinstance(right, Canonical) and len(left.items) == 2:
            return _proportional_items(left.items, (right, Canonical("number", Fraction(1), "", "1")))
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


def _round(brackets: str) -> str:
    """Angles are round brackets: both hold vectors."""
    return brackets.replace("<", "(").replace(">", ")")


def _proportional_items(left: Several[Node], right: Several[Node]) -> bool:
    over, under = [[value for item in items if (value := _plain_number(item)) is not None] for items in (left, right)]
    if len(over) < len(left) or len(under) < len(right):
        return False
    return all(a * d == b * c for a, b in zip(over, under, strict=True) for c, d in zip(over, under, strict=True))


def _plain_number(node: Node) -> Fraction | None:
    """A number without a unit; 4:30 p.m. and 6:00 are times of day and no ratios."""
    if not isinstance(node, Canonical) or node.kind != "number" or node.unit or node.latex.startswith("00"):
        return None
    return node.value if isinstance(node.value, Fraction) else None
