"""A base in 4 bits: trainer and sampler compute with its dequantised weights and nothing else, and no merge into it is
begun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from eval.run import build_tasks, parse
from eval.subject import find_subject
from rewards.errors import UserError
from rl.checkpoint import save_weights
from rl.config import GeneratorSection, LoraSection, ModelSection, SamplingSection
from rl.configuration.loading import to_yaml
from rl.errors import ConfigError, GeneratorError
from rl.export import export
from rl.generate.build import check_generator
from rl.generate.generator_plan import GeneratorPlan
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.servers.generator import _launch_line as launch_line
from rl.generate.transformers_generator import TransformersGenerator
from rl.generate.vllm_engine import EngineSettings
from rl.generate.vllm_engine import _arguments as engine_arguments
from rl.generate.vllm_versions import check_nf4
from rl.generate.weight_sync import choose_sync
from rl.memory.estimate import estimate_memory
from rl.policy.adapter_base import write_fingerprint
from rl.policy.forward import PolicyForward, check_head
from rl.policy.layout import layout_of
from rl.policy.model_identity import model_identity
from rl.policy.nf4 import dense, is_quantised
from rl.policy.policy import Policy, load_frozen, plan_policy
from rl.questions.inputs import load_model_config
from rl.questions.run_prompt import prompt_of_run
from rl.supervised.config import WarmupConfig
from rl.supervised.run import load_warmup_policy
from tests.reference.tiny_run import inputs, literal_logprobs, prompts, sampled_groups, tiny_config, tiny_policy

NF4 = "model.quantization=nf4"
IDS = torch.tensor([[3, 5, 7, 4, 6, 8, 9, 3], [6, 4, 7, 3, 9, 5, 8, 4]])
CPU = torch.device("cpu")


def beside_dequantised(policy: Policy, *overrides: str) -> Policy:
    """The same adapter over an ordinary base, whose weights are the dequantised ones of `policy`."""
    plain = tiny_policy(tiny_config(*overrides))
    layers, own = dict(policy.model.named_modules()), dict(policy.model.named_parameters())
    with torch.no_grad():
        for name, module in plain.model.named_modules():
            if is_quantised(layers[name]):
                module.weight.copy_(dense(layers[name].weight, layers[name].weight.quant_state))
        for name, parameter in plain.trainable_parameters().items():
            parameter.copy_(own[name])
    return plain


def logits_and_gradients(policy: Policy) -> dict[str, torch.Tensor]:
    """Of A and B, and of what the first layer reads."""
    embedded = policy.causal_lm.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = policy.causal_lm(inputs_embeds=embedded, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), IDS[:, 1:].flatten()).backward()
    assert embedded.grad is not None
    found = {"logits": logits.detach(), "x": embedded.grad}
    return found | {name: p.grad for name, p in policy.trainable_parameters().items() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "words", "tolerance"), [
    ("float32", "lora.targets=all-linear", 1e-5), ("float32", "lora.targets=[q_proj]", 1e-5),
    ("float32", "lora.dropout=0.5", 1e-5), ("bfloat16", "lora.targets=all-linear", 2**-7),
    ("bfloat16", "lora.targets=[q_proj]", 2**-7)])
def test_output_and_gradients_are_those_over_the_dequantised_base(dtype: str, words: str, tolerance: float) -> None:
    """Of adapted layers, of layers without an adapter, and of PEFT's own forward."""
    words_of_both = f"model.dtype={dtype}", words
    policy = tiny_policy(tiny_config(NF4, *words_of_both), adapter_scale=0.05)
    plain = beside_dequantised(policy, *words_of_both)
    for model in (policy.model, plain.model):
        model.train("dropout" not in words)  # which is drawn anew; PEFT's forward stays
    found, expected = logits_and_gradients(policy), logits_and_gradients(plain)
    assert found.keys() == expected.keys() and len(found) == 2 + (8 if "q_proj" in words else 56)
    for name, value in expected.items():
        error = float((found[name] - value).float().norm() / value.float().norm())
        assert error < tolerance, (name, error)


def kept(model: PreTrainedModel) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """What a forward pass saves for the backward pass, the model's own weights aside."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    found: dict[int, tuple[tuple[int, ...], torch.dtype]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            found[place] = (tuple(tensor.shape), tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.model(input_ids=IDS, use_cache=False)
    return sorted(found.values(), key=str)


@pytest.mark.parametrize("targets", ["all-linear", "[q_proj]"])
def test_no_dequantised_weight_is_kept_for_the_backward_pass(targets: str) -> None:
    policy = tiny_policy(tiny_config(NF4, f"lora.targets={targets}"))
    assert kept(policy.causal_lm) == kept(tiny_policy(tiny_config(f"lora.targets={targets}")).causal_lm)


def test_recomputed_activations_change_no_gradient() -> None:
    plain, recomputed = (
        tiny_policy(tiny_config(NF4, f"model.gradient_checkpointing={word}"), adapter_scale=0.05)
        for word in ("false", "true"))
    expected, found = logits_and_gradients(plain), logits_and_gradients(recomputed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_samplers_log_probabilities_are_the_trainers_and_not_the_plain_bases() -> None:
    """Single rows too: bitsandbytes' own layers round to bfloat16 in evaluation mode, where a processor has it."""
    policy = tiny_policy(tiny_config(NF4), adapter_scale=0.05)
    assert choose_sync(GeneratorSection(), policy).way == "shared"
    generator = TransformersGenerator(policy, merge=False, max_sequences=1)
    groups = sampled_groups(policy, 3) + generator.generate(
        [Request(prompts(1)[0], (1,))], SamplingParameters(1.0, 1.0, 0, 24))
    plain = tiny_policy(tiny_config(), adapter_scale=0.05)
    distances = []
    for group in groups:
        for rollout in group.rollouts:
            pair = group.prompt.token_ids, rollout.token_ids
            found = torch.tensor(rollout.logprobs)
            torch.testing.assert_close(found, literal_logprobs(policy, *pair).detach(), rtol=0, atol=1e-4)
            distances.append(float((found - literal_logprobs(plain, *pair)).abs().mean()))
    assert max(distances) > 1e-3


def test_prompts_are_shared_and_the_head_is_checked_and_the_adapter_switches_off() -> None:
    policy = tiny_policy(tiny_config(NF4), adapter_scale=0.05)
    assert layout_of(policy.causal_lm) == "shared"
    check_head(PolicyForward(policy, temperature=1.0), policy, prompts(1)[0].token_ids, 1.0)
    plain = beside_dequantised(policy)
    with torch.no_grad(), policy.model.disable_adapter(), plain.model.disable_adapter():
        torch.testing.assert_close(policy.causal_lm(IDS).logits, plain.causal_lm(IDS).logits, rtol=1e-5, atol=1e-5)


def test_the_estimates_base_is_what_is_held_and_the_largest_weight() -> None:
    config = tiny_config(NF4)
    policy = tiny_policy(config)
    states = {id(layer.weight): layer.weight.quant_state
              for layer in policy.causal_lm.modules() if is_quantised(layer)}.values()
    scales = sum(
        tensor.numel() * tensor.element_size() for state in states
        for tensor in (state.absmax, state.state2.absmax))
    found = estimate_memory(
        config, load_model_config(config.model), 10, bytes_per_weight=4, on_gpu=False)
    assert found.base == pytest.approx(policy.base_bytes + scales + 4 * 128 * 352, rel=1e-3)
    assert found.sampler_copy == 0


MERGE = GeneratorSection(sync="merge")


def refuse_sync() -> None:
    choose_sync(MERGE, tiny_policy(tiny_config(NF4)))


def refuse_plan(section: GeneratorSection, *, on_gpu: bool) -> None:
    config = tiny_config(NF4)
    policy = plan_policy(config.model, config.lora, load_model_config(config.model), inputs().tokenizer, CPU)
    check_generator(section, SamplingSection(), policy, on_gpu=on_gpu)


def refuse_full_training() -> None:
    tiny_policy(tiny_config(NF4, "lora.enabled=false"))


def refuse_merged_warmup() -> None:
    config = WarmupConfig(model=ModelSection(quantization="nf4"), merge=True)
    load_warmup_policy(config, inputs(), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize(("attempt", "message"), [
    (refuse_sync, r"generator.sync: merge, but rounded to nf4 .*Remedy: generator.sync=auto, or model.q"),
    (lambda: refuse_plan(MERGE, on_gpu=True), r"generator.sync: merge, but rounded to nf4"),
    (lambda: refuse_plan(GeneratorSection(backend="vllm"), on_gpu=False),
     r"model.quantization: nf4, but vLLM computes .* on a GPU alone\. Remedy: generator.backend=transformers, or mod"),
    (lambda: refuse_plan(GeneratorSection(backend="vllm", sleep="discard"), on_gpu=True),
     r"generator.sleep: discard, but .*Remedy: generator.sleep=offload, or model.quantization=null"),
    (refuse_full_training, r"model.quantization: nf4, but lora.enabled=false .*Remedy: lora.enabled=true, or model.qu"),
    (refuse_merged_warmup, r"merge: true, but rounded to nf4 .*Remedy: merge=false, or model.quantization=null"),
])
def test_what_4_bits_cannot_do_is_refused_by_its_key_with_the_remedy(
    attempt: Callable[[], None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        attempt()


@pytest.mark.parametrize(("version", "is_refused"), [("0.27.1", False), ("0.32.0", True)])
def test_a_vllm_that_quantises_by_a_plugin_names_it_where_it_is_missing(
    version: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm_bnb_plugin", None)
    if not is_refused:
        check_nf4(version, on_gpu=True)
        return
    with pytest.raises(GeneratorError, match=r"vLLM 0\.32\.0 quantises so by a plugin.*pip install vllm-bnb-plugin"):
        check_nf4(version, on_gpu=True)


def test_vllm_is_told_to_quantise_in_the_process_and_on_servers(tmp_path: Path) -> None:
    settings = EngineSettings(
        model="m", revision=None, trust_remote_code=False, dtype=torch.bfloat16, max_tokens=64, max_sequences=8,
        lora_rank=4, lora_targets=("q_proj",), logprobs_mode="processed_logprobs", memory_share=0.5, cache_bytes=None,
        eager=False, can_sleep=False, num_ranks=1, seed=0)
    told = {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    assert engine_arguments(replace(settings, nf4=True)) == engine_arguments(settings) | told
    plan = GeneratorPlan(
        max_tokens=64, cache_bytes_per_token=1, trainer_bytes=0, base_path="m", revision=None, trust_remote_code=False,
        logprobs_mode="processed_logprobs", num_ranks=1, seed=0, run_dir=tmp_path)
    section = GeneratorSection(backend="vllm_server", urls=["http://localhost:1"])
    for policy, flags in ((tiny_policy(tiny_config(NF4)), 1), (tiny_policy(), 0)):
        line = launch_line(policy, plan, choose_sync(section, policy, on_gpu=True), section)
        assert line.count(" --quantization bitsandbytes ") == flags and " --enable-lora " in line


def test_without_bitsandbytes_the_key_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = r"model\.quantization: nf4, but bitsandbytes is not installed\. Remedy: pip install -e '\.\[nf4\]', "
    for attempt in (lambda: tiny_policy(tiny_config(NF4)), lambda: refuse_plan(MERGE, on_gpu=False)):
        with pytest.raises(UserError, match=message):
            attempt()


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Policy, Path]:
    """A policy over a base in 4 bits, and its adapter as a run in tmp_path stores it."""
    config = tiny_config(NF4, f"run_dir={tmp_path}")
    policy = tiny_policy(config, adapter_scale=0.05)
    (tmp_path / "config.resolved.yaml").write_text(to_yaml(config))
    save_weights(tmp_path, policy, prompt_of_run(tmp_path, config))
    return policy, tmp_path / "adapter"


def test_a_stored_adapter_is_evaluated_beside_its_base_in_4_bits_and_never_merged(
    trained: tuple[Policy, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, adapter = trained
    found = find_subject(None, str(adapter))
    assert found.model.quantization == "nf4" and find_subject(None, str(adapter), quantization="null").identity().get(
        "quantization") is None
    assert found.identity()["quantization"] == "nf4"
    [task] = build_tasks(parse(["--adapter", str(adapter), "--benchmarks", "tiny_arith"]), found)
    assert task.protocol["quantization"] == "nf4" and "--quantization nf4\n" in capsys.readouterr().err
    build_tasks(parse(["--adapter", str(adapter), "--benchmarks", "tiny_arith", "--quantization", "null"]), found)
    assert "another precision of the base" in capsys.readouterr().err
    frozen = load_frozen(found.model, inputs().tokenizer, CPU)
    assert frozen.is_adapter and frozen.quantization == "nf4"
    with torch.no_grad():
        assert torch.equal(frozen.causal_lm(IDS).logits, policy.causal_lm(IDS).logits)
    with pytest.raises(ConfigError, match=r"model\.quantization: nf4, with which .* was trained.*Remedy: the adapter "):
        export(str(adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_knows_its_base_is_not_put_over_one_of_another_quantisation(
    trained: tuple[Policy, Path],
) -> None:
    policy, adapter = trained
    write_fingerprint(adapter, policy.causal_lm)
    for dtype in ("float32", "bfloat16"):  # other codes, and the same base
        tiny_policy(tiny_config(NF4, f"model.adapter={adapter}", f"model.dtype={dtype}"))
    with pytest.raises(UserError, match=r"model\.quantization: null, but .*Remedy: model\.quantization=nf4"):
        tiny_policy(tiny_config(f"model.adapter={adapter}"))


def test_a_base_in_4_bits_is_another_model_than_the_same_without() -> None:
    plain, quantised = ModelSection(), ModelSection(quantization="nf4")
    config = load_model_config(plain)
    assert model_identity(quantised, config) == model_identity(plain, config) | {"quantization": "nf4"}
    base = load_frozen(quantised, inputs().tokenizer, CPU)
    assert any(map(is_quantised, base.causal_lm.modules())) and not is_quantised(base.causal_lm.get_output_embeddings())


def test_the_planner_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    config = tiny_config(NF4, "lora.rank=8")
    full = tiny_config("lora.rank=8")
    found, plain = (estimate_memory(
        each, load_model_config(each.model), 10, bytes_per_weight=2, on_gpu=True) for each in (config, full))
    assert found.base < plain.base and found.trained == plain.trained and found.activations == plain.activations


def test_the_section_is_read_and_null_is_the_default() -> None:
    assert ModelSection().quantization is None and LoraSection().enabled
    with pytest.raises(ConfigError, match=r"model\.quantization.*nf4"):
        tiny_config("model.quantization=int8")
