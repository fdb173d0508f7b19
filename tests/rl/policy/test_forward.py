"""Training's path to log-probabilities against the model's own, over architectures that post-process their logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from rl.policy.forward import PolicyForward, check_head
from rl.policy.policy import Policy, PolicyError
from tests.reference.tiny_run import inputs, literal_logprobs, prompts, tiny_config, tiny_policy

torch.set_num_threads(1)
SIZES = {
    "vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 1, "initializer_range": 0.5}
IDS = (5, 9, 3, 12, 7, 30, 2, 11)


class DoublingLlama(LlamaForCausalLM):
    """Doubles its logits after the output layer, in a way that no key of its configuration tells."""

    def forward(self, *args: object, **kwargs: object) -> CausalLMOutputWithPast:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2.0
        return output


def policy_over(model: PreTrainedModel, adapter: bool = True) -> Policy:
    trained = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")) if adapter else model
    return Policy(trained, inputs().tokenizer, (1,), torch.float32)


def random_model(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("adapter_scale", [0.0, 0.05])
def test_the_tiny_model_passes(temperature: float, adapter_scale: float) -> None:
    policy = tiny_policy(adapter_scale=adapter_scale)
    check_head(PolicyForward(policy, temperature=temperature), policy, prompts(1)[0].token_ids, temperature)
    assert policy.model.training


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("config", [
    LlamaConfig(**SIZES), CohereConfig(**SIZES, logit_scale=0.25), GraniteConfig(**SIZES, logits_scaling=3.0),
    Gemma2Config(**SIZES, final_logit_softcapping=2.0, query_pre_attn_scalar=16),
], ids=lambda config: config.model_type)
def test_known_post_processing_passes(config: PretrainedConfig, adapter: bool) -> None:
    policy = policy_over(random_model(config), adapter)
    check_head(PolicyForward(policy, temperature=0.8), policy, IDS, 0.8)


def test_unknown_post_processing_is_refused_with_the_place_to_add_it() -> None:
    torch.manual_seed(0)
    policy = policy_over(DoublingLlama(LlamaConfig(**SIZES)))
    with pytest.raises(PolicyError, match=r"differ from the model's own by .*DoublingLlama.*logit_settings"):
        check_head(PolicyForward(policy, temperature=1.0), policy, IDS, 1.0)


def test_another_temperature_in_the_forward_is_noticed() -> None:
    policy = tiny_policy()
    with pytest.raises(PolicyError, match="differ from the model's own"):
        check_head(PolicyForward(policy, temperature=0.5), policy, prompts(1)[0].token_ids, 1.0)


def test_a_prompt_of_one_token_can_be_checked() -> None:
    policy = tiny_policy()
    check_head(PolicyForward(policy, temperature=1.0), policy, prompts(1)[0].token_ids[:1], 1.0)


@pytest.mark.parametrize("chunk_tokens", [None, 3])
def test_forward_equals_the_full_softmax_token_by_token(chunk_tokens: int | None) -> None:
    policy = tiny_policy(adapter_scale=0.05)
    forward = PolicyForward(policy, temperature=0.7, chunk_tokens=chunk_tokens)
    prompt, completion = prompts(1)[0].token_ids, (5, 8, 13, 1)
    found = forward(forward.rows([(prompt, completion)]))
    torch.testing.assert_close(
        found.logprobs_N.detach(), literal_logprobs(policy, prompt, completion, 0.7), atol=1e-4, rtol=0)


def test_the_reference_is_the_base_and_carries_no_gradient() -> None:
    policy = tiny_policy(adapter_scale=0.05)
    forward = PolicyForward(policy, temperature=1.0)
    prompt, completion = prompts(1)[0].token_ids, (5, 8, 13, 1)
    rows = forward.rows([(prompt, completion)])
    reference = forward.reference(rows)
    assert not reference.requires_grad
    torch.testing.assert_close(reference, literal_logprobs(tiny_policy(), prompt, completion), atol=1e-4, rtol=0)
    assert (forward(rows).logprobs_N.detach() - reference).abs().max() > 0.01


def test_full_parameters_in_bfloat16_are_kept_in_float32_and_computed_in_bfloat16() -> None:
    policy = tiny_policy(tiny_config("lora.enabled=false", "model.dtype=bfloat16"))
    exact = dataclasses.replace(policy, dtype=torch.float32)
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    ids = prompts(1)[0].token_ids
    rounded, plain = (
        forward(forward.rows([(ids[:1], ids[1:])])).logprobs_N
        for forward in (PolicyForward(p, temperature=1.0) for p in (policy, exact)))
    assert 1e-5 < (rounded - plain).abs().mean() < 0.2
    check_head(PolicyForward(policy, temperature=1.0), policy, prompts(1)[0].token_ids, 1.0)


def test_the_reference_is_computed_in_the_policys_precision() -> None:
    policy = tiny_policy(tiny_config("lora.enabled=false", "model.dtype=bfloat16", "loss.kl_weight=0.1"))
    forward = PolicyForward(policy, temperature=1.0)
    ids = prompts(1)[0].token_ids
    rows = forward.rows([(ids[:1], ids[1:])])
    assert torch.equal(forward.reference(rows), forward(rows).logprobs_N)
