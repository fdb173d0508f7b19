"""Are two answers equal?

    equivalent("1/2", "0.5") -> True        equivalent("601", "600") -> False

First by canonical form (rewards/canonical.py), without any process or import; only what that leaves undecided goes to computer
algebra in killable workers. The rules, the same for grading and for clustering:

- Exact: integers compare exactly, a decimal equals a fraction only where exact (0.33 is not 1/3). No tolerance anywhere.
- A unit, percent, degree or currency sign may stand on one side only: 50% equals 50 (and not 0.5), 5 cm equals 5 and not 5 kg.
- `x = 5` equals 5, and not y = 5.
- Words and letters of multiple choice compare without case; for choices the letter decides.
- What is not decided within the deadline is not equal, and is reported as timed out.

Symmetric and reflexive. Not transitive, because units may be left out: 5 cm ~ 5 ~ 5 kg.
To teach it a notation, extend canonical.py.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rewards.canonical import Canonical, canonical
from rewards.workers import Outcome, WorkerPool

MAX_LENGTH = 1000  # characters; a longer expression is compared as text only
_MAX_CACHED = 100_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """equal: decided as equal. timed_out: not decided within a worker's time and memory; equal is then False."""

    equal: bool
    timed_out: bool = False


_verdicts: dict[tuple[str, str], Comparison] = {}


def equivalent(first: str, second: str) -> bool:
    """Whether two answers are equal by the rules of the module docstring; what times out is not."""
    return compare_many([(first, second)])[0].equal


def compare_many(pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """One comparison per pair; what needs algebra is done together, in parallel, each distinct pair once."""
    results: list[Comparison | None] = [None] * len(pairs)
    undecided: dict[tuple[str, str], list[int]] = {}
    for i, (first, second) in enumerate(pairs):
        left, right = canonical(first), canonical(second)
        decided = decide(left, right)
        if decided is not None:
            results[i] = Comparison(decided)
        else:
            undecided.setdefault(_for_algebra(left, right), []).append(i)
    for question, comparison in _ask_algebra(list(undecided)).items():
        for i in undecided[question]:
            results[i] = comparison
    return [result for result in results if result is not None]


def decide(left: Canonical, right: Canonical) -> bool | None:
    """True or False where canonical forms suffice, None where algebra has to be asked."""
    if left == right:
        return True
    if left.kind == right.kind:
        if left.value == right.value:
            return _one_may_be_missing(left.unit, right.unit) and _one_may_be_missing(left.name, right.name)
        if left.kind != "expression" or str(left.value).casefold() == str(right.value).casefold():
            return False  # R and r are two variables; algebra would not tell them apart
        if ("=" in left.latex) != ("=" in right.latex) and not (left.name or right.name):
            return False  # 7 = 11a + c is not 11a + c
    for one, other in ((left, right), (right, left)):
        if one.kind == "text" and (other.kind == "number" or len(str(one.value)) > 1):
            return False
    if not left.latex or not right.latex or max(len(left.latex), len(right.latex)) > MAX_LENGTH:
        return False
    return None


def _one_may_be_missing(first: str, second: str) -> bool:
    return first == second or not first or not second


def _for_algebra(left: Canonical, right: Canonical) -> tuple[str, str]:
    """The two texts in sorted order, so that the verdict is symmetric; names kept where the other side may need them."""
    keep_names = (left.name != "" or "=" in left.latex) and (right.name != "" or "=" in right.latex)
    texts = [f"{side.name} = {side.latex}" if side.name and keep_names else side.latex for side in (left, right)]
    return min(texts), max(texts)


@cache
def _pool() -> WorkerPool | None:
    """The workers, or None without math-verify, which is said once."""
    if importlib.util.find_spec("math_verify") is None:
        warnings.warn("math-verify is not installed: expressions compare as text only "
                      "(pip install math-verify==0.9.0)", stacklevel=2)
        return None
    return WorkerPool("rewards.symbolic:algebraically_equal")


def _ask_algebra(questions: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Comparison]:
    new = [question for question in questions if question not in _verdicts]
    if new:
        pool = _pool()
        outcomes = [Outcome("ok", False)] * len(new) if pool is None else pool.call(new)
        if len(_verdicts) + len(new) > _MAX_CACHED:
            kept = {question: _verdicts[question] for question in questions if question in _verdicts}
            _verdicts.clear()
            _verdicts.update(kept)
        for question, outcome in zip(new, outcomes, strict=True):
            _verdicts[question] = Comparison(outcome.value is True, outcome.status in ("timed_out", "died"))
    return {question: _verdicts[question] for question in questions}
