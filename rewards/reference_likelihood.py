"""Completions and a gold answer -> how likely the policy finds that answer after its own reasoning: no verifier is
needed.

RLPR (arXiv:2506.18254) and VeriFree (arXiv:2505.21493). What stands before the final answer of a completion is kept,
the opening of its container (such as \\boxed{) included; the gold answer takes the final answer's place, and its tokens
are scored. What follows it does not matter to a causal model and is left out. Differs from the papers: the debiased
reward's "no reasoning" is the prompt with that opening alone; RLPR's filter by the rewards' standard deviation is left
to `selection` (groups with equal rewards never train); VeriFree's second gradient term, which raises the answer's
likelihood itself, is not a reward and is left out. The probabilities are those at the sampling temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from rewards.accuracy import gold_answer
from rewards.answer_place import answer_place
from rewards.contract import GroupScore, PolicyLike
from rewards.extraction import extract

Form = Literal["mean_probability", "sequence_probability", "log_likelihood"]


def reference_likelihood(
    *, completions: list[str], answer: str, policy: PolicyLike, form: Form = "mean_probability",
    debias: bool | None = None, last_number: bool = False, **columns: object,
) -> GroupScore:
    """With p_t the policy's probability of the gold answer's token t of T after the completion's reasoning:

    mean_probability: (1/T) sum_t p_t (RLPR). sequence_probability: prod_t p_t (VeriFree). log_likelihood: sum_t ln p_t.
    debias: r_i = clip(p - p without the reasoning, 0, 1); None stands for true with mean_probability, as in RLPR, else
    false. A completion without a final answer gets 0, and with log_likelihood, where 0 would be the best value of all,
    the lowest value of the group. Raises ValueError for an unknown form, and for debias with log_likelihood.
    """
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}, expected one of {', '.join(get_args(Form))}")
    if debias and form == "log_likelihood":
        raise ValueError(
            "debias is true, which form log_likelihood does not know; expected mean_probability or sequence_probability"
        )
    debias = form == "mean_probability" if debias is None else debias
    gold = gold_answer(answer).strip()
    split = [reasoning_and_opening(completion, last_number) for completion in completions]
    found = [parts for parts in split if parts is not None]
    beginnings = [reasoning + opening for reasoning, opening in found]
    openings = list(dict.fromkeys(opening for _, opening in found)) if debias else []
    logprobs = policy.logprobs([(beginning, gold) for beginning in (*beginnings, *openings)]) if found else []
    values = [_value(row, form) for row in logprobs[:len(found)]]
    metrics = {"unanswered_share": split.count(None) / len(split)}
    if debias:
        alone = dict(zip(openings, (_value(row, form) for row in logprobs[len(found):]), strict=True))
        metrics["without_reasoning"] = math.fsum(alone[opening] for _, opening in found) / len(found) if found else 0.0
        values = [min(max(value - alone[opening], 0.0), 1.0) for value, (_, opening) in zip(values, found, strict=True)]
    unanswered = min(values, default=0.0) if form == "log_likelihood" else 0.0
    remaining = iter(values)
    return GroupScore([unanswered if parts is None else next(remaining) for parts in split], metrics)


reference_likelihood.needs_answer = True  # type: ignore[attr-defined]
reference_likelihood.needs_policy = True  # type: ignore[attr-defined]


def reasoning_and_opening(completion: str, last_number: bool = False) -> tuple[str, str] | None:
    """(what stands before the final answer's container, the container's opening): the answer follows directly. None: no
    answer.

    An answer that stands in no container (a last number) has an empty opening."""
    place = answer_place(completion, extract(completion, last_number))
    return None if place is None else (completion[:place.opening], completion[place.opening:place.start])


def _value(logprobs: Sequence[float], form: str) -> float:
    if form == "mean_probability":
        return math.fsum(map(math.exp, logprobs)) / len(logprobs)
    total = math.fsum(logprobs)
    return math.exp(total) if form == "sequence_probability" else total
