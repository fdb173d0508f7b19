"""The rehearsal fills one micro-batch to its limit and leaves no trace in the policy."""

from __future__ import annotations

from rl.batching import plan_micro_batches
from rl.configuration.loading import load
from rl.memory.estimate import longest_groups


def test_longest_groups_fill_a_micro_batch_with_rows_of_the_longest_length() -> None:
    config = load(None, ["optim.micro_batch_tokens=1000", "sampling.max_completion_tokens=48"])
    groups = longest_groups(config, longest_prompt=12)
    # The last token predicts nothing.
    largest = max(plan_micro_batches(groups, max_tokens=1000, layout="padded"), key=lambda planned: planned.num_tokens)
    assert largest.num_tokens == 1000 // (12 + 47) * (12 + 47)
    largest = max(plan_micro_batches(groups, max_tokens=1000, layout="shared"), key=lambda planned: planned.num_tokens)
    assert largest.num_tokens == 12 + (1000 - 12) // 47 * 47


def test_one_row_above_the_budget_is_still_rehearsed() -> None:
    config = load(None, ["optim.micro_batch_tokens=10", "sampling.max_completion_tokens=48"])
    (group,) = longest_groups(config, longest_prompt=12)
    assert len(group.group.rollouts) == 1
