"""The G answers of a group -> clusters of equivalent answers, and the semantic entropy over them (arXiv:2302.09664).

Founder rule: answers are taken in order; each is compared with the founder of every cluster so far, the first match
wins, and an assignment never changes. So the result is well defined although equivalence need not be transitive. An
answer that is None is a cluster of its own. Differs from the paper in that clusters are of final answers, not of whole
completions. Another notion of equality is another `equal`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rewards.answers.reading import read
from rewards.answers.trees import Node
from rewards.equivalence import compare_nodes, decide_now, equivalent, prefetch
from rewards.extraction import extract_answers


@dataclass(frozen=True, slots=True)
class Clusters:
    """labels: [G], 0, 1, ... in order of first appearance. sizes: [num_clusters]. answered: [G], False where it is
    None.

    num_non_transitive: different answers that equal the founders of two clusters, which differ from each other (5
    beside 5 cm and 5 kg). num_timed_out: comparisons that were not decided within the deadline, hence counted as not
    equal.
    """

    labels: tuple[int, ...]
    sizes: tuple[int, ...]
    answered: tuple[bool, ...]
    num_non_transitive: int = 0
    num_timed_out: int = 0

    @property
    def num_clusters(self) -> int:
        return len(self.sizes)

    @property
    def shares(self) -> tuple[float, ...]:
        """[G], p(c(o_i)): the share of the group in each completion's cluster."""
        return tuple(self.sizes[label] / len(self.labels) for label in self.labels)

    @property
    def entropy(self) -> float:
        """H = -sum_c p(c) ln p(c), in nats, 0 <= H <= ln G; unanswered completions count as clusters of one."""
        return entropy_of(self.labels)

    @property
    def normalised_entropy(self) -> float:
        """H / ln G, in [0, 1]; 0 for a group of one."""
        return self.entropy / math.log(len(self.labels)) if len(self.labels) > 1 else 0.0

    @property
    def majority(self) -> tuple[int, ...]:
        """Labels of the largest answered clusters: several where they tie, none where nothing was answered."""
        answered = {label for label, is_answered in zip(self.labels, self.answered, strict=True) if is_answered}
        largest = max((self.sizes[label] for label in answered), default=0)
        return tuple(sorted(label for label in answered if self.sizes[label] == largest))

    @property
    def unparsable_share(self) -> float:
        """Share of completions without an answer, in [0, 1]."""
        return self.answered.count(False) / len(self.labels)

    def metrics(self) -> dict[str, float]:
        return {"num_clusters": float(self.num_clusters), "normalised_entropy": self.normalised_entropy,
                "unparsable_share": self.unparsable_share, "non_transitive": float(self.num_non_transitive),
                "timed_out": float(self.num_timed_out)}


def entropy_of(labels: Sequence[int]) -> float:
    """H = -sum_c p(c) ln p(c) over the labels' shares, in nats; exactly 0 for one cluster."""
    counts = Counter(labels).values()
    return math.fsum(count / len(labels) * math.log(len(labels) / count) for count in counts)


def cluster(answers: Sequence[str | None], equal: Callable[[str, str], bool] = equivalent) -> Clusters:
    """[G] answers -> Clusters by the founder rule; equal(founder, answer) is asked once per pair of different answers.

    Raises ValueError for an empty group.
    """
    if not answers:
        raise ValueError("cluster() needs at least one answer, got an empty group")
    if equal is equivalent:
        prefetch([answers])
        labels, matches = _labels(answers, read, _match_node)
    else:
        labels, matches = _labels(answers, str, _match_with(equal))
    counts = Counter(labels)
    return Clusters(
        tuple(labels),
        tuple(counts[label] for label in range(len(counts))),
        tuple(answer is not None for answer in answers),
        sum(match.is_ambiguous for match in matches),
        sum(match.num_timed_out for match in matches))


def prepare_clusters(batch: Sequence[Mapping[str, Any]]) -> None:
    """What clustering the groups of a batch will ask computer algebra, asked together (a reward's `prepare`, see
    rewards/contract.py)."""
    prefetch([extract_answers(group["completions"], bool(group.get("last_number", False))) for group in batch])


_Form = TypeVar("_Form", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Match:
    """founder: index of the first founder that the answer equals, None for none."""

    founder: int | None
    is_ambiguous: bool = False
    num_timed_out: int = 0


def _labels(
    answers: Sequence[str | None], form: Callable[[str], _Form], match: Callable[[Sequence[_Form], _Form], _Match]
) -> tuple[list[int], list[_Match]]:
    """The founder rule over forms of answers; equal forms are one answer, compared once. Labels [G], and one match per
    form."""
    labels: list[int] = []
    known: dict[_Form, int] = {}
    founders: list[_Form] = []
    founder_labels: list[int] = []
    matches: list[_Match] = []
    num_clusters = 0
    for answer in answers:
        label = None
        if answer is not None:
            key = form(answer)
            label = known.get(key)
            if label is None:
                matches.append(found := match(founders, key))
                if found.founder is None:
                    founders.append(key)
                    founder_labels.append(num_clusters)
                else:
                    label = founder_labels[found.founder]
                known[key] = num_clusters if label is None else label
        if label is None:
            label = num_clusters
            num_clusters += 1
        labels.append(label)
    return labels, matches


def _match_with(equal: Callable[[str, str], bool]) -> Callable[[Sequence[str], str], _Match]:
    """Asks the founders in order, up to the first that is equal."""
    return lambda founders, answer: _Match(
        next((i for i, founder in enumerate(founders) if equal(founder, answer)), None))


def _match_node(founders: Sequence[Node], node: Node) -> _Match:
    """All founders at once; those that need algebra are asked together, in parallel, unless an earlier one is equal
    without."""
    decisions = [decide_now(founder, node) for founder in founders]
    first = next((i for i, decision in enumerate(decisions) if decision is not None and decision.equal), len(founders))
    undecided = [i for i, decision in enumerate(decisions[:first]) if decision is None]
    comparisons = compare_nodes([(founders[i], node) for i in undecided])
    equal = sorted([i for i, decision in enumerate(decisions) if decision is not None and decision.equal]
                   + [i for i, comparison in zip(undecided, comparisons, strict=True) if comparison.equal])
    num_timed_out = sum(comparison.timed_out for comparison in (*filter(None, decisions), *comparisons))
    return _Match(equal[0] if equal else None, len(equal) > 1, num_timed_out)
