"""The moving average of what trains: its numbers, and that the policy is what it was after it has been in its place."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rl.collect import Collector
from rl.errors import ConfigError
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.moving_average import MovingAverage
from rl.policy.policy import Policy
from rl.questions.inputs import read_inputs
from rl.records import Group
from rl.scoring import rewarding
from tests.reference.fork import forked_ranks
from tests.reference.tiny_run import change_adapter, sampled_groups, tiny_config, tiny_policy, trained

torch.set_num_threads(1)
VOTED = ("rewards.0.use=rewards.majority:voted", "votes.samples=3", "data.limit=8")


@pytest.mark.parametrize("decay", [0.0, 0.75, 1.0])
def test_the_average_equals_the_sum_written_out(decay: float) -> None:
    policy = tiny_policy(adapter_scale=0.02)
    history, average = [trained(policy)], MovingAverage(policy, decay)
    for seed in range(3):
        change_adapter(policy, 0.05, seed)
        average.update()
        history.append(trained(policy))
    for name, weight in average.weights.items():
        expected = decay**3 * history[0][name]
        for age, weights in enumerate(reversed(history[1:])):
            expected = expected + decay**age * (1 - decay) * weights[name]
        torch.testing.assert_close(weight, expected)


def test_in_its_place_the_policy_is_the_average_and_afterwards_bit_for_bit_itself() -> None:
    policy = tiny_policy(adapter_scale=0.02)
    average = MovingAverage(policy, 0.9)
    old_groups = sampled_groups(policy, 2)
    change_adapter(policy, 0.3)
    before, groups = trained(policy), sampled_groups(policy, 2)
    with pytest.raises(RuntimeError, match="in the middle"), average.in_place():
        assert sampled_groups(policy, 2) == old_groups != groups
        raise RuntimeError("in the middle")
    assert all(torch.equal(weight, before[name]) for name, weight in trained(policy).items())
    assert sampled_groups(policy, 2) == groups


@pytest.mark.parametrize("merge", [True, False])
def test_the_average_votes_and_the_policy_answers(merge: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which the embedded sampler has its weights: votes are those of a sampler that has the average, the
    group is what it would be without votes."""
    config = tiny_config(*VOTED)
    policy, inputs = tiny_policy(adapter_scale=0.02), read_inputs(config)
    average = MovingAverage(policy, 0.9)
    slow = tiny_policy(adapter_scale=0.02)
    change_adapter(policy, 0.3)
    generator = TransformersGenerator(policy, merge=merge, max_sequences=64)
    generator.take_over(policy, 5)
    seen: list[Group] = []
    score = rewarding.score_groups

    def look(rewards: object, groups: list[Group], *others: object) -> object:
        seen.extend(groups)
        return score(rewards, groups, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(rewarding, "score_groups", look)
    collected = Collector(config, inputs, generator, rank=0, num_ranks=1, average=average).collect(0)
    plain = Collector(config, inputs, generator, rank=0, num_ranks=1)
    requests = plain._draw(4, 0, 0)
    assert [replace(group, votes=None, num_vote_tokens=0) for group in seen] == generator.generate(
        requests, plain._parameters)
    assert generator.policy_version == 5
    slow_generator = TransformersGenerator(slow, merge=merge, max_sequences=64)
    slow_generator.take_over(slow, 0)
    for request, group in zip(requests, seen, strict=True):
        votes = Collector(config, inputs, slow_generator, rank=0, num_ranks=1)._votes(
            [request], MovingAverage(slow, 0.9), 3)
        cast = votes[0]
        assert group.votes == tuple(rollout.text for rollout in cast.rollouts) and len(group.votes) == 3
        assert group.num_vote_tokens == sum(len(rollout.token_ids) for rollout in cast.rollouts) > 0
    assert all(group.group.votes is None for group in collected.sampled)


def test_no_rank_brings_the_policy_back_while_another_ones_votes_are_under_way(tmp_path: Path) -> None:
    """Servers are every rank's. Here the second rank's votes take longer."""
    config = tiny_config(*VOTED)

    def one() -> int:
        rank, times = int(os.environ["RANK"]), list[float]()
        Accelerator()

        class Slow(TransformersGenerator):
            def generate(self, *arguments: Any, **named: Any) -> list[Group]:
                time.sleep(2 * rank)
                return super().generate(*arguments, **named)

            def take_over(self, policy: Policy, version: int) -> None:
                times.append(time.time())
                super().take_over(policy, version)

        policy = tiny_policy()
        generator = Slow(policy, merge=False, max_sequences=64)
        collector = Collector(config, read_inputs(config), generator, rank=rank, num_ranks=2)
        collector._votes(collector._draw(4, 0, 0), MovingAverage(policy, 0.9), 3)
        (tmp_path / f"{rank}").write_text(f"{times[0]} {times[1]}")
        return 0

    for done in forked_ranks(one):
        assert done.returncode == 0, done.stderr[-2000:]
    (_, back), (asked, _) = (map(float, (tmp_path / f"{rank}").read_text().split()) for rank in range(2))
    assert back >= asked + 2


def test_votes_that_nobody_reads_or_nobody_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 votes a question would be sampled"):
        read_inputs(tiny_config("votes.samples=8"))
    with pytest.raises(ConfigError, match=r"null samples no votes"):
        read_inputs(tiny_config("rewards.0.use=rewards.majority:voted"))
    with pytest.raises(ConfigError, match=r"max_staleness is 1: the next step is sampled while this one trains"):
        tiny_config("votes.samples=8", "generator={backend: vllm_server, urls: ['http://x:1'], max_staleness: 1}")
