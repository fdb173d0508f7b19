"""Completions alone -> what the votes of the group say of each answer, no gold answer read: all for the majority
(TTRL, arXiv:2504.16084), or every answer with a weight that grows faster than its votes (RESTRAIN,
arXiv:2510.02172)."""

from __future__ import annotations

import math
from collections import Counter

from rewards.agreement import Agreement
from rewards.clustering import Clusters, cluster, prepare_clusters
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


def soft_votes(
    *, completions: list[str], question: str = "", sharpness: float = 0.5, last_number: bool = False,
    refuse_copied_question: bool = False, max_answer_length: int | None = None, **columns: object,
) -> GroupScore:
    """r_i = w(c(o_i)), with w_j = g(f_j) / sum over the answers of g, f_j = |c_j| / G, g(f) = exp(-(1 - f)^2 / (2
    sharpness^2)): every answer is a pseudo-label that counts w_j.

    With advantage dr_grpo and one update a batch the gradient is RESTRAIN's, sum_j w_j of the one with label j; grpo
    divides the whole by its deviation, where the paper divides each. Its g is a Gaussian whose centre (here 1: all
    agree) and width it leaves open. A small sharpness is the majority vote (0.1), a large one the same weight for
    every answer. Unanswered is 0 and no pseudo-label. Its penalty for groups without consensus is selection.min_votes,
    its weights of questions by a frozen base are left out. refuse_copied_question, max_answer_length: as in
    majority_vote. Raises ValueError for a sharpness that is not above 0.
    """
    if not isinstance(sharpness, (int, float)) or not sharpness > 0:
        raise ValueError(f"sharpness is {sharpness!r}, expected a number above 0")
    extractions = extract_all(completions, last_number)
    guarded = refuse(
        completions, extractions, question, copied_question=refuse_copied_question, max_answer_length=max_answer_length)
    clusters = cluster(guarded.answers)
    metrics = clusters.metrics() | rule_shares(extractions) | guarded.metrics
    return GroupScore(_vote_weights(clusters, sharpness), metrics, clusters.labels, guarded.answers)


def voted(
    *, completions: list[str], votes: list[str], question: str = "", last_number: bool = False,
    refuse_copied_question: bool = False, max_answer_length: int | None = None, **columns: object,
) -> GroupScore:
    """r_i = 1 if its answer is that of the one largest cluster of `votes`, else 0 (Co-rewarding-II, arXiv:2508.00410).

    votes: what a moving average of the policy answered to the same question (the configuration's `votes`); they take
    the place of the group's own votes in majority_vote, and the other arguments are as there. A tie labels nothing: all
    rewards are 0.
    """
    extractions = extract_all(completions, last_number)
    guarded, labelling = (
        refuse(texts, found, question, copied_question=refuse_copied_question, max_answer_length=max_answer_length)
        for texts, found in ((completions, extractions), (votes, extract_all(votes, last_number))))
    # Together, such that an answer of either side can be equal to one of the other.
    together = cluster([*labelling.answers, *guarded.answers])
    ranked = Counter(
        label for label, answer in zip(together.labels, labelling.answers, strict=False) if answer is not None
    ).most_common(2)
    is_tie = len(ranked) == 2 and ranked[0][1] == ranked[1][1]
    winner = None if is_tie or not ranked else ranked[0][0]
    labels = together.labels[len(votes):]
    own = cluster(guarded.answers)
    metrics = own.metrics() | rule_shares(extractions) | guarded.metrics | {
        "vote_tie": float(is_tie), "vote_share": ranked[0][1] / len(votes) if ranked else 0.0}
    return GroupScore(
        [float(answer is not None and label == winner) for label, answer in zip(labels, guarded.answers, strict=True)],
        metrics, own.labels, guarded.answers)


def _vote_weights(clusters: Clusters, sharpness: float) -> list[float]:
    """[G]: w of each completion's cluster, 0 without an answer."""
    answered = {label for label, is_answered in zip(clusters.labels, clusters.answered, strict=True) if is_answered}
    if not answered:
        return [0.0] * len(clusters.labels)
    exponents = {label: -((1 - clusters.sizes[label] / len(clusters.labels)) / sharpness) ** 2 / 2
                 for label in sorted(answered)}
    largest = max(exponents.values())  # of a small sharpness every exponential alone would be 0
    shaped = {label: math.exp(exponent - largest) for label, exponent in exponents.items()}
    total = math.fsum(shaped.values())
    return [shaped[label] / total if is_answered else 0.0
            for label, is_answered in zip(clusters.labels, clusters.answered, strict=True)]


soft_votes.prepare = prepare_clusters  # type: ignore[attr-defined]
voted.prepare = prepare_clusters  # type: ignore[attr-defined]
voted.needs_votes = True  # type: ignore[attr-defined]
