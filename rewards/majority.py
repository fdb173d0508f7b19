"""Completions alone -> 1 for those that agree with the group's majority: TTRL (arXiv:2504.16084), no gold answer
read."""

from __future__ import annotations

from rewards.agreement import Agreement
from rewards.clustering import cluster, prepare_clusters
from rewards.contract import GroupScore
from rewards.extraction import extract_all, rule_shares
from rewards.guards import refuse


def majority_vote(
    *, completions: list[str], question: str = "", last_number: bool = False, refuse_copied_question: bool = False,
    max_answer_length: int | None = None, **columns: object,
) -> GroupScore:
    """r_i = 1 if c(o_i) is the one largest cluster of answers, else 0.

    Ties share nothing: with two largest clusters all rewards are 0, where TTRL takes the first. Unanswered is 0 and no
    majority. refuse_copied_question, max_answer_length (characters): answers that hold the whole question, or are
    longer, count as no answer.
    """
    extractions = extract_all(completions, last_number)
    guarded = refuse(
        completions, extractions, question, copied_question=refuse_copied_question, max_answer_length=max_answer_length)
    clusters = cluster(guarded.answers)
    is_tie = len(clusters.majority) > 1
    metrics = clusters.metrics() | {"tie": float(is_tie)} | rule_shares(extractions) | guarded.metrics
    return GroupScore(Agreement("majority").of(clusters), metrics, clusters.labels, guarded.answers)


majority_vote.prepare = prepare_clusters  # type: ignore[attr-defined]
