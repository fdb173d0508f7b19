"""rl/policy/rounding.py: what of an adapter's change survives a merge, against a hand-computed case, and that the ways
to the sampler follow from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rl.config import GeneratorSection
from rl.generate import frozen
from rl.generate.weight_sync import choose_sync, merge_pays
from rl.policy.adapter_base import FILE
from rl.policy.policy import Policy, PolicyError, adapter_changes, all_weights, base_weights, load_frozen
from rl.policy.rounding import surviving_share
from tests.reference.tiny_run import change_adapter, inputs, tiny_config, tiny_policy


def test_half_of_what_lies_beyond_the_lattice_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Around 1 bfloat16 has a number every 2^-7 (above) and 2^-8 (below): 2^-6 is kept, 2^-10 is not."""
    weight, change = torch.ones(2, 2, dtype=torch.bfloat16), torch.tensor([[2.0**-6, 2.0**-10], [0.0, 2.0**-10]])
    monkeypatch.setattr("rl.policy.rounding.adapter_changes", lambda policy: iter([(weight, change)]))
    policy = tiny_policy(tiny_config("model.dtype=bfloat16"))
    assert surviving_share(policy) == pytest.approx(2.0**-12 / (2.0**-12 + 2 * 2.0**-20), rel=1e-6)
    change[0, 0] = 2.0**-10
    assert surviving_share(policy) == 0.0
    assert surviving_share(policy, torch.float32) == pytest.approx(1.0, rel=1e-6)


def test_a_small_change_survives_in_float32_and_beside_the_base_alone() -> None:
    policy = tiny_policy(tiny_config("model.dtype=bfloat16"))
    assert surviving_share(policy) == 1.0  # nothing has changed yet
    change_adapter(policy, 1e-5)
    assert surviving_share(policy) < 0.3 and surviving_share(policy, torch.float32) > 0.99
    change_adapter(policy, 0.05)
    assert surviving_share(policy) > 0.9


def test_the_bases_weights_have_the_checkpoints_names_and_no_adapter_in_them() -> None:
    policy = tiny_policy(adapter_scale=0.05)
    base, merged = dict(base_weights(policy)), dict(all_weights(policy))
    assert list(base) == list(merged)
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert len(changed) == len(list(adapter_changes(policy))) > 0


@pytest.mark.parametrize(("dtype", "backend", "way"), [
    ("float32", "transformers", "merge"), ("bfloat16", "transformers", "shared"), ("float32", "vllm", "merge"),
    ("bfloat16", "vllm", "adapter"), ("bfloat16", "vllm_server", "adapter")])
def test_by_itself_no_adapter_is_merged_below_float32(dtype: str, backend: str, way: str) -> None:
    policy = tiny_policy(tiny_config(f"model.dtype={dtype}"))
    config = {"backend": backend, "urls": ["http://localhost:1"] if backend == "vllm_server" else []}
    assert choose_sync(GeneratorSection.model_validate(config), policy).way == way


@pytest.mark.parametrize(("dtype", "backend", "way"), [
    ("float32", "vllm", "merge"), ("bfloat16", "vllm", "adapter"), ("float32", "vllm_server", "adapter"),
    ("bfloat16", "vllm_server", "adapter")])
def test_on_a_gpu_an_adapter_is_merged_where_that_is_exact_and_the_step_shorter(
    dtype: str, backend: str, way: str
) -> None:
    policy = tiny_policy(tiny_config(f"model.dtype={dtype}"))
    config = {"backend": backend, "urls": ["http://localhost:1"] if backend == "vllm_server" else []}
    section = GeneratorSection.model_validate(config)
    assert choose_sync(section, policy, on_gpu=True).way == way
    assert choose_sync(section.model_copy(update={"sync": "adapter"}), policy, on_gpu=True).way == "adapter"


@pytest.mark.parametrize(("decode_s", "swap_s", "pays"), [
    (10.0, 3.5, True), (10.0, 3.7, False), (100.0, 35.0, True), (100.0, 37.0, False), (0.0, 0.1, False)])
def test_merging_pays_where_it_takes_less_than_the_36_percent_that_an_adapter_adds(
    decode_s: float, swap_s: float, pays: bool
) -> None:
    assert merge_pays(decode_s, swap_s) is pays


def test_a_frozen_policy_in_bfloat16_keeps_its_adapter_beside_its_base(tmp_path: Path) -> None:
    policy: Policy = tiny_policy(tiny_config("model.dtype=bfloat16"))
    change_adapter(policy, 1e-5)
    policy.model.save_pretrained(str(tmp_path))
    config = tiny_config("model.dtype=bfloat16", f"model.adapter={tmp_path}").model
    kept_apart = load_frozen(config, inputs().tokenizer, torch.device("cpu"))
    assert kept_apart.is_adapter and not kept_apart.trainable_parameters() and not kept_apart.model.training
    kept = [torch.equal(one, other) for (_, one), (_, other) in zip(
        adapter_changes(kept_apart), adapter_changes(policy), strict=True)]
    assert kept and all(kept)
    plain = load_frozen(config.model_copy(update={"dtype": "float32"}), inputs().tokenizer, torch.device("cpu"))
    assert not plain.is_adapter


def test_an_adapter_of_another_base_or_with_ranks_of_its_own_is_not_put_beside_this_one(tmp_path: Path) -> None:
    policy = tiny_policy(tiny_config("model.dtype=bfloat16", "lora.rank=8"))
    policy.model.save_pretrained(str(tmp_path))
    model = tiny_config("model.dtype=bfloat16", f"model.adapter={tmp_path}").model
    rank, targets = frozen._checked_adapter(model, tmp_path, inputs().tokenizer)
    assert rank == 8 and "q_proj" in targets
    (tmp_path / FILE).write_text(json.dumps({"base": "another"}))
    with pytest.raises(PolicyError, match="was made for another base"):
        frozen._checked_adapter(model, tmp_path, inputs().tokenizer)
    (tmp_path / FILE).unlink()
    settings = json.loads((tmp_path / "adapter_config.json").read_text()) | {"alpha_pattern": {"q_proj": 64}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(PolicyError, match="alpha_pattern"):
        frozen._checked_adapter(model, tmp_path, inputs().tokenizer)
