"""The G answers of a group -> clusters of equivalent answers, and the semantic entropy over them (arXiv:2302.09664).

Founder rule: answers are taken in order; each is compared with the founder of every cluster so far, the first match wins, and an
assignment never changes. So the result is well defined although equivalence need not be transitive. An answer that is None
is a cluster of its own. Differs from the paper in that clusters are of final answers, not of whole completions. Another notion of
equality is another `equal`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rewards.equivalence import compare_nodes, decide_now, equivalent
from rewards.reading import read
from rewards.structure import Node


@dataclass(frozen=True, slots=True)
class Clusters:
    """labels: [G], 0, 1, ... in order of first appearance. sizes: [num_clusters]. answered: [G], False where it is None."""

    labels: tuple[int, ...]
    sizes: tuple[int, ...]
    answered: tuple[bool, ...]

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
                "unparsable_share": self.unparsable_share}


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
    labels = _labels(answers, read, _first_equal_node) if equal is equivalent else _labels(answers, str, _first_equal_with(equal))
    counts = Counter(labels)
    return Clusters(tuple(labels), tuple(counts[label] for label in range(len(counts))),
                    tuple(answer is not None for answer in answers))


_Form = TypeVar("_Form", bound=Hashable)


def _labels(
    answers: Sequence[str | None], form: Callable[[str], _Form], first_equal: Callable[[Sequence[_Form], _Form], int | None]
) -> list[int]:
    """The founder rule over forms of answers; equal forms are one answer, compared once. first_equal(founders, form) -> index or None."""
    labels: list[int] = []
    known: dict[_Form, int] = {}
    founders: list[_Form] = []
    founder_labels: list[int] = []
    num_clusters = 0
    for answer in answers:
        label = None
        if answer is not None:
            key = form(answer)
            label = known.get(key)
            if label is None:
                at = first_equal(founders, key)
                if at is None:
                    founders.append(key)
                    founder_labels.append(num_clusters)
                else:
                    label = founder_labels[at]
                known[key] = num_clusters if label is None else label
        if label is None:
            label = num_clusters
            num_clusters += 1
        labels.append(label)
    return labels


def _first_equal_with(equal: Callable[[str, str], bool]) -> Callable[[Sequence[str], str], int | None]:
    return lambda founders, answer: next((i for i, founder in enumerate(founders) if equal(founder, answer)), None)


def _first_equal_node(founders: Sequence[Node], node: Node) -> int | None:
    """Index of the first equivalent founder; those that need algebra are asked together, in parallel."""
    decisions = [decide_now(founder, node) for founder in founders]
    first = next((i for i, decision in enumerate(decisions) if decision), len(founders))
    undecided = [i for i, decision in enumerate(decisions[:first]) if decision is None]
    comparisons = compare_nodes([(founders[i], node) for i in undecided])
    matches = [i for i, comparison in zip(undecided, comparisons, strict=True) if comparison.equal]
    return matches[0] if matches else first if first < len(founders) else None
