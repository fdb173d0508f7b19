"""An answer as written -> a tree: tuples, intervals, sets, lists, matrices, equations and inequalities over canonical
leaves.

    read("x \\in [-2, 7]") -> Relation(("in",), (x, Sequence("[]", (-2, 7))))

One pass finds the marks that stand outside of all brackets; the loosest of them takes the text apart: `and`, `or`, `;`
and commas make lists, then = < <= and their like, then union and difference, then the brackets around a whole, then a
ratio's colon. What has none is a leaf (rewards/answers/canonical.py). a \\pm b is the list of both. What the parts mean
is rewards/answers/comparison.py's business.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from rewards.answers.canonical import leaf, long_leaf, of_term
from rewards.answers.expression import parse
from rewards.answers.notation import TEXT_CLOSE, TEXT_OPEN, clean, matching, unmark
from rewards.answers.quantity import read_quantity
from rewards.answers.terms import Term, number
from rewards.answers.trees import Choice, Collection, Matrix, Node, Ratio, Relation, Sequence, SetOperation

_MAX_CACHED = 300  # characters; a longer answer is read again each time, so that the cache's memory is bounded
_MAX_CLEANED = 20_000
_MAX_STRUCTURED = 4000  # characters; a longer answer is a leaf
_MAX_ITEMS = 200
_MAX_DEPTH = 8
_SIGNS = {
    "=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\neq": "!=", "\\in": "in", "\\approx": "approx",
    "\\equiv": "=", "\\to": "=", "\\rightarrow": "=", "==": "=", "\\simeq": "approx", "\\sim": "approx", ":=": "="}
_TOP = re.compile(
    rf"(?P<environment>\\begin\s?\{{[A-Za-z*]{{1,12}}\}})|(?P<open>\\\{{|\\langle(?![A-Za-z])|\\l(?:floor|ceil)(?![A-Za-z])|[(\[{{])"
    rf"|(?P<close>\\\}}|\\rangle(?![A-Za-z])|\\r(?:floor|ceil)(?![A-Za-z])|[)\]}}])|(?P<text>{TEXT_OPEN}[^{TEXT_CLOSE}]*+{TEXT_CLOSE})"
    r"|(?P<sign>:=|==|[=<>]|\\(?:le|ge|neq|in|approx|equiv|to|rightarrow|simeq|sim)(?![A-Za-z]))|(?P<separator>[,;]|\\(?:lor|land|vee|wedge)(?![A-Za-z])|且|或|和)"
    r"|(?P<set>\\(?:cup|cap|setminus)(?![A-Za-z]))|(?P<colon>:)|(?P<pm>\\(?:pm|mp)(?![A-Za-z]))"
    r"|(?P<word>(?<![A-Za-z\\])(?:and|or|AND|OR|U)(?![A-Za-z]))|\\[A-Za-z]++|\\.|[A-Za-z]++|[^\\]",
    re.DOTALL)
_JOINING = {
    "and": "and", "or": "or", "&": "and", "且": "and", "和": "and", "或": "or", "\\lor": "or", "\\vee": "or",
    "\\land": "and", "\\wedge": "and", "or else": "or"}
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"))
_ENVIRONMENT = re.compile(r"(.*?)\\begin\s?\{([A-Za-z*]{1,12})\}(?:\s?\{[lcr|\s]*\})?(.*)\\end\s?\{\2\}", re.DOTALL)
_ROW = re.compile(r"\\\\(?:\s?\[[^\]]{0,20}\])?|\\cr(?![A-Za-z])")
_CHOICE = re.compile(
    rf"{TEXT_OPEN}?\s?(?:\((?P<round>[A-Ja-j])\)|(?P<half>[A-J])\)|(?P<stop>[A-J])[.:](?=\s|{TEXT_CLOSE}|{TEXT_OPEN}|$)|(?P<alone>[A-J])(?=\s?{TEXT_CLOSE}\s?[^\s^_]))"
    rf"[.:]?\s?{TEXT_CLOSE}?(?P<rest>.*)",
    re.DOTALL)
_SECOND_OPTION = re.compile(
    r"\([A-Ja-j]\)|(?<![A-Za-z\\])[A-J][).](?=\s)|(?:\b(?:and|or)\b|[,&/])[\s\ue000\ue001(]*[A-J](?![A-Za-z])")
_OPTION = re.compile(rf"{TEXT_OPEN}?(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\s?{TEXT_CLOSE}?\s?(?P<rest>.+)", re.DOTALL)
_QUALIFIER = re.compile(
    rf"[,;(]?\s?{TEXT_OPEN}?\s?(?:where|for|with|for all)?\s?{TEXT_CLOSE}?\s?(?<![A-Za-z\\])[a-z]\s?\\in"
    r"\s?(?:\\mathbb\{[ZNQ]\}|[ZN](?![A-Za-z]))"
    r"(?:\s?[_^]?\s?\{?[+*]\}?)?\s?\)?$")  # 2k\\pi, k \\in \\mathbb{Z}
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_LIST_IN_TEXT = re.compile(r"(,(?: and| or)?|(?<= )(?:and|or)(?= ))")
_FRENCH = re.compile(r"(?:\][^\[\](),]{1,60},[^\[\](),]{1,60}[\[\])]|[\[(][^\[\](),]{1,60},[^\[\](),]{1,60}\[)")
_PAIRS = (("\\{", "\\}", "{}"), ("\\langle", "\\rangle", "<>"), ("(", "", ""), ("[", "", ""), ("{", "}", "{}"))
_POINT = re.compile(r"[A-Z]'?\s?\((?=[^()]*,)")
_CALL = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_(?:\w|\{[^{}]*\}))?'*(?:\^\{-1\}|\^\{\([a-z0-9]\)\})?\s?\([^=<>]{1,30}\)")
_WORDY = re.compile(r"[A-Za-z][A-Za-z' -]*[A-Za-z]{2}[A-Za-z' -]*")
_BUILDER = re.compile(r"(?P<head>[^|:]{1,30}?)(?:\||:)(?P<condition>.+)", re.DOTALL)
_MEMBERSHIP = re.compile(r"(?P<name>.{1,20}?)\s?\\in\s?\\mathbb\{R\}", re.DOTALL)


def read(answer: str) -> Node:
    """The tree of one answer; never raises, linear in the answer's length."""
    return _cached(answer) if len(answer) <= _MAX_CACHED else _read(answer)


def _read(answer: str) -> Node:
    return _node(clean(answer), 0) if len(answer) <= _MAX_CLEANED else long_leaf(answer)


_cached = lru_cache(maxsize=32768)(_read)


@dataclass(frozen=True, slots=True)
class _Mark:
    """Something outside of all brackets. kind: sign, separator, set, colon, pm. value: its canonical form."""

    kind: str
    value: str
    start: int
    end: int


def _marks(text: str) -> list[_Mark]:
    marks: list[_Mark] = []
    depth = 0
    at = 0
    while at < len(text):
        found = _TOP.match(text, at)
        if found is None:
            at += 1
            continue
        at = found.end()
        kind = found.lastgroup
        if kind == "environment":
            end = text.find("\\end", found.end())
            at = len(text) if end < 0 else end + 4
        elif kind == "open":
            depth += 1
        elif kind == "close":
            depth = max(0, depth - 1)
        elif depth == 0 and kind is not None and (value := _meaning(kind, found.group())) is not None:
            kind = "set" if value == "\\cup" else "separator" if kind in ("text", "word") else kind
            marks.append(_Mark(kind, value, found.start(), found.end()))
    return marks


def _meaning(kind: str, token: str) -> str | None:
    if kind in ("text", "word"):
        word = token.strip(TEXT_OPEN + TEXT_CLOSE + " ,;").casefold()
        return "\\cup" if token == "U" else _JOINING.get(word)
    if kind == "separator":
        return _JOINING.get(token, "comma")
    return _SIGNS[token] if kind == "sign" else token


def _node(text: str, depth: int) -> Node:
    """The tree of cleaned text: a choice, what its loosest marks take apart, what surrounds it, or else a leaf."""
    text = text.strip()
    if depth > _MAX_DEPTH or len(text) > _MAX_STRUCTURED or not text or read_quantity(text) is not None:
        return leaf(text)
    text = _with_marked_list(_without_qualifier(text))
    if (choice := _choice(text, depth)) is not None:
        return choice
    if _FRENCH.fullmatch(text):  # ]1, 2] and [1, 2[
        text = text[0].replace("]", "(") + text[1:-1] + text[-1].replace("[", ")")
    marks = _marks(text)
    node = _apart(text, marks, depth)
    if node is None:
        node = _whole(text, marks, depth)
    return leaf(text) if node is None else node


def _without_qualifier(text: str) -> str:
    """2k\\pi of 2k\\pi, k \\in \\mathbb{Z}."""
    qualifier = _QUALIFIER.search(text)
    return text[:qualifier.start()].strip() if qualifier is not None and qualifier.start() else text


def _with_marked_list(text: str) -> str:
    """\\text{A, B and C}: a list all of whose items stand in one mark of text gets a mark for each."""
    is_one_mark = text.startswith(TEXT_OPEN) and text.find(TEXT_CLOSE) == len(text) - 1
    if is_one_mark and _LIST_IN_TEXT.search(text) and text[2:3] != ".":
        return TEXT_OPEN + _LIST_IN_TEXT.sub(rf"{TEXT_CLOSE}\1{TEXT_OPEN}", text[1:-1]) + TEXT_CLOSE
    return text


def _apart(text: str, marks: list[_Mark], depth: int) -> Node | None:
    """What separators, signs of relations or set operations take apart, the loosest first; None without them."""
    separators = [mark for mark in marks if mark.kind == "separator"]
    if separators and len(separators) < _MAX_ITEMS and (node := _list(text, separators, marks, depth)) is not None:
        return node
    if signs := [mark for mark in marks if mark.kind == "sign"]:
        return _relation(text, signs, depth)
    operations = [mark for mark in marks if mark.kind == "set"]
    return _set_operation(text, operations, depth) if operations else None


def _whole(text: str, marks: list[_Mark], depth: int) -> Node | None:
    """What brackets, \\pm, an environment or a ratio's colons make of a text without looser marks, or None."""
    if not any(mark.kind == "pm" for mark in marks) and (node := _bracketed(text, depth)) is not None:
        return node
    if _PLUS_MINUS.search(text):
        both = (_with_signs(text, "+", "-"), _with_signs(text, "-", "+"))
        return _flat_collection([_node(one, depth + 1) for one in both], "comma")
    if "\\begin" in text and (node := _environment(text, depth)) is not None:
        return node
    colons = [mark for mark in marks if mark.kind == "colon"]
    parts = _cut(text, colons) if colons else []
    return Ratio(tuple(_node(part, depth + 1) for part in parts)) if 0 < len(parts) <= 4 and all(parts) else None


def _cut(text: str, marks: list[_Mark]) -> list[str]:
    starts = [0, *(mark.end for mark in marks)]
    ends = [*(mark.start for mark in marks), len(text)]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True)]


def _with_signs(text: str, plus: str, minus: str) -> str:
    return re.sub(r"\\pm(?![A-Za-z])", plus, re.sub(r"\\mp(?![A-Za-z])", minus, text))


def _choice(text: str, depth: int) -> Choice | None:
    found = _CHOICE.fullmatch(text)
    if found is None:
        if option := _OPTION.fullmatch(text):
            rest = option.group("rest").strip()
            letter = unmark(rest)
            return _choice(rest, depth) or (Choice(letter.lower()) if re.fullmatch(r"[A-Ja-j]", letter) else None)
        return None
    if _SECOND_OPTION.search(found.group("rest")):
        return None  # (A) or (B) is a list, and A. 1 B. 2 C. 3 picks none
    letter = found.group("round") or found.group("half") or found.group("stop") or found.group("alone")
    raw_rest = found.group("rest")
    rest = raw_rest.strip()
    if rest.startswith((",", ";", "^", "_", "=", "+", "*", "/", "!", "'")):
        return None
    if rest.endswith(TEXT_CLOSE) and rest.count(TEXT_OPEN) < rest.count(TEXT_CLOSE):  # \text{E. Hyperbola}
        rest = TEXT_OPEN + rest
    content = _node(rest, depth + 1) if rest.strip(TEXT_OPEN + TEXT_CLOSE + " .") else None
    is_spaced = text.startswith(TEXT_OPEN) or raw_rest.startswith(TEXT_OPEN) or text[found.start("rest") - 1].isspace()
    is_label = is_spaced and letter.isupper()
    if found.group("round") and content is not None and not is_label and parse(text) is not None:
        return None  # (a)(b) and (a)x are products
    return Choice(letter.lower(), content)


def _list(text: str, separators: list[_Mark], marks: list[_Mark], depth: int) -> Node | None:
    separators = _without_thousands(text, separators)
    if not separators:
        return None
    equals = [mark for mark in marks if mark.kind == "sign"]
    is_one_equation = len(equals) == 1 and equals[0].value == "=" and all(mark.value == "comma" for mark in separators)
    if is_one_equation and (node := _names_equal_values(text, separators, equals[0], depth)) is not None:
        return node
    parts = _cut(text, separators)
    values = {mark.value for mark in separators}
    joined_by = "or" if "or" in values else "and" if "and" in values else "comma"
    items = [_node(part, depth + 1) for part in parts if part]
    if len(items) == 1:
        return items[0]
    return _flat_collection(_with_common_name(items), joined_by) if items else None


def _without_thousands(text: str, separators: list[_Mark]) -> list[_Mark]:
    """Where some commas are followed by a space, those between digits that are not separate thousands: 1,250, 3,400."""
    commas = [mark for mark in separators if mark.value == "comma"]
    spaced = {mark.start for mark in commas if text[mark.end:mark.end + 1].isspace()}
    if len(spaced) == len(commas) and len(commas) == len(separators):
        return separators
    if not spaced and len(commas) == len(separators):
        return separators
    return [mark for mark in separators if mark.value != "comma" or mark.start in spaced
            or not re.match(r"[0-9],[0-9]{3}(?![0-9])", text[max(0, mark.start - 1):mark.start + 5])]


def _names_equal_values(text: str, separators: list[_Mark], equals: _Mark, depth: int) -> Node | None:
    """x, y = 1, 2"""
    left, right = text[:equals.start], text[equals.end:]
    names = [part.strip() for part in left.split(",")]
    num_right = sum(mark.start > equals.start for mark in separators) + 1
    if len(names) < 2 or len(names) != num_right or not all(_name_of(name) for name in names):
        return None
    values = _cut(right, [_Mark(mark.kind, mark.value, mark.start - equals.end, mark.end - equals.end)
                          for mark in separators if mark.start > equals.start])
    return Collection(
        tuple(_relation_of(("=",), [name, value], depth) for name, value in zip(names, values, strict=True)), False)


def _with_common_name(items: list[Node]) -> list[Node]:
    """x = 2, 3 and x = 2 or x = 3 are the values of one name; x = 2, y = 3 are not."""
    names = [
        item.names[0] if isinstance(item, Relation) and item.signs in (("=",), ("in",)) else None for item in items]
    first = names[0]
    if first is None or any(name not in (first, None) for name in names):
        return items
    if any(name is None and isinstance(item, Relation) for name, item in zip(names, items, strict=True)):
        return items
    return [item.parts[1] if isinstance(item, Relation) else item for item in items]


def _flat_collection(items: list[Node], joined_by: str) -> Collection:
    flat: list[Node] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Collection) and not item.is_set else [item])
    return Collection(tuple(flat), False, joined_by)


def _relation(text: str, signs: list[_Mark], depth: int) -> Node:
    parts = _cut(text, signs)
    if not parts[0] or not parts[-1] or len(parts) > 20:
        kept = [part for part in parts if part]
        return _node(kept[0], depth + 1) if len(kept) == 1 and signs[0].value in ("=", "approx") else leaf(text)
    return _relation_of(tuple(mark.value for mark in signs), parts, depth)


def _relation_of(signs: tuple[str, ...], parts: list[str], depth: int) -> Relation:
    return Relation(signs, tuple(_node(part, depth + 1) for part in parts), tuple(map(_name_of, parts)))


def _name_of(text: str) -> str | None:
    """The name that the text is (x, a_n, f(x), AB, \\angle ABC, (x, y), Area), with one spelling; None if it is
    none."""
    text = text.strip()
    is_text = text.startswith(TEXT_OPEN) and text.endswith(TEXT_CLOSE) and text.count(TEXT_OPEN) == 1
    if is_text or _WORDY.fullmatch(text):
        words = unmark(text)
        return words if len(words) == 1 else "text"
    plain = unmark(text)
    if len(plain) > 60 or not plain:
        return None
    if _CALL.fullmatch(plain):
        return re.sub(r"[\s{}]", "", plain)
    if (plain[0] == "(" and plain[-1] == ")" and "," in plain) or ":" in plain:
        pieces = re.split("[,:]", plain.strip("()"))
        names = [_name_of(piece) for piece in pieces]
        return "(" + ",".join(name or "" for name in names) + ")" if all(names) else None
    term = parse(plain)
    return re.sub(r"[\s{}]", "", plain) if term is not None and _is_name(term) else None


def _is_name(term: Term) -> bool:
    if term.op == "variable":
        return True
    return term.op in ("*", "/", "abs", "sin", "cos", "tan", "cot", "sec", "csc") and all(map(_is_name, term.args))


def _set_operation(text: str, operations: list[_Mark], depth: int) -> Node | None:
    parts = _cut(text, operations)
    names = {"\\cup": "union", "\\cap": "intersection", "\\setminus": "difference"}
    kinds = {names[mark.value] for mark in operations}
    if len(kinds) > 1 or not all(parts) or len(parts) > _MAX_ITEMS:
        return None
    return SetOperation(kinds.pop(), tuple(_node(part, depth + 1) for part in parts))


def _bracketed(text: str, depth: int) -> Node | None:
    """What one pair of brackets surrounds: a tuple, an interval, a set; a single item in round brackets is that
    item."""
    if _POINT.match(text) and matching(text, text.index("(")) == len(text) - 1:  # P(5, -1) is a point
        node = _bracketed(text[text.index("("):], depth)
        return node if isinstance(node, Sequence) else None
    for opening, closing, brackets in _PAIRS:
        if not text.startswith(opening):
            continue
        if closing:
            if not text.endswith(closing) or (opening != "\\langle" and matching(text, 0) != len(text) - 1):
                return None
            inside = text[len(opening):-len(closing)]
        else:
            if matching(text, 0) != len(text) - 1:
                return None
            inside, brackets = text[1:-1], text[0] + text[-1]
        return _inside(inside.strip(), brackets, depth)
    return None


def _inside(inside: str, brackets: str, depth: int) -> Node | None:
    if brackets == "{}":
        if (builder := _BUILDER.fullmatch(inside)) and (node := _set_builder(builder, depth)) is not None:
            return node
        if not inside:
            return Collection((), True)
    commas = [mark for mark in _marks(inside) if mark.kind == "separator" and mark.value == "comma"]
    parts = _cut(inside, commas)
    if not all(parts) or len(parts) > _MAX_ITEMS:
        return None
    if len(parts) == 1 and brackets in ("()", "[]"):
        return _node(inside, depth + 1) if brackets == "()" or inside.startswith(("(", "[", "\\begin")) else None
    items = [_node(part, depth + 1) for part in parts]
    if brackets == "{}":
        return Collection(_flat_collection(items, "comma").items, True)
    return Sequence(brackets, tuple(items))


def _set_builder(builder: re.Match[str], depth: int) -> Node | None:
    """{x | x > 5} and {x in R : x > 5} are their condition."""
    head = builder.group("head").strip()
    if member := _MEMBERSHIP.fullmatch(head):
        head = member.group("name").strip()
    condition = _node(builder.group("condition"), depth + 1)
    return condition if _name_of(head) and isinstance(condition, (Relation, Collection)) else None


def _environment(text: str, depth: int) -> Node | None:
    found = _ENVIRONMENT.fullmatch(text)
    if found is None:
        return None
    factor, environment, body = found.group(1).strip(), found.group(2), found.group(3)
    lines = [row for row in _ROW.split(body) if row.strip()]
    if environment in ("cases", "aligned", "align", "align*", "gathered", "split"):
        items = [_node(line.replace("&", " "), depth + 1) for line in lines]
        return None if factor or not items else Collection(tuple(items), False) if len(items) > 1 else items[0]
    if environment == "vmatrix":
        return _determinant(text, factor, [line.split("&") for line in lines])
    if environment not in _MATRICES or len(lines) > 30:
        return None
    times = f"({factor.removesuffix('*').removesuffix(chr(92) + 'cdot')})" if factor not in ("", "-") else factor
    rows = tuple(
        tuple(_node(f"{times}({entry.strip()})" if times else entry, depth + 1) for entry in line.split("&"))
        for line in lines)
    return Matrix(rows) if rows else None


def _determinant(text: str, factor: str, rows: list[list[str]]) -> Node | None:
    """|a b; c d| up to 4 rows, by expansion along the first row."""
    if not 1 <= len(rows) <= 4 or any(len(row) != len(rows) for row in rows):
        return None
    entries = [[parse(entry) for entry in row] for row in rows]
    times = parse(factor) if factor else number(1)
    if times is None or any(entry is None for row in entries for entry in row):
        return None
    determinant = _expansion([[entry for entry in row if entry is not None] for row in entries])
    return of_term(unmark(text), Term("*", (times, determinant)))


def _expansion(rows: list[list[Term]]) -> Term:
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        minor = _expansion([[*row[:column], *row[column + 1:]] for row in rows[1:]])
        terms.append(Term("*", (number((-1) ** column), entry, minor)))
    return Term("+", tuple(terms))
