"""The policy on the tiny model: the base stays as it was, merging is literal, adapters load where they belong and
nowhere else."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rl.checkpoint import save_checkpoint
from rl.config import GeneratorSection, ModelSection
from rl.generate.build import build_generator
from rl.paths import resolve_path
from rl.policy.policy import Policy, PolicyError, _load_base, merged_weights, resolve_dtype
from tests.reference.fork import Fork, forked_ranks
from tests.reference.tiny_run import (
    change_adapter,
    inputs,
    literal_logprobs,
    make_updater,
    prompts,
    sampled_groups,
    tiny_config,
    tiny_policy,
    trained,
    with_advantages,
)
from tests.reference.trainer_states import trainer_state

torch.set_num_threads(1)
BASE = str(resolve_path("models/tiny-arith"))


def checksum(policy: Policy) -> str:
    """SHA-256 over every frozen weight, by name."""
    digest = hashlib.sha256()
    for name, parameter in sorted(policy.model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode() + parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checkpoint_of(policy: Policy, folder: Path) -> Path:
    optimizer = torch.optim.AdamW(policy.trainable_parameters().values())
    return save_checkpoint(folder, trainer_state(1), policy, optimizer, [{"cpu": torch.get_rng_state()}], tiny_config())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model.eval()(input_ids=torch.tensor([prompts(1)[0].token_ids])).logits
    return output


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sync", ["merge", "shared"])
def test_updates_and_take_overs_leave_the_base_as_it_was(dtype: str, sync: str) -> None:
    config = tiny_config("optim.lr=0.01", f"model.dtype={dtype}", f"generator.sync={sync}", "optim.epochs=2")
    policy = tiny_policy(config)
    before, adapter_before = checksum(policy), trained(policy)
    generator, updater = build_generator(config.generator, policy), make_updater(config, policy)
    batch = with_advantages(sampled_groups(policy, 2, max_tokens=8))
    for step in range(3):
        updater.update(batch, step=step, policy_version=step)
        generator.take_over(policy, step + 1)
    assert checksum(policy) == before
    assert all(not torch.equal(weight, adapter_before[name]) for name, weight in trained(policy).items())


def test_merged_weights_are_base_plus_scaling_times_b_a() -> None:
    config = tiny_config("lora.rank=4", "lora.alpha=10")
    policy = tiny_policy(config, adapter_scale=0.1)
    base = dict(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).named_parameters())
    merged = dict(merged_weights(policy))
    layers = {name: m for name, m in policy.causal_lm.named_modules() if isinstance(m, LoraLayer)}
    assert merged.keys() == {f"{name}.weight" for name in layers} and len(layers) == 4 * 7
    for name, layer in layers.items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        expected = base[f"{name}.weight"].clone()
        for i in range(4):
            expected = expected + 10 / 4 * torch.outer(b[:, i], a[i])
        torch.testing.assert_close(merged[f"{name}.weight"], expected, rtol=1e-5, atol=1e-6)


def test_merged_weights_of_a_bfloat16_base_are_float32_and_not_rounded_to_it() -> None:
    policy = tiny_policy(tiny_config("model.dtype=bfloat16"), adapter_scale=1e-4)
    for weight in dict(merged_weights(policy)).values():
        assert weight.dtype == torch.float32
        assert not torch.equal(weight, weight.bfloat16().float())
        break
    assert {p.dtype for p in policy.trainable_parameters().values()} == {torch.float32}


def test_the_merged_model_computes_what_the_adapter_computes() -> None:
    policy = tiny_policy(adapter_scale=0.05)
    plain = policy.pristine_copy()
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    assert torch.equal(logits(plain), logits(base))
    named = dict(plain.named_parameters())
    with torch.no_grad():
        for name, weight in merged_weights(policy):
            named[name].copy_(weight)
    torch.testing.assert_close(logits(plain), logits(policy.causal_lm), rtol=1e-4, atol=1e-4)
    assert (logits(plain) - logits(base)).abs().max() > 0.1


def test_peft_loads_the_adapter_of_a_checkpoint_with_identical_logits(tmp_path: Path) -> None:
    policy = tiny_policy(adapter_scale=0.05)
    path = checkpoint_of(policy, tmp_path)
    loaded = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32), str(path / "adapter"))
    assert torch.equal(logits(loaded), logits(policy.model))


def test_a_run_starts_from_the_adapter_it_is_given_and_trains_it(tmp_path: Path) -> None:
    source = tiny_policy(adapter_scale=0.05)
    path = checkpoint_of(source, tmp_path)
    config = tiny_config(f"model.adapter={path / 'adapter'}")
    policy = tiny_policy(config)
    assert torch.equal(logits(policy.model), logits(source.model))
    before = trained(policy)
    assert before.keys() == trained(source).keys()
    make_updater(config, policy).update(with_advantages(sampled_groups(policy, 2)), step=0, policy_version=0)
    assert any(not torch.equal(weight, before[name]) for name, weight in trained(policy).items())


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone() -> None:
    torch.manual_seed(123)
    first = tiny_policy(tiny_config("seed=1"))
    torch.rand(10)
    second, other = tiny_policy(tiny_config("seed=1")), tiny_policy(tiny_config("seed=2"))
    assert torch.equal(logits(first.model), logits(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)))
    one, two, three = trained(first), trained(second), trained(other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_full_parameters_train_reach_the_sampler_and_load_as_a_plain_checkpoint(tmp_path: Path) -> None:
    config = tiny_config("lora.enabled=false", "optim.lr=1e-3")
    policy = tiny_policy(config)
    assert not policy.is_adapter and len(policy.trainable_parameters()) == 38
    generator = build_generator(GeneratorSection(sync="merge"), policy)
    before, batch = trained(policy), with_advantages(sampled_groups(policy, 2, max_tokens=8))
    make_updater(config, policy).update(batch, step=0, policy_version=0)
    generator.take_over(policy, 1)
    assert all(not torch.equal(weight, before[name]) for name, weight in trained(policy).items())
    groups = sampled_groups(policy, 2, version=1)
    for group in groups:
        for rollout in group.rollouts:
            expected = literal_logprobs(policy, group.prompt.token_ids, rollout.token_ids)
            assert rollout.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    path = checkpoint_of(policy, tmp_path)
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(path / "model", dtype=torch.float32)), logits(policy.model))


def test_the_reference_is_the_base_whatever_the_adapter_is() -> None:
    policy = tiny_policy(adapter_scale=0.05)
    base = logits(AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32))
    model, context = policy.reference_model()
    with context:
        assert torch.equal(logits(model), base)
    assert not torch.equal(logits(model), base)


def test_the_reference_of_full_parameters_stays_where_it_started() -> None:
    config = tiny_config("lora.enabled=false", "loss.kl_weight=0.1", "optim.lr=1e-3")
    policy = tiny_policy(config)
    start = logits(policy.model)
    make_updater(config, policy).update(with_advantages(sampled_groups(policy, 2)), step=0, policy_version=0)
    model, context = policy.reference_model()
    with context:
        assert torch.equal(logits(model), start)
    assert not torch.equal(logits(policy.model), start)
    assert tiny_policy(tiny_config("lora.enabled=false")).reference is None


def other_adapter(
    folder: Path, settings: dict[str, object] | None = None, *, hidden: int = 128, layers: int = 4
) -> Path:
    config = LlamaConfig(
        vocab_size=99, hidden_size=hidden, intermediate_size=352, num_hidden_layers=layers, num_attention_heads=4)
    model = LlamaForCausalLM(config)
    get_peft_model(model, LoraConfig(r=4, **({"target_modules": "all-linear"} | (settings or {})))).save_pretrained(
        folder)
    return folder


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
@pytest.mark.parametrize(("shape", "named"), [
    ((64, 4), "size mismatch"), ((128, 6), "no counterpart"), ((128, 3), "no counterpart"),
])
def test_an_adapter_for_a_base_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, int], named: str) -> None:
    folder = other_adapter(tmp_path, hidden=shape[0], layers=shape[1])
    with pytest.raises(PolicyError, match=rf"model\.adapter: .*made for another base.*{named}.*Remedy"):
        tiny_policy(tiny_config(f"model.adapter={folder}"))


def test_an_adapter_on_modules_that_this_base_lacks_is_refused(tmp_path: Path) -> None:
    folder = other_adapter(tmp_path, settings={"target_modules": ["q_proj"]})
    text = (folder / "adapter_config.json").read_text().replace("q_proj", "query_key_value")
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(PolicyError, match=r"model\.adapter: .*made for another base.*query_key_value.*Remedy"):
        tiny_policy(tiny_config(f"model.adapter={folder}"))


@pytest.mark.parametrize("extra", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_that_is_more_than_a_plain_lora_is_refused(tmp_path: Path, extra: dict[str, object]) -> None:
    folder = other_adapter(tmp_path, settings=extra)
    with pytest.raises(PolicyError, match=rf"{next(iter(extra))}.*expected a plain LoRA"):
        tiny_policy(tiny_config(f"model.adapter={folder}"))


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"model\.adapter: .* holds no adapter_config\.json"):
        tiny_policy(tiny_config(f"model.adapter={tmp_path}"))


def test_an_adapter_cannot_be_trained_in_full(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"lora\.enabled=true"):
        tiny_policy(tiny_config(f"model.adapter={tmp_path}", "lora.enabled=false"))


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize("targets", ["[lm_head,q_proj]", "[embed_tokens,q_proj]"])
def test_an_adapter_on_a_tied_embedding_is_refused(targets: str) -> None:
    assert inputs().model_config.tie_word_embeddings
    with pytest.raises(PolicyError, match=r"lora\.targets: .*one weight"):
        tiny_policy(tiny_config(f"lora.targets={targets}"))


def test_lora_targets_that_match_nothing_name_the_key() -> None:
    with pytest.raises(PolicyError, match=r"lora\.targets: .*no_such_proj"):
        tiny_policy(tiny_config("lora.targets=[no_such_proj]"))


def test_named_targets_adapt_only_those() -> None:
    names = trained(tiny_policy(tiny_config("lora.targets=[q_proj,v_proj]")))
    assert len(names) == 4 * 2 * 2 and all(".q_proj." in name or ".v_proj." in name for name in names)


def test_change_of_the_adapter_alone_changes_the_logits() -> None:
    policy = tiny_policy()
    before = logits(policy.model)
    change_adapter(policy, 0.05)
    assert not torch.equal(logits(policy.model), before)


def test_auto_dtype_is_float32_on_the_cpu_whatever_gpu_there_is() -> None:
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) == torch.float32 and resolve_dtype("bfloat16", cpu) == torch.bfloat16


@pytest.mark.parametrize(("override", "message"), [("lora.rank=8", r"lora\.rank: 8, .* has 4.*Remedy: lora\.rank=4"),
                                                   ("lora.alpha=99", r"lora\.alpha: 99, .*Remedy: lora\.alpha=")])
def test_an_adapter_of_another_rank_or_scale_is_refused(tmp_path: Path, override: str, message: str) -> None:
    path = checkpoint_of(tiny_policy(), tmp_path)
    with pytest.raises(PolicyError, match=message):
        tiny_policy(tiny_config(f"model.adapter={path / 'adapter'}", override))


def test_a_stored_adapter_trains_with_the_dropout_of_this_run(tmp_path: Path) -> None:
    path = checkpoint_of(tiny_policy(tiny_config("lora.dropout=0.3")), tmp_path)
    dropouts = [
        m
        for m in tiny_policy(tiny_config(f"model.adapter={path / 'adapter'}")).model.modules()
        if isinstance(m, torch.nn.Dropout)]
    assert all(dropout.p == 0 for dropout in dropouts)


def peak_growth_bytes(act: Callable[[], object]) -> int:
    """By how much the process's resident memory exceeds what it is now, at most, while `act` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = psutil.Process().memory_info().rss
    act()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 - before


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a system without /proc")
def test_ranks_that_load_a_model_onto_accelerators_need_no_room_for_it_in_the_machines_memory(tmp_path: Path) -> None:
    """Stored in bfloat16 and trained in float32. `meta` stands for the accelerator: no memory of this machine's."""
    wide = AutoConfig.from_pretrained(BASE, hidden_size=1024, intermediate_size=3072)
    plain = AutoModelForCausalLM.from_config(wide, dtype=torch.bfloat16)
    plain.save_pretrained(tmp_path)
    num_bytes = sum(parameter.numel() for parameter in plain.parameters()) * 4
    assert num_bytes > 60e6
    tokenizer = AutoTokenizer.from_pretrained(BASE)

    def rank() -> int:
        section, device = ModelSection(path=str(tmp_path)), torch.device("meta" if "RANK" in os.environ else "cpu")
        print(peak_growth_bytes(lambda: _load_base(section, tokenizer, torch.float32, device)))
        return 0

    for finished in forked_ranks(rank):
        assert int(finished.stdout.splitlines()[-1]) < num_bytes / 4, finished.stderr
    assert int(Fork(rank).finished().stdout.splitlines()[-1]) > num_bytes  # the measure sees a model on the CPU
