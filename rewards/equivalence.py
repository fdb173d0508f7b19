"""Are two answers equal?

    equivalent("1/2", "0.5") -> True        equivalent("601", "600") -> False

Each answer is read into a tree (rewards/answers/reading.py) whose leaves are numbers, words and expressions
(rewards/answers/canonical.py). Exact values, and values of expressions to 40 digits (rewards/answers/numeric.py),
decide nearly all of it here; the rest (integrals, infinite sums, notation that our grammar does not know) goes to
computer algebra in killable workers. The rules, the same for grading and for clustering:

- Exact: integers compare exactly, a decimal equals a fraction only where exact (0.33 is not 1/3). No tolerance;
  expressions agree to 40 digits.
- A unit, percent, degree or currency sign may stand on one side only: 50% equals 50 (and not 0.5), 5 cm equals 5 and
  not 5 kg. Spellings of one unit are one; units are not converted; words that say what is counted (apples) are ignored.
- `x = 5` equals 5, and not y = 5; of `x = 2 + 3 = 5` the last part counts, of `1/3 \\approx 0.33` the exact one. Other
  equations are equal if one is a multiple of the other; inequalities likewise, with a positive factor.
- Tuples, vectors and matrices are ordered; brackets matter. An interval, the inequality and the set notation for it are
equal.
- Lists and sets are unordered and must be complete; a \\pm b is the list of both. Repetitions count in lists and not in
sets.
- For choices the letter decides; without a letter on one side, what stands behind it. Words compare without case.
- a : b equals c : d and the fraction of the same value. 52_8 is that, and no number.
- What is not decided within the deadline, or never could be (9^9^9^9), is not equal, and is reported as timed out.

Symmetric and reflexive. Not transitive, because units may be left out: 5 cm ~ 5 ~ 5 kg.
To teach it a notation, see the table in CONTRIBUTING.md.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rewards.answers import expression, reading
from rewards.answers.comparison import Pair, TreeComparison, needs_algebra
from rewards.answers.description import describe, shorten
from rewards.answers.reading import read
from rewards.answers.trees import Node
from rewards.processes.pool import Outcome, WorkerPool

_MAX_CACHED = 100_000
_FEW = 8  # pairs that are asked about at once
_NUMBER = "2.7182818"


@dataclass(frozen=True, slots=True)
class Comparison:
    """equal: decided as equal. timed_out: not decided, for time, memory, size or an error of the algebra; equal is then
    False."""

    equal: bool
    timed_out: bool = False


_verdicts: dict[Pair, Comparison] = {}
_tried: dict[str, bool] = {}  # answers that algebra was asked about alone: whether it was through in time


def equivalent(first: str, second: str) -> bool:
    """Whether two answers are equal by the rules of the module docstring; what times out is not."""
    return compare_many([(first, second)])[0].equal


def compare_many(pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """One comparison per pair of answers as written; what needs algebra is asked together, each distinct pair once."""
    return compare_nodes([(read(first), read(second)) for first, second in pairs])


def explain(first: str, second: str) -> list[str]:
    """Plain lines: how each answer is read, what decided, and the verdict."""
    left, right = read(first), read(second)
    lines = [f"{shorten(first)} is read as: {describe(left)}", f"{shorten(second)} is read as: {describe(right)}"]
    comparison = TreeComparison({})
    verdict = comparison.equal(left, right)
    if comparison.num_hopeless and not verdict:
        return [*lines, "undecided, counted as not equal: a value that is too large to be computed"]
    if verdict is not None:
        by_values = "exact values, values to 40 digits and the rules for structure"
        reason = "the same canonical form" if left == right else by_values
        return [*lines, f"{'equal' if verdict else 'not equal'}, decided by {reason}"]
    result = compare_nodes([(left, right)])[0]
    asked = "; ".join(f"is {one} equal to {other}?" for one, other in comparison.asked)
    unequal = "undecided within the deadline, counted as not equal" if result.timed_out else "not equal"
    outcome = "equal" if result.equal else unequal
    return [*lines, f"{outcome}, decided by computer algebra: {asked}"]


def decide_now(first: Node, second: Node) -> Comparison | None:
    """The comparison where no algebra is needed, else None."""
    return _decided(first, second)[0]


def _decided(first: Node, second: Node) -> tuple[Comparison | None, list[Pair]]:
    """The comparison without algebra, or None with the pairs that algebra has to be asked about."""
    comparison = TreeComparison({})
    verdict = comparison.equal(first, second)
    if verdict is None:
        return None, comparison.asked
    return Comparison(verdict, not verdict and comparison.num_hopeless > 0), []


def compare_nodes(pairs: Sequence[tuple[Node, Node]]) -> list[Comparison]:
    """One comparison per pair of trees; what needs algebra is asked together, in parallel, each distinct pair once."""
    results: list[Comparison | None] = []
    undecided: dict[int, list[Pair]] = {}
    for i, pair in enumerate(pairs):
        decided, asked = _decided(*pair)
        results.append(decided)
        if decided is None:
            undecided[i] = asked
    found = _ask_algebra(list(dict.fromkeys(pair for asked in undecided.values() for pair in asked)))
    verdicts = {pair: comparison.equal for pair, comparison in found.items()}
    for i, asked in undecided.items():
        is_equal = _with_all_verdicts(*pairs[i], verdicts)
        results[i] = Comparison(is_equal, not is_equal and any(found[pair].timed_out for pair in asked))
    return [result for result in results if result is not None]


def _with_all_verdicts(left: Node, right: Node, verdicts: dict[Pair, bool]) -> bool:
    """A verdict may lead to further pairs (a match that fails, another that is tried): asked until none is left."""
    while True:
        comparison = TreeComparison(verdicts)
        verdict = comparison.equal(left, right)
        if verdict is not None or not comparison.asked:
            return bool(verdict)
        verdicts |= {pair: result.equal for pair, result in _ask_algebra(comparison.asked).items()}


def prefetch(groups: Sequence[Sequence[str | None]]) -> None:
    """Decides, together and in parallel, what clustering these groups of answers will ask algebra: a hanging answer
    then costs one deadline for the whole batch and not one for each group."""
    pairs: list[Pair] = []
    for answers in groups:
        nodes = list(dict.fromkeys(read(answer) for answer in answers if answer is not None))
        doubtful = [node for node in nodes if needs_algebra(node)]
        for node in doubtful:
            for other in nodes:
                if other is not node:
                    pairs += _decided(node, other)[1]
    if pairs:
        _ask_algebra(list(dict.fromkeys(pairs)))


def clear_cache() -> None:
    """Forgets all verdicts and readings; the workers stay."""
    _verdicts.clear()
    _tried.clear()
    reading._cached.cache_clear()
    expression._cached.cache_clear()


@cache
def _pool() -> WorkerPool | None:
    """The workers, or None without math-verify, which is said once."""
    if importlib.util.find_spec("math_verify") is None:
        warnings.warn("math-verify is not installed: sums, integrals and unusual notation compare as text only "
                      "(pip install math-verify==0.9.0)", stacklevel=2)
        return None
    return WorkerPool("rewards.answers.symbolic:algebraically_equal")


def _ask_algebra(questions: Sequence[Pair]) -> dict[Pair, Comparison]:
    new = [question for question in questions if question not in _verdicts]
    if new:
        pool = _pool()
        outcomes = [Outcome("ok", False)] * len(new) if pool is None else _ask_pool(pool, new)
        if len(_verdicts) + len(new) > _MAX_CACHED:
            kept = {question: _verdicts[question] for question in questions if question in _verdicts}
            _verdicts.clear()
            _verdicts.update(kept)
        for question, outcome in zip(new, outcomes, strict=True):
            _verdicts[question] = Comparison(outcome.value is True, outcome.status != "ok")
    return {question: _verdicts[question] for question in questions}


def _ask_pool(pool: WorkerPool, questions: Sequence[Pair]) -> Sequence[Outcome]:
    """Many pairs may share an answer that hangs, and each would cost a deadline: then every answer is first tried
    alone, against a number, and pairs with one that is not through in time are undecided without being asked."""
    if len(questions) <= _FEW:
        return pool.call(questions)
    texts = sorted({text for question in questions for text in question} - _tried.keys())
    if len(_tried) + len(texts) > _MAX_CACHED:
        _tried.clear()
    tries = pool.call([(text, _NUMBER) for text in texts])
    _tried.update((text, outcome.status != "timed_out") for text, outcome in zip(texts, tries, strict=True))
    sound = [question for question in questions if all(_tried[text] for text in question)]
    outcomes = dict(zip(sound, pool.call(sound), strict=True))
    return [outcomes.get(question, Outcome("timed_out")) for question in questions]
