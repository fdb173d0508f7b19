"""Completions alone -> what the votes of the group say of each answer, no gold answer read: all for the majority
(TTRL, arXiv:2504.16084), every answer with a weight that grows faster than its votes (RESTRAIN, arXiv:2510.02172),
majority and minority each by how it differs from the others (EVOL-RL, arXiv:2509.15194), or what a slow copy of the
policy votes for (Co-rewarding-II, arXiv:2508.00410), as one label or by share."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
    *, completions: list[str], votes: list[str], min_share: float = 0.0, question: str = "", last_number: bool = False,
    refuse_copied_question: bool = False, max_answer_length: int | None = None, **columns: object,
) -> GroupScore:
    """r_i = 1 if its answer is that of the one largest cluster of `votes`, else 0 (Co-rewarding-II, arXiv:2508.00410).

    votes: what a moving average of the policy answered to the same question (the configuration's `votes`); they take
    the place of the group's own votes in majority_vote, and the other arguments are as there. A tie labels nothing, nor
    does a majority of less than `min_share` of the votes: all rewards are 0. Raises ValueError for a min_share outside
    0 to 1.
    """
    if not isinstance(min_share, (int, float)) or not 0 <= min_share <= 1:
        raise ValueError(f"min_share is {min_share!r}, expected a share of the votes, 0 to 1")
    own, cast, metrics = _beside_votes(
        completions, votes, question, last_number, refuse_copied_question, max_answer_length)
    leaders = cast.majority
    share = cast.sizes[leaders[0]] / len(votes) if leaders else 0.0
    is_tie, is_weak = len(leaders) > 1, share < min_share
    winner = None if is_tie or is_weak or not leaders else leaders[0]
    metrics |= {"vote_tie": float(is_tie), "vote_weak": float(is_weak), "vote_share": 0.0 if winner is None else share}
    return own.score([float(winner is not None and label == winner) for label in own.among_votes], metrics)


def share_of_votes(
    *, completions: list[str], votes: list[str], question: str = "", last_number: bool = False,
    refuse_copied_question: bool = False, max_answer_length: int | None = None, **columns: object,
) -> GroupScore:
    """r_i = share of `votes` that give its answer: EMPO's reward (rewards.semantic_entropy), with another jury than the
    group itself.

    Where EMPO raises sum_c p(c)^2, which any answer maximises that all give, this raises sum_c p(c) q(c), q being the
    jury's: a policy that moves away from it gains nothing. votes and other arguments: as in voted. A tie labels what it
    ties; nothing is thrown away.
    """
    own, cast, metrics = _beside_votes(
        completions, votes, question, last_number, refuse_copied_question, max_answer_length)
    shares = [0.0 if label is None else cast.sizes[label] / len(votes) for label in own.among_votes]
    leaders = cast.majority
    metrics["vote_share"] = cast.sizes[leaders[0]] / len(votes) if leaders else 0.0
    return own.score(shares, metrics)


def majority_with_novelty(
    *, completions: list[str], question: str = "", last_number: bool = False, refuse_copied_question: bool = False,
    max_answer_length: int | None = None, **columns: object,
) -> GroupScore:
    """r_i in [0.5, 1] for the one largest cluster, in [-1, -0.5] for the other answers, the newer the text the higher;
    -1 without an answer (EVOL-RL, arXiv:2509.15194).

    Novelty u_i = 1 - (mean similarity to its own side, or to all where it is alone there, + largest similarity to any
    other answered completion) / 2, scaled to [0, 1] over its side, majority or others; equal ones are 0.5. One alone in
    the majority gets 1, one alone beside it -0.5. The paper compares embeddings; here the similarity of two completions
    is the cosine of their counts of three characters in a row, which hears wording and not meaning. A tie has no
    majority, where the paper takes the first. Other arguments: as in majority_vote.
    """
    extractions = extract_all(completions, last_number)
    guarded = refuse(
        completions, extractions, question, copied_question=refuse_copied_question, max_answer_length=max_answer_length)
    clusters = cluster(guarded.answers)
    winner = clusters.majority[0] if len(clusters.majority) == 1 else None
    answered = [i for i, is_answered in enumerate(clusters.answered) if is_answered]
    sides = [[i for i in answered if (clusters.labels[i] == winner) == is_majority] for is_majority in (True, False)]
    scores = [-1.0] * len(completions)
    for side, (lowest, alone) in zip(sides, ((0.5, 1.0), (-1.0, -0.5)), strict=True):
        for i, novelty in zip(side, _novelties(completions, side, answered), strict=True):
            scores[i] = alone if len(side) == 1 else lowest + 0.5 * novelty
    metrics = clusters.metrics() | rule_shares(extractions) | guarded.metrics
    return GroupScore(scores, metrics, clusters.labels, guarded.answers)


@dataclass(frozen=True, slots=True)
class _Judged:
    """A group beside its votes. among_votes: [G], the cluster of the votes in which each answer is; None where none of
    them gives it, or there is no answer."""

    clusters: Clusters
    answers: Sequence[str | None]
    among_votes: Sequence[int | None]

    def score(self, scores: list[float], metrics: dict[str, float]) -> GroupScore:
        return GroupScore(scores, metrics, self.clusters.labels, self.answers)


def _beside_votes(
    completions: list[str], votes: list[str], question: str, last_number: bool, refuse_copied_question: bool,
    max_answer_length: int | None,
) -> tuple[_Judged, Clusters, dict[str, float]]:
    """The group, the clusters of the votes, and the group's metrics."""
    extractions = extract_all(completions, last_number)
    guarded, labelling = (
        refuse(texts, found, question, copied_question=refuse_copied_question, max_answer_length=max_answer_length)
        for texts, found in ((completions, extractions), (votes, extract_all(votes, last_number))))
    # Together, such that an answer of either side can be equal to one of the other; labels count from the first vote.
    together = cluster([*labelling.answers, *guarded.answers])
    labels = together.labels[: len(votes)]
    sizes = tuple(labels.count(label) for label in range(len({*labels})))
    cast = Clusters(labels, sizes, together.answered[: len(votes)])
    among_votes = [label if answer is not None and label < len(sizes) else None
                   for label, answer in zip(together.labels[len(votes):], guarded.answers, strict=True)]
    own = cluster(guarded.answers)
    return (_Judged(own, guarded.answers, among_votes), cast,
            own.metrics() | rule_shares(extractions) | guarded.metrics)


def _novelties(completions: Sequence[str], side: Sequence[int], answered: Sequence[int]) -> list[float]:
    """Of each member of a side, in [0, 1]."""
    trigrams = {i: Counter(completions[i][at : at + 3] for at in range(max(1, len(completions[i]) - 2)))
                for i in answered}
    raw = []
    for i in side:
        others = {j: _cosine(trigrams[i], trigrams[j]) for j in answered if j != i}
        near = [others[j] for j in side if j != i] or list(others.values())
        raw.append(1 - (math.fsum(near) / len(near) + max(others.values())) / 2 if others else 0.0)
    lowest, spread = min(raw, default=0.0), max(raw, default=0.0) - min(raw, default=0.0)
    # What differs by rounding alone is equally new.
    return [(value - lowest) / spread if spread > 1e-9 else 0.5 for value in raw]


def _cosine(one: Counter[str], other: Counter[str]) -> float:
    """Of two counts, neither empty."""
    product = sum(count * other[key] for key, count in one.items())
    return product / math.sqrt(sum(c * c for c in one.values()) * sum(c * c for c in other.values()))


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
majority_with_novelty.prepare = prepare_clusters  # type: ignore[attr-defined]
voted.prepare = prepare_clusters  # type: ignore[attr-defined]
voted.needs_votes = True  # type: ignore[attr-defined]
share_of_votes.prepare = prepare_clusters  # type: ignore[attr-defined]
share_of_votes.needs_votes = True  # type: ignore[attr-defined]
