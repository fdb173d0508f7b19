"""Completions and a gold answer -> 1 where the final answer is equivalent to it, otherwise 0.

`accuracy` is the reward; `grade` and `grade_many` are the same judgement for scripts and evaluation. What counts as the final
answer is in extraction.py, what counts as equal in equivalence.py. The control 1 - accuracy is in controls.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.contract import GroupScore
from rewards.equivalence import Comparison, compare_many
from rewards.extraction import bare_answer, extract, extract_all, rule_shares
from rewards.guards import refuse


@dataclass(frozen=True, slots=True)
class Verdict:
    """extracted: the final answer that was judged, None where nothing was found. timed_out: undecided, hence not correct."""

    correct: bool
    timed_out: bool
    extracted: str | None


def grade(prediction: str, gold: str) -> Verdict:
    """Judges a whole completion or a bare answer: where no extraction rule applies, the text itself, or what its last sentence states."""
    return grade_many([(prediction, gold)])[0]


def grade_many(pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
    """One verdict per (prediction, gold), as `grade`; what needs computer algebra runs in parallel."""
    answers: list[str | None] = []
    for prediction, _ in pairs:
        extraction = extract(prediction)
        answers.append(bare_answer(prediction) if extraction.rule == "none" else extraction.answer)
    return _judge(answers, [gold for _, gold in pairs])


def gold_answer(answer: str) -> str:
    """The final answer of a gold column: some datasets keep whole solutions there, ending in \\boxed{}, after #### or in a sentence."""
    extraction = extract(answer)
    return extraction.answer if extraction.answer is not None and extraction.rule in ("boxed", "hash", "phrase") else answer


def accuracy(*, completions: list[str], answer: str, question: str = "", last_number: bool = False, refuse_copied_question: bool = False,
             **columns: object) -> GroupScore:
    """r_i = 1 if the final answer of completion i is equivalent to the gold answer, else 0; unanswered is 0.

    last_number: let the last number of a completion count as its answer where nothing else is stated. refuse_copied_question: an answer
    that holds the whole question counts as none (guards.py): 17+25 is equal to 42, and no answer to "What is 17+25?".
    """
    extractions = extract_all(completions, last_number)
    guarded = refuse(completions, extractions, question, copied_question=refuse_copied_question)
    verdicts = _judge(guarded.answers, [answer] * len(completions))
    return GroupScore(
        scores=[float(verdict.correct) for verdict in verdicts],
        metrics={"timed_out_share": sum(verdict.timed_out for verdict in verdicts) / len(verdicts),
                 "copied_question_share": guarded.metrics["copied_question_share"], **rule_shares(extractions)},
        answers=[verdict.extracted for verdict in verdicts])


accuracy.needs_answer = True  # type: ignore[attr-defined]


def _judge(answers: Sequence[str | None], golds: Sequence[str]) -> list[Verdict]:
    found = [(answer, gold_answer(gold)) for answer, gold in zip(answers, golds, strict=True) if answer is not None]
    comparisons = iter(compare_many(found))
    verdicts = []
    for answer in answers:
        comparison = next(comparisons) if answer is not None else Comparison(False)
        verdicts.append(Verdict(comparison.equal, comparison.timed_out, answer))
    return verdicts
