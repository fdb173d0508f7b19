"""Trees of answers -> words for people: what `python -m rewards.explain` prints."""

from __future__ import annotations

from rewards.answers.canonical import Canonical
from rewards.answers.trees import Choice, Collection, Matrix, Node, Ratio, Relation, Sequence, SetOperation

_MAX_LENGTH = 60


def describe(node: Node) -> str:
    """One line: "list of 2, in any order: number 1; number -2"."""
    if isinstance(node, Canonical):
        return _leaf(node)
    if isinstance(node, Sequence):
        return f"{len(node.items)} items in order in {node.brackets[0]}...{node.brackets[1]}: {_items(node.items)}"
    if isinstance(node, Collection):
        return f"{'set' if node.is_set else 'list'} of {len(node.items)}, in any order: {_items(node.items)}"
    if isinstance(node, Matrix):
        return f"matrix of {len(node.rows)} rows: " + " | ".join(_items(row) for row in node.rows)
    if isinstance(node, Relation):
        named = [name for name in node.names if name is not None]
        parts = " ".join(f"{sign} [{describe(part)}]" for sign, part in zip(node.signs, node.parts[1:], strict=True))
        return f"relation [{describe(node.parts[0])}] {parts}" + (f", naming {', '.join(named)}" if named else "")
    if isinstance(node, SetOperation):
        return f"{node.operation} of " + _items(node.parts)
    if isinstance(node, Ratio):
        return "ratio of " + _items(node.items)
    assert isinstance(node, Choice)
    return f"option {node.letter.upper()}" + (
        f" with the value [{describe(node.content)}]" if node.content is not None else "")


def _leaf(leaf: Canonical) -> str:
    unit = f", unit {leaf.unit}" if leaf.unit else ""
    if leaf.kind == "expression":
        known = "" if leaf.term is not None else ", not of our grammar: left to computer algebra"
        return f"expression {shorten(leaf.latex)}{unit}{known}"
    value = leaf.value
    if isinstance(value, tuple):
        value = f"{'-' if value[0] else ''}{shorten(value[1])}e{value[2]}"
    return f"{'number' if leaf.kind == 'number' else 'words'} {shorten(str(value)) or 'that are empty'}{unit}"


def _items(items: tuple[Node, ...]) -> str:
    return "; ".join(map(describe, items[:8])) + ("; ..." if len(items) > 8 else "")


def shorten(text: str) -> str:
    """The text, or its beginning and its length where it is long."""
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}... ({len(text)} characters)"
