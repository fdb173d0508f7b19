"""Clusters from the verdicts of a judge: the founder rule, what is asked, what a missing verdict does, and the rates of
bad verdicts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.judges.clustering import DEFAULT_MAX_PAIRS, JudgedClusters, cluster_by_judge
from rewards.judges.questions import Judgement, Pair
from tests.reference.clusters import both_directions, founder_labels, non_transitive_share


class Table:
    """Verdicts looked up, with a record of the rounds; a pair that is missing has none."""

    def __init__(self, verdicts: Mapping[Pair, bool | None]) -> None:
        self.verdicts = verdicts
        self.rounds: list[list[Pair]] = []

    async def ask(self, pairs: Sequence[Pair]) -> list[Judgement]:
        self.rounds.append(list(pairs))
        return [Judgement(self.verdicts.get(pair)) for pair in pairs]


def judged(
    answers: Sequence[str | None], verdicts: Mapping[Pair, bool | None], max_pairs: int = DEFAULT_MAX_PAIRS
) -> JudgedClusters:
    return asyncio.run(cluster_by_judge(answers, Table(verdicts).ask, max_pairs))


def labels(result: JudgedClusters) -> tuple[int, ...] | None:
    return None if result.clusters is None else result.clusters.labels


def symmetric(*pairs: Pair, among: str) -> dict[Pair, bool | None]:
    equal = {(a, b) for a, b in pairs} | {(b, a) for a, b in pairs}
    return {(a, b): (a, b) in equal for a in among for b in among if a != b}


def test_equal_needs_a_yes_in_both_directions() -> None:
    assert labels(judged(["a", "b"], {("a", "b"): True, ("b", "a"): True})) == (0, 0)
    assert labels(judged(["a", "b"], {("a", "b"): True, ("b", "a"): False})) == (0, 1)
    assert labels(judged(["a", "b"], {("a", "b"): False, ("b", "a"): True})) == (0, 1)


def test_the_founder_decides_where_verdicts_are_not_transitive() -> None:
    chain = symmetric(("a", "b"), ("b", "c"), among="abc")  # a = b and b = c, but a is not c
    assert labels(judged(["a", "b", "c"], chain)) == (0, 0, 1)
    assert labels(judged(["b", "a", "c"], chain)) == (0, 0, 0)
    assert labels(judged(["a", "c", "b", "b", None], chain)) == (
        0, 1, 0, 0, 2,
    ), "b could join either; the first match wins"
    assert judged(["a", "b", "c"], chain).metrics()["non_transitive_share"] == 1.0


def test_the_rates_match_hand_computed_numbers() -> None:
    verdicts = symmetric(("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), among="abcd")
    verdicts[("a", "d")] = True  # its way back is a no
    metrics = judged([*"abcd", None], verdicts).metrics()
    assert metrics["num_pairs"] == 12
    assert metrics["asymmetric_share"] == pytest.approx(1 / 6)
    # Linked triples: abc (closed), acd and bcd (both by way of c, and open); abd has one equal pair only.
    assert metrics["non_transitive_share"] == pytest.approx(2 / 3)
    assert metrics["num_clusters"] == 3 and metrics["unparsable_share"] == pytest.approx(1 / 5)
    assert metrics["failed_share"] == metrics["unclear_share"] == 0.0


def test_unclear_replies_and_failed_calls_are_counted_apart() -> None:
    replies = {
        ("a", "b"): Judgement(None, "'Maybe'"), ("b", "a"): Judgement(False),
        ("a", "c"): Judgement(None, "down", replied=False), ("c", "a"): Judgement(False), ("b", "c"): Judgement(True),
        ("c", "b"): Judgement(True)}

    async def ask(pairs: Sequence[Pair]) -> list[Judgement]:
        return [replies[pair] for pair in pairs]

    metrics = asyncio.run(cluster_by_judge(["a", "b", "c"], ask)).metrics()
    assert metrics["failed_share"] == pytest.approx(1 / 6) and metrics["unclear_share"] == pytest.approx(1 / 5)
    assert metrics["asymmetric_share"] == 0.0, "of the one pair with both verdicts"


def test_a_missing_verdict_leaves_the_clusters_open_only_where_they_hang_on_it() -> None:
    assert labels(judged(["a", "b"], {("a", "b"): True})) is None
    assert labels(judged(["a", "b"], {("a", "b"): False})) == (0, 1), "one no is enough for different"
    matched_before = symmetric(("a", "c"), among="abc") | {("b", "c"): None, ("c", "b"): None}
    assert labels(judged(["a", "b", "c"], matched_before)) == (0, 1, 0), "c joins a and is never compared with b"
    assert labels(judged(["b", "a", "c"], matched_before)) is None, "c might have joined b"


def test_equal_texts_and_missing_answers_are_never_asked_about() -> None:
    table = Table({})
    result = asyncio.run(cluster_by_judge(["Paris", " Paris ", "Paris\n", None, None], table.ask))
    assert labels(result) == (0, 0, 0, 1, 2) and not any(table.rounds)
    assert result.metrics()["num_pairs"] == 0 and "failed_share" not in result.metrics()


def test_all_ordered_pairs_are_asked_once_in_one_round() -> None:
    table = Table(symmetric(among="abc"))
    asyncio.run(cluster_by_judge(["a", "b", "a", "c", "b"], table.ask))
    assert [sorted(asked) for asked in table.rounds] == [[(x, y) for x in "abc" for y in "abc" if x != y]]


def test_above_the_bound_answers_are_asked_founder_by_founder() -> None:
    table = Table(symmetric(("a", "b"), ("a", "d"), ("c", "e"), among="abcde"))
    result = asyncio.run(cluster_by_judge([*"abcde"], table.ask, max_pairs=19))
    assert labels(result) == (0, 0, 1, 0, 1)
    assert [len(asked) for asked in table.rounds] == [8, 2] and not result.is_complete
    assert "non_transitive_share" not in result.metrics() and result.metrics()["asymmetric_share"] == 0.0


def test_founder_by_founder_stops_at_the_first_open_verdict() -> None:
    table = Table(symmetric(among="abcd") | {("a", "b"): None})
    table.verdicts = {**table.verdicts, ("b", "a"): True}
    assert labels(asyncio.run(cluster_by_judge([*"abcd"], table.ask, max_pairs=0))) is None
    assert len(table.rounds) == 1


TEXTS = "abcdef"
TABLES = st.dictionaries(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS)), st.booleans())
ANSWERS = st.lists(st.sampled_from([*TEXTS, None]), min_size=1, max_size=10)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(ANSWERS, TABLES)
def test_any_verdicts_give_the_reference_clusters_in_both_orders_of_asking(
    answers: list[str | None], table: dict[Pair, bool]
) -> None:
    verdicts: dict[Pair, bool | None] = {(a, b): table.get((a, b), False) for a in TEXTS for b in TEXTS}
    equal = both_directions({pair for pair, verdict in table.items() if verdict})
    expected = founder_labels(answers, equal)
    together, by_founder = judged(answers, verdicts), judged(answers, verdicts, max_pairs=0)
    assert list(labels(together) or ()) == list(labels(by_founder) or ()) == expected
    assert len(by_founder.judgements) <= len(together.judgements)
    texts = list(dict.fromkeys(answer for answer in answers if answer is not None))
    assert together.metrics().get("non_transitive_share") == non_transitive_share(texts, equal)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(ANSWERS, TABLES, st.sets(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS))))
def test_clusters_are_given_only_if_no_missing_verdict_could_change_them(
    answers: list[str | None], table: dict[Pair, bool], missing: set[Pair]
) -> None:
    known = {(a, b): table.get((a, b), False) for a in TEXTS for b in TEXTS}
    verdicts: dict[Pair, bool | None] = {pair: None if pair in missing else verdict for pair, verdict in known.items()}
    for max_pairs in (DEFAULT_MAX_PAIRS, 0):
        result = judged(answers, verdicts, max_pairs)
        if result.clusters is not None:
            for default in (False, True):
                yes = {pair for pair, verdict in verdicts.items() if (default if verdict is None else verdict)}
                assert list(result.clusters.labels) == founder_labels(answers, both_directions(yes))


def test_an_empty_group_and_a_negative_bound_are_refused() -> None:
    with pytest.raises(ValueError, match="empty group"):
        judged([], {})
    with pytest.raises(ValueError, match="max_pairs is -1"):
        judged(["a"], {}, max_pairs=-1)
