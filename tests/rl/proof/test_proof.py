"""Samplers and trainers broken on purpose: the proof stops the run before it trains on their samples, and names the
side that is wrong.

Every failure is a real one: a real sampler that holds other weights, records other numbers, or a trainer that computes
something else.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface

from rl.collect import Collected
from rl.config import RunConfig
from rl.errors import GeneratorError
from rl.generate.protocol import Finished, Generator, Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy import shared_prompts
from rl.policy.fused_lora import LoraProduct
from rl.policy.policy import Policy
from rl.proof.diagnosis import trainer_logprobs
from rl.proof.distances import Judgement, distances
from rl.proof.proof import UNMOVED_UPDATES, GeneratorMismatchError, Proof, ProofState, spread
from rl.records import Group, PromptCompletion, Rollout
from rl.runs.folder import RunFolder
from rl.runs.tracking import MetricsLog, Record, read_json_lines
from rl.trainer import Trainer
from tests.reference.tiny_run import (
    as_collected,
    change_adapter,
    make_trainer,
    prompts,
    sampled_groups,
    tiny_config,
    tiny_policy,
    trained,
)

torch.set_num_threads(1)
SETTINGS = (
    "rewards.0.use=rewards.semantic_entropy:semantic_entropy", "optim.lr=5e-3", "sampling.max_completion_tokens=24",
    "generator.proof_completions=8")
EVERY_STEP = "generator.proof_every=1"


class Embedded(TransformersGenerator):
    """The embedded sampler over a copy of its own, for the others to break."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy, merge=True, max_sequences=64)
        self.take_over(policy, 0)


class Deaf(Embedded):
    """Takes the numbers of new versions and not their weights."""

    def take_over(self, policy: Policy, version: int) -> None:
        if version == 0:
            super().take_over(policy, version)
        self.policy_version = version


class Stuck(Embedded):
    """Takes the first update, and none after it."""

    def take_over(self, policy: Policy, version: int) -> None:
        if version <= 1:
            super().take_over(policy, version)
        self.policy_version = version


class Late(Embedded):
    """Samples with the version before, and scores with the present one: what a stale cache does."""

    def __init__(self, policy: Policy) -> None:
        self._previous = TransformersGenerator(policy, merge=True, max_sequences=64)
        super().__init__(policy)

    def take_over(self, policy: Policy, version: int) -> None:
        with torch.no_grad():
            for name, weight in self._previous._parameters.items():
                weight.copy_(self._parameters[name] if version else weight)
        super().take_over(policy, version)

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        self._previous.policy_version = self.policy_version
        return self._previous.generate(requests, parameters, finished)


class Raw(Embedded):
    """Records log-probabilities at temperature 1, whatever it samples at."""

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        def raw(group: Group, rollout: Rollout) -> Rollout:
            [logprobs] = self.logprobs([(group.prompt.token_ids, rollout.token_ids)])
            return dataclasses.replace(rollout, logprobs=logprobs)

        return [dataclasses.replace(group, rollouts=tuple(raw(group, rollout) for rollout in group.rollouts))
                for group in super().generate(requests, parameters, finished)]


class Dumb(Deaf):
    """Cannot score."""

    def logprobs(self, rows: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        raise GeneratorError("generator.urls: http://localhost:1 does not answer")


class Eager(Embedded):
    """Computes attention without kernels, and so apart from the trainer."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._model.set_attn_implementation("eager")


def run_steps(
    config: RunConfig, policy: Policy, generator: Generator, folder: Path, count: int
) -> tuple[Trainer, list[Record]]:
    """The trainer after `count` steps, and its lines in metrics.jsonl."""
    folder.mkdir(exist_ok=True)
    with MetricsLog(RunFolder(folder), []) as log:
        trainer = make_trainer(config, policy, generator, folder, metrics=log)
        for _ in range(count):
            trainer.step()
    return trainer, read_json_lines(RunFolder(folder).metrics_file)


def failure(config: RunConfig, policy: Policy, generator: Generator, folder: Path, *, good_steps: int) -> str:
    """The message of the proof that stops the run after exactly so many good steps."""
    trainer, _ = run_steps(config, policy, generator, folder, good_steps)
    before = trained(policy)
    with pytest.raises(GeneratorMismatchError) as caught:
        trainer.step()
    assert trainer.step_number == good_steps
    # nothing was trained on it
    assert all(torch.equal(before[name], weight) for name, weight in trained(policy).items())
    message = str(caught.value)
    assert (
        f"step {good_steps}: the sampler does not sample from version {trainer.policy_version} of the policy" in message
    )
    assert "Check: " in message and "Remedy: " in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False])
def test_a_run_whose_sampler_follows_is_proven_at_its_start_after_its_first_update_and_then_every_few_steps(
    tmp_path: Path, merge: bool
) -> None:
    config = tiny_config(*SETTINGS, "generator.proof_every=4")
    policy = tiny_policy(config)
    generator = TransformersGenerator(policy, merge=merge, max_sequences=64)
    _, metrics = run_steps(config, policy, generator, tmp_path, 6)
    assert [line["step"] for line in metrics if "proof/agreement" in line] == [1, 2, 5]
    start, *later = [line for line in metrics if "proof/agreement" in line]
    assert start["proof/moved"] == 0.0 and "proof/share" not in start
    for line in later:
        assert float(str(line["proof/agreement"])) < 1e-5 < 1e-3 < float(str(line["proof/moved"]))
        assert line["proof/from_base"] == pytest.approx(line["proof/moved"], rel=1e-3)
        assert line["proof/share"] == pytest.approx(1.0, abs=1e-3)
        assert (line["proof/inconclusive"], line["proof/completions"]) == (0.0, 8.0)
    shares = [line for line in metrics if "mismatch/mean" in line]  # steps in which some group trained
    assert shares
    for line in shares:
        assert 0.99 < float(str(line["mismatch/effective_sample_share"])) <= 1.0 + 1e-9


@pytest.mark.slow
def test_a_proof_that_stays_open_is_repeated_until_it_is_not(tmp_path: Path) -> None:
    """At first the steps are too small for float32 to tell the policy from its base; then they are not."""
    config = tiny_config(*SETTINGS, "optim.lr=1e-9")
    policy = tiny_policy(config)
    trainer, _ = run_steps(
        config, policy, TransformersGenerator(policy, merge=True, max_sequences=64), tmp_path / "small", 1)
    opened = [trainer._proof.check(step, 1, collected_from(policy, version=1)) for step in range(1, 11)]
    assert [step for step, values in enumerate(opened, start=1) if values] == [1, 2, 4, 8, 10]
    assert {values["proof/inconclusive"] for values in opened if values} == {1.0}
    assert trainer._proof.state() == ProofState(is_owed=True, num_updates=1, num_open=5, next_step=20)
    change_adapter(policy, 0.02)
    assert trainer._proof.check(20, 1, collected_from(policy, version=1))["proof/inconclusive"] == 0.0
    assert trainer._proof.check(21, 1, collected_from(policy, version=1)) == {}


def test_the_state_of_a_version_that_knew_fewer_of_its_parts_is_read() -> None:
    assert ProofState.from_json({}) == ProofState() == ProofState(True, 0, 0, 0)
    assert ProofState.from_json({"is_owed": False, "num_updates": 3}) == ProofState(False, 3)
    state = ProofState(True, 4, 2, 17)
    assert ProofState.from_json(state.to_json()) == state


@pytest.mark.slow
def test_full_parameters_without_a_reference_are_proven_by_agreement_alone(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, "lora.enabled=false", "optim.lr=1e-4", EVERY_STEP)
    policy = tiny_policy(config)
    _, metrics = run_steps(config, policy, Embedded(policy), tmp_path, 2)
    assert all(float(str(line["proof/agreement"])) < 1e-5 and "proof/moved" not in line for line in metrics)
    policy = tiny_policy(config)
    assert "it does not have this version, so an earlier version" in failure(
        config, policy, Deaf(policy), tmp_path / "deaf", good_steps=1)


def test_a_proof_changes_neither_random_numbers_nor_the_models_state() -> None:
    config = tiny_config(*SETTINGS, "lora.dropout=0.1", "loss.kl_weight=0.1")
    policy = tiny_policy(config, adapter_scale=0.02)
    proof = Proof(config, policy, Embedded(policy), rank=0, num_ranks=1)
    for parameter in policy.trainable_parameters().values():
        parameter.grad = torch.ones_like(parameter)
    weights, rng, names = trained(policy), torch.get_rng_state(), list(policy.trainable_parameters())
    assert proof.check(0, 0, collected_from(policy))
    assert torch.equal(torch.get_rng_state(), rng)
    assert policy.model.training and list(policy.trainable_parameters()) == names
    for name, parameter in policy.trainable_parameters().items():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is not None and bool((parameter.grad == 1).all())


def test_a_sampler_that_no_version_reaches_has_the_base(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS)
    policy = tiny_policy(config)
    message = failure(config, policy, Deaf(policy), tmp_path, good_steps=1)
    assert "The sampler's side is wrong: the adapter never reached the sampler, which has the base's weights" in message
    assert "take_over writes the merged weights" in message


def test_a_sampler_that_stays_behind_has_an_earlier_version(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, EVERY_STEP)
    policy = tiny_policy(config)
    message = failure(config, policy, Stuck(policy), tmp_path, good_steps=2)
    assert (
        "has neither this version nor the base, so an earlier version" in message and "of the policy's move" in message)


def test_a_sampler_of_another_model_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS)
    other = tiny_policy(config, adapter_scale=0.05)
    message = failure(config, tiny_policy(config), Embedded(other), tmp_path, good_steps=0)
    assert "another model than model.path=models/tiny-arith" in message


def test_a_server_of_another_model_is_called_that(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, "generator.backend=vllm_server", "generator.urls=[http://localhost:8000]")
    other = tiny_policy(config, adapter_scale=0.05)
    message = failure(config, tiny_policy(config), Embedded(other), tmp_path, good_steps=0)
    assert "The server serves another model than model.path=models/tiny-arith" in message


def test_samples_of_an_earlier_version_by_a_sampler_that_has_the_present_one(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, "generator.backend=vllm")
    policy = tiny_policy(config)
    message = failure(config, policy, Late(policy), tmp_path, good_steps=1)
    assert "though it has the right weights" in message and "a stale prefix cache" in message


def test_log_probabilities_at_another_temperature(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, "sampling.temperature=0.7")
    policy = tiny_policy(config)
    message = failure(config, policy, Raw(policy), tmp_path, good_steps=0)
    assert "at temperature 1, and not at sampling.temperature=0.7" in message


def test_a_sampler_that_cannot_be_asked_again_leaves_the_side_open(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS)
    policy = tiny_policy(config)
    message = failure(config, policy, Dumb(policy), tmp_path, good_steps=1)
    assert "http://localhost:1 does not answer" in message and "open which side is wrong" in message


@pytest.mark.slow
def test_in_bfloat16_a_sampler_of_the_base_is_found_long_before_the_bound_is_reached(tmp_path: Path) -> None:
    """The move is a thirtieth of the bound: agreement alone would let the run train on the base's samples."""
    config = tiny_config(
        *SETTINGS, "model.dtype=bfloat16", "sampling.questions_per_step=16", "generator.proof_completions=64")
    policy = tiny_policy(config)
    deaf = Deaf(policy)
    change_adapter(policy, 0.004)
    proof = Proof(config, policy, deaf, rank=0, num_ranks=1)
    collected = collected_by(deaf, count=16, version=1)
    with pytest.raises(GeneratorMismatchError, match="the adapter never reached the sampler") as caught:
        proof.check(1, 1, collected)
    agreement = float(str(caught.value).split("sampler and trainer ")[1].split()[0])
    assert agreement < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("merge", [True, False])
def test_in_bfloat16_a_policy_that_hardly_moves_is_no_alarm(tmp_path: Path, merge: bool) -> None:
    """Repro of a false alarm: small steps, a proof in each. What a merge loses by rounding is told once, and is none
    either."""
    sync = "merge" if merge else "shared"
    config = tiny_config(
        *SETTINGS, EVERY_STEP, "model.dtype=bfloat16", "optim.lr=1e-5", f"generator.sync={sync}",
        "sampling.questions_per_step=16")
    policy = tiny_policy(config)
    generator = TransformersGenerator(policy, merge=merge, max_sequences=64)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, metrics = run_steps(config, policy, generator, tmp_path, 8)
    assert len(metrics) == 8
    rounding = [str(warning.message) for warning in told if "survives rounding" in str(warning.message)]
    assert len(rounding) == int(merge) and all("generator.sync=auto" in message for message in rounding)
    survives = [line["proof/survives"] for line in metrics if "proof/survives" in line]
    assert survives == [] if not merge else 0.0 <= float(str(survives[0])) < 0.5


@pytest.mark.slow
def test_in_bfloat16_no_share_of_many_samples_is_taken_for_the_bases() -> None:
    """64 looks at a sampler that is the trained module itself, twenty updates of 1e-6 from its base. A mean weighted by
    the move, five of its standard errors from 1/2, took 5 of these very looks for the base's."""
    policy = tiny_policy(tiny_config("model.dtype=bfloat16", "lora.rank=16"))
    signs = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in policy.trainable_parameters().items():
            if "lora_B" in name:
                weight.copy_(2e-5 * torch.randn(weight.shape, generator=signs).sign())
    generator = TransformersGenerator(policy, merge=False, max_sequences=512)
    requests = [Request(prompt, tuple(range(100 * i, 100 * i + 64))) for i, prompt in enumerate(prompts(8))]
    groups = generator.generate(requests, SamplingParameters(1.0, 1.0, 0, 48))
    pairs = [(group.prompt.token_ids, rollout.token_ids) for group in groups for rollout in group.rollouts]
    lengths = [len(completion) for _, completion in pairs]
    sampler_T = torch.tensor([value for group in groups for rollout in group.rollouts for value in rollout.logprobs])
    trainer_T, base_T = trainer_logprobs(policy, pairs, temperature=1.0, max_tokens=8192)
    assert base_T is not None
    parts = [values_T.split(lengths) for values_T in (sampler_T, trainer_T, base_T)]
    for look in range(64):
        chosen = [(8 * look + 61 * i) % len(pairs) for i in range(8)]
        found = distances(*(torch.cat([part[index] for index in chosen]) for part in parts))
        assert found.verdict(Judgement(0.1)) in ("open", "policy")


@pytest.mark.slow
def test_what_a_merge_in_bfloat16_leaves_is_proven_once_enough_of_it_survives() -> None:
    config = tiny_config(
        *SETTINGS, "model.dtype=bfloat16", "generator.sync=merge", "sampling.questions_per_step=16",
        "generator.proof_completions=16")
    policy = tiny_policy(config, adapter_scale=0.05)
    good, bad = Embedded(policy), Embedded(tiny_policy(config))
    good.take_over(policy, 1)
    found = Proof(config, policy, good, rank=0, num_ranks=1).check(1, 1, collected_by(good, count=16, version=1))
    assert found["proof/inconclusive"] == 0.0 and found["proof/survives"] > 0.9
    with pytest.raises(GeneratorMismatchError, match="the adapter never reached the sampler"):
        Proof(config, policy, bad, rank=0, num_ranks=1).check(1, 1, collected_by(bad, count=16, version=1))


@pytest.mark.slow
def test_samples_that_are_all_of_an_earlier_version_are_scored_again_by_the_sampler() -> None:
    config = tiny_config(*SETTINGS)
    policy = tiny_policy(config, adapter_scale=0.02)
    stale = collected_from(policy, version=0)
    good = Embedded(policy)
    good.take_over(policy, 1)
    found = Proof(config, policy, good, rank=0, num_ranks=1).check(1, 1, stale)
    assert found["proof/inconclusive"] == 0.0 and found["proof/agreement"] < 1e-5
    bad = Embedded(tiny_policy(config))
    bad.policy_version = 1
    with pytest.raises(GeneratorMismatchError, match="the adapter never reached the sampler"):
        Proof(config, policy, bad, rank=0, num_ranks=1).check(1, 1, stale)
    # A sampler that has no such version yet cannot prove it: the proof stays owed.
    bad.policy_version = 0
    proof = Proof(config, policy, bad, rank=0, num_ranks=1)
    assert proof.check(1, 1, stale) == {} and proof.state().is_owed is True


@pytest.mark.slow
def test_a_resumed_run_is_proven_in_its_first_step_and_leaves_no_trace_of_it() -> None:
    config = tiny_config(*SETTINGS)
    policy = tiny_policy(config, adapter_scale=0.02)
    state = ProofState(is_owed=False, num_updates=3)
    good = Proof(config, policy, Embedded(policy), rank=0, num_ranks=1)
    good.resume(state)
    assert good.check(7, 5, collected_from(policy, version=5)) == {} and good.state() == state
    bad = Proof(config, policy, Embedded(tiny_policy(config)), rank=0, num_ranks=1)
    bad.resume(state)
    with pytest.raises(GeneratorMismatchError, match="step 7: the sampler does not sample from version 5"):
        bad.check(7, 5, collected_by(Embedded(tiny_policy(config)), version=5))


def test_a_wrong_scale_in_the_trainers_lora_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LoraProduct.forward

    def wrong(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        return right(ctx, x, weight, bias, lora_a, lora_b, 1.5 * scaling)

    monkeypatch.setattr(LoraProduct, "forward", staticmethod(wrong))
    config = tiny_config(*SETTINGS)
    policy = tiny_policy(config)
    message = failure(config, policy, Embedded(policy), tmp_path, good_steps=1)
    assert "The trainer's side is wrong" in message and "rl/policy/fused_lora.py" in message


def test_a_wrong_attention_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: torch.nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        return shared_prompts._attention(module, 1.3 * query, *args, **kwargs)

    config = tiny_config(*SETTINGS)
    policy = tiny_policy(config)  # which would notice, and read padded rows
    monkeypatch.setitem(AttentionInterface._global_mapping, shared_prompts.NAME, wrong)
    message = failure(config, policy, Eager(policy), tmp_path, good_steps=0)
    assert "The trainer's side is wrong" in message and "model.attention" in message


@pytest.mark.slow
def test_updates_that_leave_the_policy_as_its_base_are_the_trainers_error(tmp_path: Path) -> None:
    config = tiny_config(*SETTINGS, "optim.lr=1e-30", "generator.proof_completions=2")
    policy = tiny_policy(config)
    trainer, _ = run_steps(config, policy, Embedded(policy), tmp_path, UNMOVED_UPDATES)
    with pytest.raises(GeneratorMismatchError, match=r"equals its base to the last bit .* The trainer's side is wrong"):
        trainer.step()


def test_completions_are_spread_over_questions_and_over_their_groups() -> None:
    groups = sampled_groups(tiny_policy(), 6, size=3)
    places = [
        (groups.index(group), group.rollouts.index(rollout))
        for group in groups
        for prompt, rollout in spread(groups, 3)
        if prompt is group.prompt and rollout in group.rollouts]
    assert [place for place, _ in places] == [0, 2, 4]
    everything = spread(groups, 100)
    assert len(everything) == 18 and {id(rollout) for _, rollout in everything} == {
        id(r) for group in groups for r in group.rollouts}
    assert spread(groups, 8) == spread(groups, 8)
    assert len(spread(groups, 8)) == 8 and {prompt.question.id for prompt, _ in spread(groups, 8)} == {
        g.question.id for g in groups}
    assert spread([], 8) == []


def collected_from(policy: Policy, *, version: int = 0) -> Collected:
    return as_collected(sampled_groups(policy, 6, version=version))


def collected_by(generator: TransformersGenerator, *, version: int, count: int = 6) -> Collected:
    generator.policy_version = version
    requests = [Request(prompt, tuple(range(100 * i, 100 * i + 4))) for i, prompt in enumerate(prompts(count))]
    return as_collected(generator.generate(requests, SamplingParameters(1.0, 1.0, 0, 24)))
