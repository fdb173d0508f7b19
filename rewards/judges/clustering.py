"""The G answers of a group and a judge's verdicts on pairs of them -> Clusters by the founder rule, and how far to
trust the verdicts.

Two answers are equal iff the verdict is yes in both directions (arXiv:2302.09664). Verdicts of a model are not
transitive, so the founder rule of clustering.py decides: each answer is compared with the founders in order, the first
match wins, and an assignment never changes. Answers with the same text, white space aside, are one answer, and are not
compared.

What is asked: all ordered pairs of a group's U different answers at once, U (U - 1) of them. The founder rule alone
needs as many where all differ, one round after another; asked together they take one round, and they are what the
non-transitive share is computed from. A group with more pairs than `max_pairs` is asked founder by founder instead: all
answers left against the next founder, both directions in one round. That gives the same clusters, in as many rounds as
there are clusters and with at most as many calls.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from rewards.clustering import Clusters, cluster
from rewards.judges.questions import Judgement, Pair

Ask = Callable[[Sequence[Pair]], Awaitable[list[Judgement]]]
DEFAULT_MAX_PAIRS = 240  # all ordered pairs of 16 different answers, the common group size


@dataclass(frozen=True, slots=True)
class JudgedClusters:
    """clusters: None where a missing verdict leaves an answer's cluster open. judgements: by ordered pair of texts.
    is_complete: whether all pairs of the different answers were asked."""

    clusters: Clusters | None
    judgements: Mapping[Pair, Judgement]
    is_complete: bool

    def metrics(self) -> dict[str, float]:
        """The numbers of `verdict_metrics`, and, where there are clusters, theirs; entropy in nats."""
        found = {} if self.clusters is None else self.clusters.metrics() | {"entropy": self.clusters.entropy}
        return found | verdict_metrics(self.judgements, self.is_complete)


def one_line(text: str) -> str:
    """The text with each run of white space as one space, none at the ends: what two answers must share to be one
    answer."""
    return " ".join(text.split())


async def cluster_by_judge(
    answers: Sequence[str | None], ask: Ask, max_pairs: int = DEFAULT_MAX_PAIRS
) -> JudgedClusters:
    """[G] answers (None: no answer) -> clusters. ask: one judgement per ordered pair of texts. Raises ValueError for an
    empty group."""
    if max_pairs < 0:
        raise ValueError(f"max_pairs is {max_pairs!r}, expected 0 or more")
    texts = [None if answer is None else one_line(answer) for answer in answers]
    different = list(dict.fromkeys(text for text in texts if text is not None))
    is_complete = len(different) * (len(different) - 1) <= max_pairs
    judgements: dict[Pair, Judgement] = {}

    async def learn(pairs: list[Pair]) -> None:
        judgements.update(zip(pairs, await ask(pairs), strict=True))

    if is_complete:
        await learn(list(permutations(different, 2)))
    else:
        left = different
        while len(left) > 1:
            founder, others = left[0], left[1:]
            await learn([pair for other in others for pair in ((founder, other), (other, founder))])
            same = {other: both_ways(judgements, founder, other) for other in others}
            if None in same.values():
                break  # the clusters cannot be completed: no further question is worth its price
            left = [other for other in others if not same[other]]
    return JudgedClusters(cluster_by_verdicts(texts, judgements), judgements, is_complete)


def both_ways(judgements: Mapping[Pair, Judgement], first: str, second: str) -> bool | None:
    """Whether two texts are equal: True iff yes both ways, False as soon as one way is no, None where that is open."""
    verdicts = [judgements[pair].equal if pair in judgements else None for pair in ((first, second), (second, first))]
    return False if False in verdicts else None if None in verdicts else True


def cluster_by_verdicts(texts: Sequence[str | None], judgements: Mapping[Pair, Judgement]) -> Clusters | None:
    """Clusters by the founder rule, or None where it needs a verdict that is missing."""
    open_pairs: list[Pair] = []

    def equal(founder: str, text: str) -> bool:
        same = both_ways(judgements, founder, text)
        if same is None:
            open_pairs.append((founder, text))
        return same is True

    clusters = cluster(texts, equal)
    return None if open_pairs else clusters


def verdict_metrics(judgements: Mapping[Pair, Judgement], is_complete: bool) -> dict[str, float]:
    """How far a group's verdicts can be trusted; a share is left out where there is nothing that it is a share of.

    num_pairs: ordered pairs that the judge was asked about. failed_share: of these, calls without a reply.
    unclear_share: of the replies, those that are no verdict. asymmetric_share: of the pairs {a, b} with both verdicts,
    those where the two differ. non_transitive_share: of the triples {a, b, c} in which at least two of the three pairs
    are equal both ways, and the third pair is decided, those where it is not equal; only where all pairs were asked.
    """
    replies = [judgement for judgement in judgements.values() if judgement.replied]
    metrics = {"num_pairs": float(len(judgements))}
    _add_share(metrics, "failed_share", len(judgements) - len(replies), len(judgements))
    _add_share(metrics, "unclear_share", sum(reply.equal is None for reply in replies), len(replies))
    texts = list(dict.fromkeys(text for pair in judgements for text in pair))
    two_way = [
        (judgements[a, b].equal, judgements[b, a].equal) for a, b in combinations(texts, 2) if (a, b) in judgements]
    decided = [(there, back) for there, back in two_way if there is not None and back is not None]
    _add_share(metrics, "asymmetric_share", sum(there != back for there, back in decided), len(decided))
    if is_complete:
        triples = [
            [both_ways(judgements, *pair) for pair in combinations(triple, 2)] for triple in combinations(texts, 3)]
        linked = [triple for triple in triples if triple.count(True) >= 2 and None not in triple]
        _add_share(metrics, "non_transitive_share", sum(False in triple for triple in linked), len(linked))
    return metrics


def _add_share(metrics: dict[str, float], name: str, part: int, whole: int) -> None:
    if whole:
        metrics[name] = part / whole
