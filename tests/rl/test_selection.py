"""Entropy thresholds act on either side, are exclusive and on the normalised entropy; equal rewards never train."""

from __future__ import annotations

import dataclasses
import math

import pytest

from rl.records import ScoredGroup
from rl.selection import Selection, lacks_consensus, refusal, select, selection_entropy
from tests.reference.scored_groups import scored_group

UNANIMOUS = scored_group("unanimous", ["1"] * 4)
THREE_TO_ONE = scored_group("three-to-one", ["1", "1", "1", "2"])
HALVES = scored_group("halves", ["1", "1", "2", "2"])
MIXED = scored_group("mixed", ["1", "1", "2", "3"])
ALL_DIFFERENT = scored_group("all-different", ["1", "2", "3", "4"])


def with_rewards(group: ScoredGroup, *rewards: float) -> ScoredGroup:
    return dataclasses.replace(group, rewards=rewards)


def test_the_entropies_of_these_groups_are_known() -> None:
    found = [group.normalised_entropy for group in (UNANIMOUS, THREE_TO_ONE, HALVES, MIXED, ALL_DIFFERENT)]
    three_to_one = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
    assert found == pytest.approx([0, three_to_one, 0.5, 0.75, 1])


def test_each_threshold_acts_on_its_side() -> None:
    groups = [with_rewards(group, 1, 0, 0, 0) for group in (UNANIMOUS, THREE_TO_ONE, HALVES, MIXED, ALL_DIFFERENT)]
    both = select(groups, 0.45, 0.8)
    assert [g.group.question.id for g in both.kept] == ["halves", "mixed"]
    assert [(g.group.question.id, reason) for g, reason in both.refused] == [
        ("unanimous", "too_low"), ("three-to-one", "too_low"), ("all-different", "too_high")]
    assert [g.group.question.id for g in select(groups, 0.45, None).kept] == ["halves", "mixed", "all-different"]
    assert [g.group.question.id for g in select(groups, None, 0.8).kept] == [
        "unanimous", "three-to-one", "halves", "mixed"]
    assert len(select(groups, None, None).kept) == 5


@pytest.mark.parametrize(("answers", "bound"), [
    (["1", "1", "2", "2"], 0.5), (["1", "1", "2", "3"], 0.75), (["1", "2", "3", "4"], 1.0), (["1"] * 4, 0.0),
    ([str(i) for i in range(7)], 1.0), ([str(i % 2) for i in range(16)], 0.25),
])
def test_a_group_exactly_on_a_threshold_is_refused_on_either_side(answers: list[str], bound: float) -> None:
    """Whatever the rounding of H / ln G is: 7 different answers come out as 1 plus or minus 1e-16."""
    rewards = (1.0, *[0.0] * (len(answers) - 1))
    group = with_rewards(scored_group("q", answers), *rewards)
    assert refusal(group, bound, None) == "too_low"
    assert refusal(group, None, bound) == "too_high"
    assert refusal(group, bound - 1e-6, bound + 1e-6) is None


def test_thresholds_are_on_the_normalised_entropy() -> None:
    """Half of the maximum for G = 4 and for G = 16, though ln 2 and ln 4 are different entropies."""
    four = scored_group("four", ["1", "1", "2", "3"])
    sixteen = scored_group("sixteen", ["1"] * 4 + ["2"] * 4 + ["3"] * 4 + ["4"] * 4)
    assert sixteen.normalised_entropy == pytest.approx(0.5) and sixteen.entropy == pytest.approx(math.log(4))
    assert refusal(with_rewards(sixteen, 1, *[0] * 15), 0.51, None) == "too_low"
    assert refusal(with_rewards(sixteen, 1, *[0] * 15), 0.49, None) is None
    assert refusal(four, 0.51, None) is None


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, -2.0])
def test_equal_rewards_are_refused_whatever_their_value(value: float) -> None:
    assert refusal(with_rewards(MIXED, *[value] * 4), None, None) == "equal_rewards"
    assert refusal(with_rewards(MIXED, value, value, value, value + 1e-9), None, None) is None


def test_a_threshold_is_named_before_equal_rewards() -> None:
    assert refusal(UNANIMOUS, 0.1, 0.9) == "too_low"
    assert refusal(UNANIMOUS, None, None) == "equal_rewards"
    assert refusal(ALL_DIFFERENT, 0.1, 0.9) == "too_high"


def test_shares_are_of_all_sampled_groups() -> None:
    selection = select([UNANIMOUS, UNANIMOUS, MIXED, ALL_DIFFERENT, with_rewards(HALVES, 1, 1, 1, 1)], 0.1, 0.9)
    assert selection.shares() == {
        "refused/skipped": 0.0, "refused/too_low": 0.4, "refused/too_high": 0.2, "refused/equal_rewards": 0.2}
    assert set(Selection((), ()).shares().values()) == {0.0}


def test_a_group_that_could_not_be_judged_is_refused_for_that_reason_alone() -> None:
    for group in (UNANIMOUS, MIXED, ALL_DIFFERENT):
        skipped = dataclasses.replace(with_rewards(group, 1, 0, 0, 0), skipped=True)
        assert refusal(skipped, 0.1, 0.9) == refusal(skipped, None, None) == "skipped"
        assert select([skipped], 0.1, 0.9).shares()["refused/skipped"] == 1.0


def test_selections_add_up_in_order() -> None:
    one, two = select([MIXED, UNANIMOUS], 0.1, None), select([ALL_DIFFERENT, THREE_TO_ONE], 0.1, 0.9)
    total = one + two
    assert total.kept == (MIXED, THREE_TO_ONE)
    assert total.refused == ((UNANIMOUS, "too_low"), (ALL_DIFFERENT, "too_high"))
    assert one == select([MIXED, UNANIMOUS], 0.1, None)


def test_nothing_is_selected_from_nothing() -> None:
    assert select([], 0.1, 0.9) == Selection((), ())


def test_rewards_normalised_one_by_one_are_equal_where_each_is() -> None:
    """(1, 0) and (0, 1) sum to the same."""
    crossed = dataclasses.replace(
        with_rewards(MIXED, 1, 1, 1, 1), scores={"a": (1.0, 0.0, 1.0, 0.0), "b": (0.0, 1.0, 0.0, 1.0)})
    assert refusal(crossed, None, None) == "equal_rewards"
    assert refusal(crossed, None, None, each=(1.0, 1.0)) is None
    only_first = dataclasses.replace(crossed, scores={"a": (1.0,) * 4, "b": (0.0, 1.0, 0.0, 1.0)})
    assert refusal(only_first, None, None, each=(1.0, 0.0)) == "equal_rewards"  # the other has no weight
    flat = dataclasses.replace(crossed, scores={"a": (1.0,) * 4, "b": (0.0,) * 4})
    assert refusal(flat, None, None, each=(1.0, 1.0)) == "equal_rewards"
    assert refusal(flat, None, None, each=(1.0, 1.0), keep_equal=True) is None


@pytest.mark.parametrize(("answers", "votes"), [
    (["1", "1", "2", None], 2), ([None] * 4, 0), (["1", None, None, None], 1), (["1"] * 4, 4)])
def test_unanswered_completions_are_no_votes(answers: list[str | None], votes: int) -> None:
    group = scored_group("q", answers)
    assert group.largest_cluster == votes
    assert lacks_consensus(group, votes + 1) and not lacks_consensus(group, votes) and not lacks_consensus(group, None)


def test_a_group_without_consensus_trains_whatever_the_bounds_say_unless_nobody_judged_it() -> None:
    assert refusal(ALL_DIFFERENT, 0.1, 0.9, min_votes=2) is None
    assert refusal(ALL_DIFFERENT, 0.1, 0.9, min_votes=1) == "too_high"
    assert refusal(UNANIMOUS, 0.1, 0.9, min_votes=2) == "too_low"
    assert refusal(dataclasses.replace(ALL_DIFFERENT, skipped=True), 0.1, 0.9, min_votes=2) == "skipped"


def test_completions_without_an_answer_are_clusters_of_one_or_one_cluster() -> None:
    """Three that agree and five that say nothing: by itself nearly chaos, together two parts of a group."""
    group = scored_group("hardly-answered", ["1"] * 3 + [None] * 5)
    apart = (3 / 8 * math.log(8 / 3) + 5 / 8 * math.log(8)) / math.log(8)
    together = (3 / 8 * math.log(8 / 3) + 5 / 8 * math.log(8 / 5)) / math.log(8)
    assert selection_entropy(group, "apart") == group.normalised_entropy == pytest.approx(apart)
    assert selection_entropy(group, "together") == pytest.approx(together)
    trains = with_rewards(group, *[0.375] * 3, *[0.0] * 5)
    assert refusal(trains, None, 0.7) == "too_high" and refusal(trains, None, 0.7, unanswered="together") is None
    nothing = with_rewards(scored_group("nothing", [None] * 4), 1, 0, 0, 0)
    assert selection_entropy(nothing, "together") == 0.0 and selection_entropy(nothing, "apart") == pytest.approx(1.0)
