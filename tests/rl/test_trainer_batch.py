"""The batch of a step under `selection.mode: zero`: every sampled group, in the order of the draw."""

from __future__ import annotations

import pytest

from rl.batching import split_minibatches
from rl.collect import Collected
from rl.selection import select
from rl.training_groups import groups_with_advantages
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
