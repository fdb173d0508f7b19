"""model.head_dtype=float32: the output layer's product is exact over bfloat16 operands, wherever the policy computes,
and takes no float32 copy of the weight."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from rewards.errors import UserError
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy import float32_head
from rl.policy.float32_head import has_float32_head, set_float32_head
from rl.policy.forward import PolicyForward, check_head
from rl.policy.policy import Policy, PolicyError, _refuse_adapted_head
from tests.reference.tiny_run import prompts, tiny_config, tiny_policy

BFLOAT16 = ("model.dtype=bfloat16", "model.head_dtype=float32")
SIZES = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


def small_model(dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).to(dtype)


def bfloat16_policy(*overrides: str, head: bool = True) -> Policy:
    return tiny_policy(tiny_config(*BFLOAT16[: 1 + head], *overrides), adapter_scale=0.05)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 32), (2, 3, 32)])
def test_logits_are_those_of_float64_over_the_same_bfloat16_numbers(
    bias: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(float32_head, "PIECE_BYTES", 4 * 32 * 11)  # 11 rows of the weight at a time, the last time 6
    model = small_model()
    model.lm_head = nn.Linear(32, 50, bias=bias, dtype=torch.bfloat16)
    hidden = (30 * torch.randn(*shape)).bfloat16()
    rounded = model.lm_head(hidden)
    exact = copy.deepcopy(model.lm_head).double()(hidden.double())
    set_float32_head(model)
    found = model.lm_head(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert (rounded.double() - exact).abs().max() > 0.01


def test_the_gradient_is_that_without_the_setting() -> None:
    plain, exact = small_model(), small_model()
    set_float32_head(exact)
    weights = torch.randn(7, 50)
    hidden = torch.randn(7, 32).bfloat16().requires_grad_()
    (expected_x, expected_w), (found_x, found_w) = (
        torch.autograd.grad((model.lm_head(hidden).float() * weights).sum(), (hidden, model.lm_head.weight))
        for model in (plain, exact))
    assert torch.equal(found_x, expected_x) and torch.equal(found_w, expected_w)


def test_under_autocast_weights_in_float32_count_as_they_are_sampled_from_in_bfloat16() -> None:
    model = small_model(torch.float32)
    hidden = torch.randn(7, 32, requires_grad=True)
    exact = (hidden.bfloat16().double() @ model.lm_head.weight.bfloat16().double().T).detach()
    set_float32_head(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.lm_head(hidden)
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)
    logits.sum().backward()
    assert hidden.grad is not None and hidden.grad.dtype == torch.float32
    assert model.lm_head.weight.grad is not None and model.lm_head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(
        model.lm_head.weight.grad, hidden.detach().sum(0).expand(50, 32), rtol=0.01, atol=0.01)


class LargestFloat32(TorchDispatchMode):
    """Elements of the largest float32 tensor with rows of `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.elements = width, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32 and result.shape[-1:] == (self.width,):
            self.elements = max(self.elements, result.numel())
        return result


def test_no_float32_copy_of_the_weight_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float32_head, "PIECE_BYTES", 4 * 32 * 10)
    model = small_model()
    set_float32_head(model)
    hidden = torch.randn(3, 32).bfloat16().requires_grad_()
    with LargestFloat32(32) as seen:
        model.lm_head(hidden).sum().backward()
    assert seen.elements == 10 * 32


@pytest.mark.parametrize("overrides", [(), ("lora.enabled=false", "loss.kl_weight=0.1")], ids=["adapter", "full"])
def test_trainer_reference_and_copies_for_sampling_all_compute_so(overrides: tuple[str, ...]) -> None:
    policy = bfloat16_policy(*overrides)
    reference, _ = policy.reference_model()
    assert policy.has_float32_head and has_float32_head(reference) and has_float32_head(policy.pristine_copy())
    logits = policy.pristine_copy()(torch.tensor([prompts(1)[0].token_ids])).logits
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
    check_head(PolicyForward(policy, temperature=0.8), policy, prompts(1)[0].token_ids, 0.8)


@pytest.mark.parametrize(("head", "at_most", "at_least"), [(True, 1e-4, 0.0), (False, 0.1, 2e-3)])
def test_the_trainers_log_probabilities_are_those_of_its_own_hidden_states(
    head: bool, at_most: float, at_least: float
) -> None:
    policy, prompt = bfloat16_policy(head=head), torch.tensor([prompts(1)[0].token_ids])
    forward = PolicyForward(policy, temperature=0.7)
    with torch.no_grad():
        ids = tuple(prompt[0].tolist())
        found_N = forward(forward.rows([(ids[:1], ids[1:])])).logprobs_N
        hidden_LH = policy.causal_lm.model(prompt).last_hidden_state[0, :-1].double()
    logits_LV = hidden_LH @ policy.causal_lm.get_output_embeddings().weight.double().T / 0.7
    exact_N = torch.log_softmax(logits_LV, -1).gather(1, prompt[0, 1:, None]).squeeze(1)
    assert at_least <= (found_N - exact_N).abs().max() < at_most


def test_a_merged_copy_samples_so_too() -> None:
    generator = TransformersGenerator(bfloat16_policy(), merge=True, max_sequences=8)
    assert has_float32_head(generator._model)


def test_in_float32_the_setting_changes_nothing() -> None:
    policy = tiny_policy(tiny_config("model.head_dtype=float32"))
    assert not policy.has_float32_head and "forward" not in vars(policy.causal_lm.get_output_embeddings())


def test_an_adapter_on_the_output_layer_is_refused() -> None:
    model = small_model()
    get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(PolicyError, match=r"model.head_dtype: float32, but .*output layer.*or model.head_dtype=null"):
        _refuse_adapted_head(model, tiny_config(*BFLOAT16).model)


def test_an_output_layer_of_another_kind_is_refused() -> None:
    model = small_model()
    model.lm_head = nn.Sequential(nn.Linear(32, 50))
    with pytest.raises(UserError, match=r"model\.head_dtype: float32, but .*type Sequential"):
        set_float32_head(model)
