"""A run whose sampler never gets the new weights stops after its first update; one whose sampler does get them goes on.

The failure is a real one: a sampler that holds a model of its own, to which handing over a version changes only the
version's number.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rl.config import RunConfig
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.proof.proof import GeneratorMismatchError
from rl.trainer import Trainer
from tests.reference.tiny_run import make_trainer, tiny_config, tiny_policy

torch.set_num_threads(1)
# Semantic entropy's groups differ from the first step on; accuracy needs luck.
SETTINGS = (
    "rewards.0.use=rewards.semantic_entropy:semantic_entropy", "optim.lr=5e-3", "sampling.max_completion_tokens=40")


def trainer(config: RunConfig, policy: Policy, sampled: Policy, folder: Path, *, merge: bool) -> Trainer:
    """A trainer of `policy` whose sampler is built over `sampled`."""
    generator = TransformersGenerator(sampled, merge=merge, max_sequences=64)
    generator.take_over(sampled, 0)
    return make_trainer(config, policy, generator, folder)


def test_a_sampler_that_stays_behind_stops_the_run_after_the_first_update(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, "generator.proof_every=0")
    run = trainer(config, tiny_policy(config), tiny_policy(config), tmp_path, merge=False)
    run.step()
    assert run.policy_version == 1
    with pytest.raises(
        GeneratorMismatchError, match=r"step 1: the sampler's log-probabilities differ .* at most 0\.001 .*version 1"
    ):
        run.step()


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("overrides", [(), ("optim.epochs=2", "optim.minibatches=2"), ("model.dtype=bfloat16",)])
def test_a_sampler_that_takes_over_passes_for_several_steps(
    tmp_path: Path, merge: bool, overrides: tuple[str, ...]
) -> None:
    config = tiny_config(*SETTINGS, *overrides)
    policy = tiny_policy(config)
    run = trainer(config, policy, policy, tmp_path, merge=merge)
    for _ in range(3):
        run.step()
    assert run.policy_version >= 3


@pytest.mark.slow
def test_a_wider_bound_lets_the_run_go_on(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, "generator.max_mismatch=10", "generator.proof_every=0")
    run = trainer(config, tiny_policy(config), tiny_policy(config), tmp_path, merge=False)
    for _ in range(2):
        run.step()
    assert run.policy_version == 2
