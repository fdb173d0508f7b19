"""Held-out accuracy: the mean of the grader's values, on seeds that every evaluation of a run shares."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
import torch

from rl.evaluation.held_out import HeldOut, summarise
from rl.generate.protocol import SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.records import ScoredGroup
from tests.reference.scored_groups import scored_group
from tests.reference.tiny_run import change_adapter, inputs, tiny_policy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def held_out(seed: int = 0, rank: int = 0, num_ranks: int = 1) -> HeldOut:
    grader = inputs().grader
    assert grader is not None
    return HeldOut(inputs().held_out, grader, SamplingParameters(1.0, 1.0, 0, 48), seed, rank, num_ranks)


@pytest.mark.slow
def test_accuracy_is_the_mean_over_questions_of_right_completions(policy: Policy) -> None:
    evaluation = held_out().evaluate(TransformersGenerator(policy, merge=False, max_sequences=64), 4)
    groups = TransformersGenerator(policy, merge=False, max_sequences=64).generate(
        held_out().requests(4), held_out().parameters)
    shares = []
    for group in groups:
        boxes = [re.findall(r"\\boxed\{(-?\d+)\}", rollout.text)[-1:] for rollout in group.rollouts]
        shares.append(sum(box == [group.question.answer] for box in boxes) / 4)
    assert evaluation.accuracy.value == pytest.approx(sum(shares) / 8)
    assert 0 < evaluation.accuracy.value < 1
    assert evaluation.accuracy.low <= evaluation.accuracy.value <= evaluation.accuracy.high


@pytest.mark.slow
def test_two_evaluations_of_the_same_weights_are_equal_and_of_others_are_not() -> None:
    policy = tiny_policy()
    generator = TransformersGenerator(policy, merge=True, max_sequences=64)
    first, again = held_out().evaluate(generator, 2), held_out().evaluate(generator, 2)
    assert first == again
    change_adapter(policy, 0.2)
    generator.take_over(policy, 1)
    assert held_out().evaluate(generator, 2) != first


def test_more_samples_begin_with_those_of_fewer() -> None:
    for two, eight in zip(held_out().requests(2), held_out().requests(8), strict=True):
        assert eight.seeds[:2] == two.seeds and len(set(eight.seeds)) == 8
    assert held_out(seed=1).requests(2) != held_out(seed=0).requests(2)


def test_ranks_share_the_questions_without_overlap() -> None:
    shares = [held_out(rank=rank, num_ranks=3).requests(2) for rank in range(3)]
    together = sorted(r.prompt.question.id for share in shares for r in share)
    assert together == sorted(p.question.id for p in inputs().held_out)
    whole = {r.prompt.question.id: r for r in held_out().requests(2)}
    assert all(whole[r.prompt.question.id] == r for share in shares for r in share)


def test_shares_and_lengths_are_over_all_completions() -> None:
    groups = [
        scored_group("a", ["1", "1", None, "2"], num_tokens=[2, 4, 6, 8], truncated=[2]),
        scored_group("b", ["3", "3", "3", "3"], num_tokens=[1, 1, 1, 1]),
    ]
    found = summarise(groups, 4, 2)
    expected = sum(sum(group.rewards[:2]) for group in groups) / (2 * len(groups))
    assert found.comparable_samples == 2 and found.comparable == pytest.approx(expected)
    assert found.unparsable_share == 1 / 8 and found.truncated_share == 1 / 8
    assert found.mean_completion_tokens == pytest.approx(24 / 8)
    assert found.semantic_entropy == pytest.approx((0.5 * math.log(2) + 2 * 0.25 * math.log(4)) / 2)
    assert found.accuracy.value == pytest.approx(((0.5 + 0.5 + 0 + 0.25) / 4 + 1) / 2)
    assert found.intervals == {"avg@4": found.accuracy}
    assert found.metrics()["held_out/accuracy"] == found.accuracy.value and found.metrics()["held_out/samples"] == 4


def graded(question: str, answers: list[str | None], gold: str) -> ScoredGroup:
    """Right completions have 2 tokens, the others 6."""
    group = scored_group(question, answers, num_tokens=[2 if answer == gold else 6 for answer in answers])
    return dataclasses.replace(group, rewards=tuple(float(answer == gold) for answer in answers))


def test_a_majority_is_right_where_one_largest_cluster_is() -> None:
    groups = [graded("right", ["1", "1", "2", None], "1"), graded("wrong", ["1", "1", "1", "2"], "2"),
              graded("tie", ["1", "1", "2", "2"], "1"), graded("silent", [None] * 4, "1"),
              graded("few", [None, None, None, "1"], "1")]
    found = summarise(groups, 4, 1)
    assert found.majority_right == {"right", "few"}
    assert found.each == {"right": 0.5, "wrong": 0.25, "tie": 0.5, "silent": 0.0, "few": 0.25}
    metrics = found.metrics()
    assert metrics["held_out/majority_right"] == 2 / 5
    assert (metrics["held_out/length_right"], metrics["held_out/length_wrong"]) == (2.0, 6.0)
    assert "held_out/length_right" not in summarise([graded("silent", [None] * 4, "1")], 4, 1).metrics()


def test_questions_are_counted_apart_by_their_majority_before_training() -> None:
    now = summarise([graded("kept", ["1"] * 4, "1"), graded("lost", ["2", "2", "2", "1"], "1"),
                     graded("gained", ["1", "1", "1", "2"], "1"), graded("never", ["2"] * 4, "1")], 4, 1)
    assert now.since(["kept", "lost"]) == {
        "held_out/accuracy_where_majority_was_right": (1.0 + 0.25) / 2,
        "held_out/accuracy_where_majority_was_wrong": (0.75 + 0.0) / 2,
        "held_out/majority_lost": 0.25, "held_out/majority_gained": 0.25}
    assert "held_out/accuracy_where_majority_was_right" not in now.since([])
