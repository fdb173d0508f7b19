"""Completions alone -> the share of the group that agrees with each: EMPO (arXiv:2504.05812), no gold answer read.

Maximising the expected share lowers the semantic entropy over the clusters of final answers. Forms: `share` is EMPO,
`log` the exact gradient of the Shannon entropy (the first version of its code), `power` sharpens towards the majority
vote of majority.py. What the policy might agree on without solving anything is refused by guards.py.
"""

from __future__ import annotations

from typing import Literal

from rewards.agreement import Agreement
from rewards.clustering import cluster, prepare_clusters
from rewards.contract import GroupScore
from rewards.extraction import extract_all, rule_shares
from rewards.guards import refuse


def semantic_entropy(
    *, completions: list[str], question: str = "", form: Literal["share", "log", "power"] = "share", power: float = 1.0,
    unanswered: float | None = None, last_number: bool = False, refuse_copied_question: bool = False,
    max_answer_length: int | None = None, **columns: object,
) -> GroupScore:
    """r_i = p(c(o_i)) for form share, ln p(c(o_i)) for log, p(c(o_i))^power for power, with p(c) = |c| / G.

    unanswered: the reward of a completion without an answer; None stands for 0 with share and power, and for ln(1/G)
    with log, where 0 would be the best value of all. refuse_copied_question, max_answer_length (characters): answers
    that hold the whole question, or are longer, count as no answer. Raises ValueError for an unknown form, or a power
    that is not above 0.
    """
    if form not in ("share", "log", "power"):
        raise ValueError(f"form is {form!r}, expected one of share, log, power")
    agreement = Agreement(form, power, unanswered)
    extractions = extract_all(completions, last_number)
    guarded = refuse(
        completions, extractions, question, copied_question=refuse_copied_question, max_answer_length=max_answer_length)
    clusters = cluster(guarded.answers)
    metrics = clusters.metrics() | {"entropy": clusters.entropy} | rule_shares(extractions) | guarded.metrics
    return GroupScore(agreement.of(clusters), metrics, clusters.labels, guarded.answers)


semantic_entropy.prepare = prepare_clusters  # type: ignore[attr-defined]
