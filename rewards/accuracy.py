"""Completions and a gold answer -> 1 where the final answer is equivalent to it, otherwise 0.

`accuracy` is the reward; `grade` and `grade_many` are the same judgement for scripts and evaluation. What counts as the
final answer is in extraction.py, what counts as equal in equivalence.py. The control 1 - accuracy is in controls.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.contract import GroupScore
from rewards.equivalence import compare_many
from rewards.extraction import bare_answer, extract, extract_all, rule_shares
from rewards.guards import refuse

_MAX_WRITTEN = 1000  # characters


@dataclass(frozen=True, slots=True)
class Verdict:
    """extracted: the final answer that was judged, None where nothing was found. timed_out: undecided, hence not
    correct."""

    correct: bool
    timed_out: bool
    extracted: str | None


def grade(prediction: str, gold: str) -> Verdict:
    """Judges a whole completion or a bare answer: where no extraction rule applies, the text itself, or what its last
    sentence states."""
    return grade_many([(prediction, gold)])[0]


def grade_many(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """One verdict per (prediction, gold), as `grade`; what needs computer algebra runs in parallel."""
    answers: list[str | None] = []
    written: list[str | None] = []
    for prediction, _ in pairs:
        extraction = extract(prediction)
        is_bare = extraction.rule == "none"
        answers.append(bare_answer(prediction) if is_bare else extraction.answer)
        written.append(prediction.strip() if is_bare else extraction.written)
    return _judge(answers, written, [gold for _, gold in pairs])


def gold_answer(answer: str) -> str:
    """The final answer of a gold column: some datasets keep whole solutions there, ending in \\boxed{}, after #### or
    in a sentence."""
    extraction = extract(answer)
    if extraction.answer is None or extraction.rule not in ("boxed", "hash", "phrase"):
        return answer
    return extraction.answer


def accuracy(
    *, completions: list[str], answer: str, question: str = "", last_number: bool = False,
    refuse_copied_question: bool = False, **columns: object,
) -> GroupScore:
    """r_i = 1 if the final answer of completion i is equivalent to the gold answer, else 0; unanswered is 0.

    last_number: let the last number of a completion count as its answer where nothing else is stated.
    refuse_copied_question: an answer that holds the whole question counts as none (guards.py): 17+25 is equal to 42,
    and no answer to "What is 17+25?".
    """
    extractions = extract_all(completions, last_number)
    guarded = refuse(completions, extractions, question, copied_question=refuse_copied_question)
    verdicts = _judge(guarded.answers, [extraction.written for extraction in extractions], [answer] * len(completions))
    return GroupScore(
        scores=[float(verdict.correct) for verdict in verdicts],
        metrics={"timed_out_share": sum(verdict.timed_out for verdict in verdicts) / len(verdicts),
                 "copied_question_share": guarded.metrics["copied_question_share"], **rule_shares(extractions)},
        answers=[verdict.extracted for verdict in verdicts])


def _prepare(batch: Sequence[Mapping[str, Any]]) -> None:
    """All verdicts of the batch at once: what hangs costs one deadline, not one for each group."""
    grade_completions = [(text, group["answer"]) for group in batch for text in group["completions"]]
    extractions = extract_all([text for text, _ in grade_completions])
    _judge([extraction.answer for extraction in extractions], [extraction.written for extraction in extractions],
           [gold for _, gold in grade_completions])


accuracy.needs_answer = True  # type: ignore[attr-defined]
accuracy.prepare = _prepare  # type: ignore[attr-defined]


def _judge(answers: Sequence[str | None], written: Sequence[str | None], golds: Sequence[str]) -> list[Verdict]:
    """An answer is right as the value that its sentence states, or as it was written: some golds are sentences
    themselves."""
    pairs: list[list[tuple[str, str]]] = []
    for answer, whole, gold in zip(answers, written, golds, strict=True):
        texts = [] if answer is None else [answer] if whole is None or len(whole) > _MAX_WRITTEN else [answer, whole]
        pairs.append(
            [(text, reading) for text in dict.fromkeys(texts) for reading in dict.fromkeys((gold_answer(gold), gold))])
    comparisons = iter(compare_many([pair for alternatives in pairs for pair in alternatives]))
    verdicts = []
    for answer, alternatives in zip(answers, pairs, strict=True):
        found = [next(comparisons) for _ in alternatives]
        is_correct = any(comparison.equal for comparison in found)
        verdicts.append(
            Verdict(is_correct, not is_correct and any(comparison.timed_out for comparison in found), answer))
    return verdicts
