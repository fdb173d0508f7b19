"""The batch of a step under `selection.mode: zero`: every sampled group, in the order of the draw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rl.batching import split_minibatches
from rl.collect import Collected
from rl.errors import ConfigError
from rl.selection import select
from rl.training_groups import groups_with_advantages
from tests.reference.advantages import reference_decoupled
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


def test_estimators_without_a_groups_deviation_have_nothing_to_normalise() -> None:
    with pytest.raises(ConfigError, match="normalise each is for grpo"):
        tiny_config("advantage.normalise=each", "advantage.name=dr_grpo")
