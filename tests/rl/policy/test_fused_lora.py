"""The fused layers compute what PEFT's own forward computes, and step aside where they cannot."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from rl.policy.fused_lora import LoraProduct, fuse_lora, unfused


class TwoLayers(nn.Module):
    def __init__(self, *, width: int = 6, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(width, 10, bias=bias, dtype=dtype)
        self.second = nn.Linear(10, 4, bias=bias, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))


class Unusual(nn.Module):
    """An embedding, a convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.filter, self.last = nn.Embedding(9, 4), nn.Conv1d(4, 6, 1), nn.Linear(6, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.filter(self.table(ids).mT).mT)


def adapted(
    *, width: int = 6, bias: bool = False, dtype: torch.dtype = torch.float32, scale: float = 1.0, **settings: Any
) -> PeftModel:
    """Two linear layers with an adapter whose B is not zero. settings: of PEFT's LoraConfig."""
    torch.manual_seed(0)
    settings = {"r": 3, "lora_alpha": 7, "target_modules": ["first", "second"]} | settings
    model = get_peft_model(TwoLayers(width=width, bias=bias, dtype=dtype), LoraConfig(**settings))
    fill_b(model, scale)
    return model


def fill_b(model: PeftModel, scale: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_().mul_(scale)


def output_and_gradients(
    model: PeftModel, x: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    x = x.clone().requires_grad_(True)
    result = model(x)
    (result * torch.arange(result.numel()).view_as(result)).sum().backward()
    assert x.grad is not None
    return result.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, x.grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 6)])
def test_output_and_all_gradients_equal_pefts(bias: bool, shape: tuple[int, ...]) -> None:
    plain = adapted(bias=bias)
    fused = copy.deepcopy(plain)
    assert fuse_lora(fused) == 2
    x = torch.randn(*shape)
    expected, found = output_and_gradients(plain, x), output_and_gradients(fused, x)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-4, atol=1e-4)
    assert found[1].keys() == expected[1].keys() and len(found[1]) == 4
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_gradcheck_in_float64() -> None:
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 4), (3, 4), (2, 4), (3, 2)))
    for tensor in (x, a, b):
        tensor.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, a, b: LoraProduct.apply(x, weight, None, a, b, 1.7), (x, a, b))


def test_switching_the_adapter_off_gives_the_base() -> None:
    model = adapted()
    x = torch.randn(5, 6)
    base = copy.deepcopy(model).unload()(x)
    fuse_lora(model)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), base, rtol=0, atol=0)
    assert not torch.allclose(model(x), base)


def test_a_copy_of_a_fused_model_computes_with_its_own_weights() -> None:
    model = adapted()
    fuse_lora(model)
    duplicate = copy.deepcopy(model)
    x = torch.randn(5, 6)
    before = model(x).detach()
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    assert torch.equal(duplicate(x), torch.zeros(5, 4))
    assert torch.equal(model(x), before)


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("bias", [False, True])
def test_over_a_bfloat16_base_output_and_gradients_are_pefts_in_float64_within_bfloat16s_error(bias: bool) -> None:
    plain = adapted(width=300, bias=bias, dtype=torch.bfloat16, scale=0.2)
    fused, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()  # PEFT's own, on the same rounded weights
    assert fuse_lora(fused) == 2
    x = torch.randn(3, 200, 300).bfloat16()
    expected, found, pefts = (
        output_and_gradients(model, x.to(dtype))
        for model, dtype in ((exact, torch.float64), (fused, torch.bfloat16), (plain, torch.bfloat16)))
    assert found[0].dtype == found[2].dtype == torch.bfloat16
    assert {gradient.dtype for gradient in found[1].values()} == {torch.float32}
    for exact_one, ours, theirs in [
        (expected[0], found[0], pefts[0]), (expected[2], found[2], pefts[2]),
        *((gradient, found[1][name], pefts[1][name]) for name, gradient in expected[1].items()),
    ]:
        assert torch.cosine_similarity(ours.double().flatten(), exact_one.flatten(), dim=0) > 0.9999
        assert relative_error(ours, exact_one) < max(0.005, 1.6 * relative_error(theirs, exact_one))


def test_gradients_of_several_passes_add_up_in_float32() -> None:
    model = adapted(dtype=torch.bfloat16)
    fuse_lora(model)
    pieces = torch.randn(4, 5, 6).bfloat16()
    alone = [output_and_gradients(copy.deepcopy(model), piece)[1] for piece in pieces]
    for piece in pieces:
        result = model(piece)
        (result * torch.arange(result.numel()).view_as(result)).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            first, *others = (gradients[name] for gradients in alone)
            assert torch.equal(parameter.grad, sum(others, first))


def test_in_float32_every_bit_is_that_of_the_written_out_formula() -> None:
    torch.manual_seed(0)
    x, weight, bias, a, b, gradient = (
        torch.randn(*shape) for shape in ((50, 40), (30, 40), (30,), (4, 40), (30, 4), (50, 30)))
    x, a, b = (tensor.requires_grad_() for tensor in (x, a, b))
    result = LoraProduct.apply(x, weight, bias, a, b, 1.7)
    result.backward(gradient)
    with torch.no_grad():
        reduced, gradient_reduced = x @ a.T, (gradient @ b) * 1.7
        assert torch.equal(result, nn.functional.linear(x, weight, bias).addmm(reduced, b.T, alpha=1.7))
        for found, expected in (
            (x.grad, (gradient @ weight).addmm(gradient_reduced, a)), (a.grad, gradient_reduced.T @ x),
            (b.grad, (gradient.T @ reduced) * 1.7),
        ):
            assert found is not None and torch.equal(found, expected)


def kept_bytes(model: PeftModel, ids: torch.Tensor) -> int:
    """Of what the forward pass saves for the backward pass, but the weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.get_base_model().model(input_ids=ids, use_cache=False)
    return sum(storage.nbytes() for storage in saved.values())


def test_a_bfloat16_layer_keeps_two_thirds_of_what_peft_keeps() -> None:
    shape = LlamaConfig(
        hidden_size=256, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        vocab_size=50)
    model = get_peft_model(
        AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16),
        LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.randint(0, 50, (4, 64))
    assert fuse_lora(model) == 28
    with unfused(model):
        before = kept_bytes(model, ids) / ids.numel() / 4
    after = kept_bytes(model, ids) / ids.numel() / 4
    assert before == pytest.approx(24_000, rel=0.02) and after == pytest.approx(15_900, rel=0.02)


def test_autocast_changes_nothing_over_a_bfloat16_base_and_leaves_a_float32_base_to_peft() -> None:
    model = adapted(dtype=torch.bfloat16)
    fuse_lora(model)
    x = torch.randn(5, 6)
    expected = output_and_gradients(model, x.bfloat16())
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = output_and_gradients(model, x)  # in float32, as after a norm under autocast
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(gradient, expected[1][name]) for name, gradient in found[1].items())
        wide = adapted()
        fuse_lora(wide)
        ours = wide(x)
        with unfused(wide):
            assert torch.equal(ours, wide(x))


def test_over_a_bfloat16_base_the_adapter_can_be_switched_off_and_merged() -> None:
    model = adapted(dtype=torch.bfloat16)
    x = torch.randn(5, 6).bfloat16()
    base = copy.deepcopy(model).unload()(x)
    pefts = copy.deepcopy(model).merge_and_unload()(x)
    fuse_lora(model)
    with model.disable_adapter():
        assert torch.equal(model(x), base)
    model.merge_adapter()
    assert torch.equal(model(x), pefts)
    assert torch.equal(copy.deepcopy(model).unload()(x), pefts)


@pytest.mark.parametrize(("settings", "reason"), [
    ({"lora_dropout": 0.1}, "dropout (2)"), ({"use_dora": True}, "a variant of LoRA, such as DoRA (2)"),
    ({"lora_bias": True}, "a bias of the adapter's own (2)")])
def test_more_than_a_plain_lora_keeps_pefts_forward_and_is_said(settings: dict[str, Any], reason: str) -> None:
    model = adapted(bias=True, **settings)
    with pytest.warns(UserWarning, match="2 of 2 adapted layers compute by PEFT's own forward") as said:
        assert fuse_lora(model) == 0
    assert len(said) == 1 and reason in str(said[0].message)


def test_embeddings_and_convolutions_keep_pefts_forward_and_are_said_once() -> None:
    model = get_peft_model(Unusual(), LoraConfig(r=2, target_modules=["table", "filter", "last"]))
    fill_b(model, 1.0)
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids)
    with pytest.warns(UserWarning) as said:
        assert fuse_lora(model) == 1
    (message,) = (str(warning.message) for warning in said)
    assert message.startswith("2 of 3 adapted layers") and "Embedding (1)" in message and "Conv1d (1)" in message
    torch.testing.assert_close(model(ids), expected)


def test_where_every_layer_is_fused_nothing_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fuse_lora(adapted(bias=True, dtype=torch.bfloat16)) == 2
