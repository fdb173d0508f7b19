"""Advantages against literal loops and numbers computed by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.advantages import ADVANTAGES, Std, compute_advantages, decoupled_advantages
from tests.reference.advantages import reference_advantages, reference_decoupled

BATCH = [[1.0, 0.0, 0.0, 1.0], [0.25, 0.5, 0.75], [0.3, -2.0, 0.3, 7.5, 0.0]]


@pytest.mark.parametrize("std", ["sample", "population"])
@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_every_estimator_equals_the_literal_loop(name: str, std: Std) -> None:
    expected = reference_advantages(BATCH, name, ddof=1 if std == "sample" else 0, eps=1e-4)
    for group, reference in zip(compute_advantages(BATCH, name, std=std, eps=1e-4), expected, strict=True):
        assert group == pytest.approx(reference, rel=1e-12)


def test_grpo_pushes_weak_agreement_hardest() -> None:
    three_agree = [3 / 16] * 3 + [1 / 16] * 13
    [advantages] = compute_advantages([three_agree], "grpo", std="sample", eps=1e-4)
    assert advantages[0] == pytest.approx(2.01, abs=0.005)
    # sqrt(13/3) is the population's value: the published figure is the sample's.
    assert compute_advantages([three_agree], "grpo", std="population", eps=0.0)[0][0] == pytest.approx(
        math.sqrt(13 / 3))


def test_grpo_pushes_the_lone_dissenter_down() -> None:
    [advantages] = compute_advantages([[15 / 16] * 15 + [1 / 16]], "grpo", std="sample", eps=0.0)
    assert advantages[-1] == pytest.approx(-3.75)
    assert advantages[0] == pytest.approx(0.25)


def test_hand_computed_values_of_one_right_answer_in_four() -> None:
    group = [[1.0, 0.0, 0.0, 0.0]]
    assert compute_advantages(group, "dr_grpo") == [(0.75, -0.25, -0.25, -0.25)]
    assert compute_advantages(group, "rloo")[0] == pytest.approx((1.0, -1 / 3, -1 / 3, -1 / 3))
    assert compute_advantages(group, "grpo", eps=0.0)[0] == pytest.approx((1.5, -0.5, -0.5, -0.5))
    assert compute_advantages(group, "grpo", std="population", eps=0.0)[0][0] == pytest.approx(math.sqrt(3))


def test_reinforce_plus_plus_divides_all_groups_by_one_number() -> None:
    # Centred: +-0.5 twice and +-1 twice; population variance (4 * 0.25 + 4 * 1) / 8 = 0.625.
    groups = [[1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0]]
    first, second = compute_advantages(groups, "reinforce++", std="population", eps=0.0)
    assert first[0] == pytest.approx(0.5 / math.sqrt(0.625))
    assert second[0] == pytest.approx(1.0 / math.sqrt(0.625))


@pytest.mark.parametrize("name", list(ADVANTAGES))
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -7.7, 0.0, 1e6 / 7])
def test_equal_rewards_give_exactly_zero(name: str, reward: float) -> None:
    # 1 / 3 and 0.1: their mean over 3 or 7 differs from them in the last bit, and eps 0 would turn that bit into 1.
    groups = [[reward] * 3, [reward] * 7, [0.0, 1.0]]
    first, second, _ = compute_advantages(groups, name, eps=0.0)
    assert first == (0.0,) * 3
    assert second == (0.0,) * 7


@pytest.mark.parametrize("name", list(ADVANTAGES))
def test_a_batch_of_only_equal_rewards_gives_zeros(name: str) -> None:
    assert compute_advantages([[0.5, 0.5], [1.0, 1.0, 1.0]], name, eps=0.0) == [(0.0, 0.0), (0.0, 0.0, 0.0)]


def test_cap_bounds_both_sides_and_keeps_the_rest() -> None:
    rewards = [[15 / 16] * 15 + [1 / 16], [0.0] * 15 + [1.0]]
    down, up = compute_advantages(rewards, "grpo", eps=0.0, cap=2.0)
    assert down[-1] == -2.0
    assert up[-1] == 2.0
    assert down[0] == pytest.approx(0.25)


@given(
    rewards=st.lists(st.lists(st.floats(-100, 100), min_size=2, max_size=6), min_size=1, max_size=4),
    name=st.sampled_from(sorted(ADVANTAGES)),
)
def test_advantages_sum_to_zero_and_inputs_stay(rewards: list[list[float]], name: str) -> None:
    before = [list(group) for group in rewards]
    for advantages in compute_advantages(rewards, name):
        assert abs(math.fsum(advantages)) <= 1e-9 * (1 + max(abs(value) for value in advantages))
    assert rewards == before


@given(order=st.permutations(range(5)))
def test_order_of_completions_only_reorders(order: list[int]) -> None:
    group = BATCH[2]
    [straight] = compute_advantages([group], "grpo")
    [shuffled] = compute_advantages([[group[index] for index in order]], "grpo")
    assert shuffled == pytest.approx([straight[index] for index in order], rel=1e-12)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"'gae'; known are grpo, dr_grpo, rloo, reinforce\+\+"):
        compute_advantages([[0.0, 1.0]], "gae")
    with pytest.raises(ValueError, match=r"group 1 has 1 completion.*group_size"):
        compute_advantages([[0.0, 1.0], [1.0]], "grpo")
    with pytest.raises(ValueError, match="completion 1 of group 0 is nan"):
        compute_advantages([[0.0, math.nan]], "grpo")


SCORES = [[[1.0, 0.0, 0.0, 1.0], [0.2, 0.1, 0.7, 0.7]], [[0.0, 1.0, 1.0], [3.0, 3.0, 3.0]], [[2.0, 2.0], [1.0, -4.0]]]


@pytest.mark.parametrize("std", ["sample", "population"])
def test_rewards_normalised_one_by_one_equal_the_literal_loop(std: Std) -> None:
    expected = reference_decoupled(SCORES, [1.0, 0.3], ddof=1 if std == "sample" else 0, eps=1e-4)
    found = decoupled_advantages(SCORES, [[1.0, 0.3]] * 3, std=std, eps=1e-4)
    for group, reference in zip(found, expected, strict=True):
        assert group == pytest.approx(reference, rel=1e-9, abs=1e-12)


def test_sums_that_grpo_cannot_tell_apart_keep_their_distance() -> None:
    """(0, 1) and (0, 2) of two rewards, the paper's example: the second completion has one reward, or both."""
    one, both = [[0.0, 1.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]
    assert compute_advantages([[0.0, 1.0]], "grpo", eps=0.0) == compute_advantages([[0.0, 2.0]], "grpo", eps=0.0)
    first, second = decoupled_advantages([one, both], [[1.0, 1.0]] * 2, eps=0.0)
    assert second == pytest.approx(tuple(2 * value for value in first))


def test_a_rewards_scale_does_not_matter_where_each_is_normalised() -> None:
    large = [[[1.0, 0.0, 0.0, 1.0], [200.0, 100.0, 700.0, 700.0]]]
    small = [[[1.0, 0.0, 0.0, 1.0], [2.0, 1.0, 7.0, 7.0]]]
    assert decoupled_advantages(large, [[1.0, 1.0]], eps=0.0)[0] == pytest.approx(
        decoupled_advantages(small, [[1.0, 1.0]], eps=0.0)[0])


def test_equal_scores_give_exactly_zero_and_the_cap_bounds_the_others() -> None:
    equal, other = decoupled_advantages([[[0.1] * 3, [1 / 3] * 3], [[0.0, 0.0, 9.0], [1.0] * 3]], [[1.0, 1.0]] * 2,
                                        eps=0.0, cap=0.5)
    assert equal == (0.0,) * 3
    assert other == (-0.5, -0.5, 0.5)


def test_bad_scores_are_named() -> None:
    with pytest.raises(ValueError, match="completion 1 of group 0 is nan"):
        decoupled_advantages([[[0.0, math.nan]]], [[1.0]])
    with pytest.raises(ValueError, match=r"raise sampling\.group_size"):
        decoupled_advantages([[[0.0]]], [[1.0]])
