"""Scored groups -> which of them train (entropy thresholding; EMPO, arXiv:2504.05812, section 3).

A group trains only if its rewards could judge it, low < H / ln G < high and its rewards differ (a teacher's advantages
are per token: with one, groups with equal rewards train too). Which splits of G answers the bounds refuse:
rl/questions/splits.py. A group without consensus trains too where it is to be penalised for that (the negative rollout
penalisation of RESTRAIN, arXiv:2510.02172). Anchors, whose answers are known, have no bounds on their entropy. What
becomes of the others is `selection.mode`: drop and refill leave them out, zero keeps them in the loss denominator with
advantage 0. A refused group costs no forward and no backward pass (except under `zero` with a KL penalty or an entropy
bonus, which act on it too).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rewards.clustering import entropy_of
from rl.records import ScoredGroup

Refusal = Literal["skipped", "too_low", "too_high", "equal_rewards"]
Unanswered = Literal["apart", "together"]
REFUSALS: tuple[Refusal, ...] = ("skipped", "too_low", "too_high", "equal_rewards")

# H / ln G of a group whose answers all differ comes out as 1 - 1e-16 or 1 + 1e-16; thresholds mean the exact value.
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Selection:
    """kept: the groups that train. refused: the others, each with its reason, in the order they were sampled."""

    kept: tuple[ScoredGroup, ...]
    refused: tuple[tuple[ScoredGroup, Refusal], ...]

    def __add__(self, other: Selection) -> Selection:
        return Selection(self.kept + other.kept, self.refused + other.refused)

    def shares(self) -> dict[str, float]:
        """Share of all sampled groups refused for each reason, in [0, 1]."""
        total = max(1, len(self.kept) + len(self.refused))
        return {f"refused/{reason}": sum(r == reason for _, r in self.refused) / total for reason in REFUSALS}


def lacks_consensus(group: ScoredGroup, min_votes: int | None) -> bool:
    """Whether the largest cluster of answers has fewer than `min_votes` completions; never with None, or of an
    anchor."""
    return min_votes is not None and not group.is_anchor and group.largest_cluster < min_votes


def refusal(
    group: ScoredGroup, low: float | None, high: float | None, *, keep_equal: bool = False,
    each: Sequence[float] | None = None, min_votes: int | None = None, unanswered: Unanswered = "apart",
) -> Refusal | None:
    """Why this group does not train, or None; thresholds are on the normalised entropy and both are exclusive.
    keep_equal: equal rewards are no reason. each: weights of the rewards, which are equal where each that counts is,
    and not where their sum is; None: the sum decides. min_votes: a group that lacks this consensus is refused only
    where nobody could judge it. unanswered: as in selection_entropy."""
    if group.skipped:  # first: the entropy of clusters that nobody judged says nothing
        return "skipped"
    if lacks_consensus(group, min_votes):
        return None
    if group.is_anchor:
        low = high = None
    entropy = selection_entropy(group, unanswered)
    if low is not None and entropy <= low + ROUNDING:
        return "too_low"
    if high is not None and entropy >= high - ROUNDING:
        return "too_high"
    is_equal = group.has_equal_rewards if each is None else group.has_equal_scores(each)
    return "equal_rewards" if is_equal and not keep_equal else None


def selection_entropy(group: ScoredGroup, unanswered: Unanswered) -> float:
    """H / ln G, in [0, 1]; of completions without an answer each is a cluster, or all are one."""
    if unanswered == "apart":
        return group.normalised_entropy
    labels = [-1 if answer is None else label for answer, label in zip(group.answers, group.labels, strict=True)]
    return entropy_of(labels) / math.log(len(labels))


def select(
    groups: Sequence[ScoredGroup], low: float | None, high: float | None, *, keep_equal: bool = False,
    each: Sequence[float] | None = None, min_votes: int | None = None, unanswered: Unanswered = "apart",
) -> Selection:
    """Split a batch into the groups that train and those that do not, each as `refusal` says."""
    reasons = [(group, refusal(group, low, high, keep_equal=keep_equal, each=each, min_votes=min_votes,
                               unanswered=unanswered)) for group in groups]
    return Selection(
        kept=tuple(group for group, reason in reasons if reason is None),
        refused=tuple((group, reason) for group, reason in reasons if reason is not None))
