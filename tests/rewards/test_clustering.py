"""Clusters of answers and their entropy."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.clustering import cluster
from rewards.equivalence import equivalent
from tests.reference.clusters import entropy, founder_labels


def test_entropy_matches_hand_computed_numbers() -> None:
    assert cluster(["1", "1", "1", "1"]).entropy == 0.0
    assert cluster(["1", "2", "3", "4"]).entropy == pytest.approx(math.log(4), abs=1e-15)
    assert cluster(["1", "1", "2", "2"]).entropy == pytest.approx(math.log(2), abs=1e-15)
    # -(3/4)ln(3/4) - (1/4)ln(1/4)
    assert cluster(["1", "1", "1", "2"]).entropy == pytest.approx(0.5623351446188083, abs=1e-15)
    assert cluster(["1", "1", "1", "2"]).normalised_entropy == pytest.approx(0.5623351446188083 / math.log(4))
    assert cluster(["1"]).normalised_entropy == 0.0


def test_equal_answers_share_a_label_in_order_of_first_appearance() -> None:
    clusters = cluster(["0.5", "7", r"\frac12", None, "1/2", None])
    assert clusters.labels == (0, 1, 0, 2, 0, 3)
    assert clusters.sizes == (3, 1, 1, 1)
    assert clusters.unparsable_share == pytest.approx(1 / 3)
    assert clusters.majority == (0,)


def test_each_missing_answer_is_a_cluster_of_its_own_and_no_majority() -> None:
    assert cluster([None, None]).labels == (0, 1)
    assert cluster([None, None]).majority == ()
    assert cluster([None, "3"]).majority == (1,)
    assert cluster(["3", "4", None]).majority == (0, 1)


def test_comparison_is_with_the_founder_only() -> None:
    def close(first: str, second: str) -> bool:
        return abs(int(first) - int(second)) <= 1

    # 2 joins 1; 3 is close to 2 but not to the founder 1, so it founds its own; then 2 again stays where it was.
    assert cluster(["1", "2", "3", "2", "4"], close).labels == (0, 0, 1, 0, 1)
    assert cluster(["2", "1", "3"], close).labels == (0, 0, 0)


def test_units_left_out_follow_the_founder_rule() -> None:
    assert cluster(["5", "5 cm", "5 kg"]).labels == (0, 0, 0)
    assert cluster(["5 cm", "5", "5 kg"]).labels == (0, 0, 1)
    assert cluster(["5 cm", "5 kg", "5", "5.0"]).labels == (0, 1, 0, 0)


def test_an_answer_that_equals_two_founders_is_counted() -> None:
    assert cluster(["5 cm", "5 kg", "5", "5.0"]).metrics()["non_transitive"] == 1.0
    assert cluster(["5 cm", "5", "5 kg"]).metrics()["non_transitive"] == 0.0


def test_comparisons_that_time_out_are_counted_and_not_equal() -> None:
    clusters = cluster(["9^{9^{9^{9}}}", "5"])
    assert clusters.labels == (0, 1)
    assert clusters.metrics()["timed_out"] == 1.0


def test_each_pair_of_different_answers_is_compared_once() -> None:
    asked: list[tuple[str, str]] = []

    def equal(first: str, second: str) -> bool:
        asked.append((first, second))
        return False

    cluster(["a", "b", "a", "b", "c"], equal)
    assert asked == [("a", "b"), ("a", "c"), ("b", "c")]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([None, "1", "2", "0.5", "1/2", "5 cm", "5", "5 kg", "50%", "50", "yes"]), min_size=1,
                max_size=12))
def test_labels_and_entropy_match_the_literal_reference(answers: list[str | None]) -> None:
    clusters = cluster(answers)
    assert list(clusters.labels) == founder_labels(answers, equivalent)
    assert clusters.entropy == pytest.approx(entropy(clusters.labels), abs=1e-12)
    assert 0.0 <= clusters.entropy <= math.log(len(answers)) + 1e-12


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(ValueError, match="empty group"):
        cluster([])


def test_a_batch_of_short_numeric_groups_takes_milliseconds() -> None:
    groups = [[str((i * j) % 5 + i) for j in range(8)] for i in range(32)]
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        for group in groups:
            cluster(group)
        best = min(best, time.perf_counter() - start)
    assert best < 0.05
