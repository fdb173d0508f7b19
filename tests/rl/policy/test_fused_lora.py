"""The fused layers compute what PEFT's own forward computes, and step aside where they cannot."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from rl.policy.fused_lora import LoraProduct, fuse_lora


class TwoLayers(nn.Module):
    def __init__(self, *, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(6, 10, bias=bias, dtype=dtype)
        self.second = nn.Linear(10, 4, bias=bias, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.silu(self.first(x)))


def adapted(*, bias: bool = False, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> PeftModel:
    """Two linear layers with an adapter whose B is not zero."""
    torch.manual_seed(0)
    model = get_peft_model(
        TwoLayers(bias=bias, dtype=dtype),
        LoraConfig(r=3, lora_alpha=7, lora_dropout=dropout, target_modules=["first", "second"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


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


def test_dropout_and_a_base_in_another_dtype_keep_pefts_forward() -> None:
    assert fuse_lora(adapted(dropout=0.1)) == 0
    assert fuse_lora(adapted(dtype=torch.bfloat16)) == 0
