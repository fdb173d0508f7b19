"""Whether a sampler brings the votes of a moving average, and samples from the policy before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from rl.collect import Collector
from rl.generate.protocol import Generator
from rl.policy.moving_average import MovingAverage
from rl.policy.policy import Policy
from rl.questions.inputs import read_inputs
from rl.records import Group
from tests.reference.tiny_run import change_adapter, tiny_config, trained

SAMPLES = 3
WORDS = ("rewards.0.use=rewards.majority:voted", f"votes.samples={SAMPLES}", "data.limit=4")


def texts(votes: Mapping[int, Group]) -> dict[int, list[str]]:
    return {number: [rollout.text for rollout in group.rollouts] for number, group in votes.items()}


def check_that_the_average_votes(generator: Generator, policy: Policy) -> None:
    """The sampler is that of the policy. Votes are the completions that it samples from the policy of before the
    change, which is the average."""
    config = tiny_config(*WORDS)
    collector = Collector(config, read_inputs(config), generator, rank=0, num_ranks=1)
    requests, parameters = collector._draw(4, 0, 0), replace(collector._parameters, token_statistics=False)
    change_adapter(policy, 0.02)
    generator.take_over(policy, 1)
    average = MovingAverage(policy, 0.9)
    expected = collector._votes(requests, average, SAMPLES)
    change_adapter(policy, 0.3)
    generator.take_over(policy, 2)
    before, weights = generator.generate(requests, parameters), trained(policy)
    assert texts(collector._votes(requests, average, SAMPLES)) == texts(expected)
    assert all(len(votes.rollouts) == SAMPLES for votes in expected.values()) and len(expected) == 4
    assert generator.generate(requests, parameters) == before and generator.policy_version == 2
    assert all(torch.equal(weight, weights[name]) for name, weight in trained(policy).items())
    # What it would sample if the policy voted.
    assert texts(collector._votes(requests, MovingAverage(policy, 0.9), SAMPLES)) != texts(expected)
