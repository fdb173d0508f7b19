"""The batch of a step under `selection.mode: zero`: every sampled group, in the order of the draw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rl.batching import denominators_of, split_minibatches
from rl.collect import Collected
from rl.errors import ConfigError
from rl.selection import select
from rl.training_groups import groups_with_advantages
from tests.reference.advantages import reference_advantages, reference_decoupled
from tests.reference.scored_groups import scored_group
from tests.reference.tiny_run import tiny_config


@pytest.mark.parametrize(("mode", "expected"), [("zero", [False, True, False, True]), ("drop", [True, True])])
def test_refused_groups_keep_their_place_among_the_minibatches(mode: str, expected: list[bool]) -> None:
    """Behind the others they would all be in the last minibatches, which then train nothing, and the first are not
    damped."""
    groups = tuple(
        scored_group(f"q{i}", answers)
        for i, answers in enumerate((["1"] * 3, ["1", "1", "2"], ["3"] * 3, ["4", "4", "5"])))
    selection = select(groups, None, None)
    collected = Collected(groups, selection, selection.kept, 0)
    config = tiny_config(f"selection.mode={mode}", "selection.low=null", "selection.high=null")
    batch = groups_with_advantages(config, collected)
    assert [any(value != 0 for value in item.advantages) for item in batch] == expected
    assert all(any(value != 0 for item in part for value in item.advantages) for part in split_minibatches(batch, 2))


def test_every_reward_is_normalised_by_itself_where_the_configuration_says_so() -> None:
    first, second = scored_group("q1", ["1", "1", "2"]), scored_group("q2", ["1", "2", "2"])
    scores = {"a": (1.0, 1.0, 0.0), "b": (30.0, 10.0, 20.0)}
    groups = (replace(first, scores=scores, rewards=(4.0, 2.0, 2.0)),
              replace(second, scores=scores, rewards=(4.0, 2.0, 2.0)))
    selection = select(groups, None, None)
    config = tiny_config(
        "advantage.normalise=each", "rewards=[{use: rewards.accuracy:accuracy}, {use: rewards.format:format_boxed, "
        "weight: 0.1}]")
    batch = groups_with_advantages(config, Collected(groups, selection, selection.kept, 0))
    expected = reference_decoupled([tuple(scores.values())] * 2, [1.0, 0.1], ddof=1, eps=1e-4)
    for item, values in zip(batch, expected, strict=True):
        assert item.advantages == pytest.approx(values)


def test_normalising_each_reward_needs_rewards() -> None:
    with pytest.raises(ConfigError, match=r"rewards is \[\]. Remedy: advantage\.normalise=sum"):
        tiny_config("advantage.normalise=each", "rewards=[]", "teacher=models/tiny-arith")


def test_estimators_without_a_groups_deviation_have_nothing_to_normalise() -> None:
    with pytest.raises(ConfigError, match="normalise each is for grpo"):
        tiny_config("advantage.normalise=each", "advantage.name=dr_grpo")


@pytest.mark.parametrize("normalise", ["sum", "each"])
def test_groups_without_consensus_get_the_penalty_and_no_reward(normalise: str) -> None:
    """No reward of theirs is believed, so that they have no part in the scale of the others either; nor does a cap
    bound the penalty."""
    groups = (scored_group("agree", ["1", "1", "1", "2"]), scored_group("differ", ["1", "1", "2", "3"]))
    selection = select(groups, 0.1, 0.7, min_votes=3)
    assert selection.kept == groups
    config = tiny_config(
        "selection.min_votes=3", "selection.penalty=0.25", f"advantage.normalise={normalise}")
    agree, differ = groups_with_advantages(config, Collected(groups, selection, selection.kept, 0))
    assert differ.advantages == (-0.25,) * 4
    capped = tiny_config("selection.min_votes=3", "selection.penalty=0.25", "advantage.cap=0.1")
    assert groups_with_advantages(capped, Collected(groups, selection, selection.kept, 0))[1].advantages[0] == -0.25
    expected = (reference_advantages([groups[0].rewards], "grpo", 1, 1e-4) if normalise == "sum"
                else reference_decoupled([[groups[0].rewards]], [1.0], 1, 1e-4))
    assert agree.advantages == pytest.approx(expected[0])


def test_min_votes_that_no_group_can_have_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_votes is 5, above sampling\.group_size=4"):
        tiny_config("selection.min_votes=5")


def test_truncated_completions_are_left_out_but_count_in_their_groups_rewards() -> None:
    group = scored_group("q", ["1", "1", "2", "3"], truncated=[1, 3])
    selection = select([group], None, None)
    collected = Collected((group,), selection, selection.kept, 0)
    [whole] = groups_with_advantages(tiny_config(), collected)
    [masked] = groups_with_advantages(tiny_config("loss.mask_truncated=true"), collected)
    assert whole.left_out == frozenset() and masked.left_out == {1, 3} and masked.trained == (0, 2)
    assert masked.advantages == (whole.advantages[0], 0.0, whole.advantages[2], 0.0)
    assert denominators_of([masked], 24).num_sequences == 2 and denominators_of([masked], 24).num_loss_tokens == 10
