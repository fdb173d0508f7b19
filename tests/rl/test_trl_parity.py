"""The same batch gives the same loss and the same gradients as TRL's GRPOTrainer, in float32.

TRL gets its own padded [B, L] tensors, left-padded prompts included; ours goes through plan, micro-batches and flat
tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rl.batching import MicroBatch, build_micro_batch, plan_micro_batches
from rl.config import LossSection
from rl.configuration.other_names import TRL
from rl.losses import STATISTICS, Aggregation, Denominators, LossTokens, entropy_threshold, policy_loss
from rl.policy.layout import layout_of, share_prompts
from rl.policy.logprobs import token_logprobs
from rl.policy.rows import hidden_states
from rl.records import Group, Prompt, Question, Rollout, ScoredGroup, TrainingGroup

PAD = 0
CHARACTERS = "abcdefghijklmnop"
MAX_COMPLETION_TOKENS = 12
TEMPERATURE = 0.8
# Prompt length, completion lengths, advantages: different lengths, one group without advantage.
SHAPES = [(5, (12, 4, 1), (1.4, -0.7, -0.7)), (2, (3, 8, 5), (0.0, 0.0, 0.0)), (9, (7, 2, 11), (-1.0, 0.2, 0.8))]

# What TRL is told, and the name of the objective and aggregation that must agree with it.
CASES: dict[str, tuple[dict[str, Any], str, Aggregation]] = {
    "grpo": ({"loss_type": "grpo"}, "clip", "sequence"),
    # Without TRL's factor rho on the KL term (arXiv:2512.02556, its default): ours is the plain k3.
    "grpo with KL": ({"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False}, "clip", "sequence"),
    "dapo": ({"loss_type": "dapo"}, "clip", "token"),
    "dapo with KL": ({"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": False}, "clip", "token"),
    "dapo with entropy bonus": ({"loss_type": "dapo", "entropy_coef": 0.05}, "clip", "token"),
    "dapo on the top half of entropies": ({"loss_type": "dapo", "top_entropy_quantile": 0.5}, "clip", "token"),
    "dr_grpo": ({"loss_type": "dr_grpo"}, "clip", "constant"),
    "dr_grpo with KL": ({"loss_type": "dr_grpo", "beta": 0.1, "use_bias_correction_kl": False}, "clip", "constant"),
    # TRL's epsilon_high is cispo's bound itself; ours is the distance from 1, as in the other objectives.
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.28}, "cispo", "token"),
    "gspo": ({"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05, "epsilon_high": 0.06},
             "gspo", "sequence"),
}


def make_policy() -> PeftModel:
    """A random Llama with a LoRA that already differs from its base (B is not zero); the same on each call.

    TRL patches the model it gets and adds an adapter to it, so it gets its own."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 2, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
        pad_token_id=PAD, eos_token_id=1)
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


@functools.cache
def policy() -> PeftModel:
    """Ours: it reads the completions of a question in one row, TRL's each in its own."""
    model = make_policy()
    assert share_prompts(model.get_base_model()) is None
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(
        WordLevel({token: index for index, token in enumerate(["<pad>", "<eos>", *CHARACTERS])}, unk_token="<eos>"))
    core.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


@functools.cache
def groups() -> tuple[TrainingGroup, ...]:
    generator = random.Random(7)
    result = []
    for index, (prompt_length, lengths, advantages) in enumerate(SHAPES):
        def ids(count: int) -> tuple[int, ...]:
            return tuple(generator.randrange(2, len(CHARACTERS) + 2) for _ in range(count))

        rollouts = tuple(Rollout(ids(length), (-1.0,) * length, "", "stop", 0, 0) for length in lengths)
        group = Group(Prompt(Question(f"q{index}", "", None, {}), "", ids(prompt_length)), rollouts)
        scored = ScoredGroup(group, (0.0,) * 3, {}, (None,) * 3, (0, 1, 2), 0.0, {})
        result.append(TrainingGroup(scored, advantages))
    return tuple(result)


NUM_SEQUENCES = sum(len(lengths) for _, lengths, _ in SHAPES)
NUM_TOKENS = sum(sum(lengths) for _, lengths, _ in SHAPES)


def noise(seed: int, spread: float) -> Tensor:
    """[NUM_SEQUENCES, MAX_COMPLETION_TOKENS], one row per completion in the order of the groups."""
    return spread * torch.randn(NUM_SEQUENCES, MAX_COMPLETION_TOKENS, generator=torch.Generator().manual_seed(seed))


def rows_of(micro: MicroBatch, values_BT: Tensor) -> Tensor:
    """The entries [T] of a [NUM_SEQUENCES, MAX_COMPLETION_TOKENS] table that belong to the micro-batch's tokens."""
    return torch.cat([values_BT[3 * sequence.group + sequence.rollout, :length]
                      for sequence, length in zip(micro.sequences, micro.sequence_lengths, strict=True)])


def score(micro: MicroBatch, entropy_grad: bool) -> tuple[Tensor, Tensor]:
    llama = policy().get_base_model()
    scored = token_logprobs(
        hidden_states(llama, micro.rows), llama.lm_head, micro.rows.targets_N, chunk_tokens=8, temperature=TEMPERATURE,
        entropy_grad=entropy_grad)
    return scored.logprobs_N, scored.entropies_N


def micro_batches(aggregation: Aggregation) -> list[MicroBatch]:
    layout = layout_of(policy().get_base_model())
    plan = plan_micro_batches(groups(), max_tokens=25, layout=layout)
    assert len(plan) > 2
    return [
        build_micro_batch(
            groups(), planned.sequences, Denominators(NUM_TOKENS, NUM_SEQUENCES, MAX_COMPLETION_TOKENS),
            pad_token_id=PAD, aggregation=aggregation, layout=layout)
        for planned in plan]


@functools.cache
def detached_table() -> tuple[Tensor, Tensor]:
    """The policy's own log-probabilities and entropies, as tables [NUM_SEQUENCES, MAX_COMPLETION_TOKENS]."""
    logprobs_BT, entropies_BT = (torch.zeros(NUM_SEQUENCES, MAX_COMPLETION_TOKENS) for _ in range(2))
    with torch.no_grad():
        for micro in micro_batches("token"):
            for values, table in zip(score(micro, entropy_grad=False), (logprobs_BT, entropies_BT), strict=True):
                for sequence, row in zip(micro.sequences, values.split(list(micro.sequence_lengths)), strict=True):
                    table[3 * sequence.group + sequence.rollout, : len(row)] = row
    return logprobs_BT, entropies_BT


def flat_gradient(model: PeftModel) -> Tensor:
    """Of the trained adapter, in the order of its parameters."""
    parameters = [parameter for name, parameter in model.named_parameters() if "lora_" in name and "default" in name]
    assert len(parameters) == 2 * 7 * 2
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def our_loss_and_gradient(
    settings: dict[str, Any], name: str, aggregation: Aggregation
) -> tuple[float, Tensor, Tensor]:
    policy().zero_grad()
    logprobs_BT, entropies_BT = detached_table()
    lengths_B = torch.tensor([length for _, lengths, _ in SHAPES for length in lengths])
    is_token_BT = torch.arange(MAX_COMPLETION_TOKENS) < lengths_B[:, None]
    min_entropy = entropy_threshold(entropies_BT[is_token_BT], settings.get("top_entropy_quantile", 1.0))
    clip_high = settings.get("epsilon_high", 0.28) - (1.0 if name == "cispo" else 0.0)
    section = LossSection.model_validate({
        "name": name, "clip_low": settings.get("epsilon", 0.2), "clip_high": clip_high,
        "kl_weight": settings.get("beta", 0.0), "entropy_bonus": settings.get("entropy_coef", 0.0)})
    total, sums_K = 0.0, torch.zeros(len(STATISTICS))
    for micro in micro_batches(aggregation):
        logprobs_T, entropies_T = score(micro, entropy_grad="entropy_coef" in settings)
        tokens = LossTokens(
            logprobs_T=logprobs_T, old_logprobs_T=rows_of(micro, logprobs_BT + noise(1, 0.3)),
            sampler_logprobs_T=micro.sampler_logprobs_T, advantages_T=micro.advantages_T, entropies_T=entropies_T,
            weights_T=micro.weights_T, sequence_ids_T=micro.sequence_ids_T, num_sequences=micro.num_sequences,
            num_loss_tokens=NUM_TOKENS, ref_logprobs_T=rows_of(micro, logprobs_BT + noise(2, 0.3)),
            min_entropy=min_entropy)
        result = policy_loss(tokens, section)
        result.loss.backward()
        total += float(result.loss.detach())
        sums_K += result.sums_K
    return total, flat_gradient(policy()), sums_K


def trl_loss_and_gradient(settings: dict[str, Any], output_dir: Path) -> tuple[float, Tensor]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model = make_policy()
    arguments = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0, **settings}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        processing_class=tokenizer(),
        train_dataset=Dataset.from_list([{"prompt": "ab"}] * NUM_SEQUENCES),
        args=GRPOConfig(
            output_dir=str(output_dir),
            per_device_train_batch_size=NUM_SEQUENCES,
            num_generations=3,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            temperature=TEMPERATURE,
            max_completion_length=MAX_COMPLETION_TOKENS,
            **arguments))
    # The training loop sets this one; a loss on its own is one accumulation step.
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    loss = trainer._compute_loss(trainer.model, trl_inputs())
    loss.backward()
    return float(loss.detach()), flat_gradient(model)


def trl_inputs() -> dict[str, Tensor]:
    """The batch as TRL's trainer has it after sampling and scoring."""
    prompts = [group.group.prompt.token_ids for group in groups() for _ in group.advantages]
    completions = [rollout.token_ids for group in groups() for rollout in group.group.rollouts]
    width = max(map(len, prompts))
    logprobs_BT, _ = detached_table()
    return {
        "prompt_ids": torch.tensor([[PAD] * (width - len(prompt)) + list(prompt) for prompt in prompts]),
        "prompt_mask": torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
        "completion_ids": torch.tensor([list(ids) + [PAD] * (MAX_COMPLETION_TOKENS - len(ids)) for ids in completions]),
        "completion_mask": torch.tensor(
            [[1] * len(ids) + [0] * (MAX_COMPLETION_TOKENS - len(ids)) for ids in completions]),
        "advantages": torch.tensor([advantage for group in groups() for advantage in group.advantages]),
        "old_per_token_logps": logprobs_BT + noise(1, 0.3),
        "ref_per_token_logps": logprobs_BT + noise(2, 0.3),
        "num_items_in_batch": torch.tensor(NUM_TOKENS),
    }


@pytest.mark.parametrize("case", list(CASES))
def test_loss_and_gradients_equal_those_of_trl(case: str, tmp_path: Path) -> None:
    settings, name, aggregation = CASES[case]
    our_loss, our_gradient, sums_K = our_loss_and_gradient(settings, name, aggregation)
    trl_loss, trl_gradient = trl_loss_and_gradient(settings, tmp_path)
    assert (
        sums_K[STATISTICS.index("clip_high")] > 0
    ), "no ratio was clipped above: the comparison would not see the clip"
    assert trl_gradient.norm() > 1e-3
    assert abs(our_loss - trl_loss) <= 1e-5 * abs(trl_loss)
    assert float((our_gradient - trl_gradient).norm() / trl_gradient.norm()) <= 1e-5


# Fields of TRL's GRPOConfig that have no answer: what belongs to its own machinery (data loading, logging details,
# hardware switches, other objectives, agents, the hub), and is asked for by hardly anyone who moves a run.
LEFT_OUT = """
    accelerator_config auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16_full_eval
    cache_implementation dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context
    dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor
    ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph ddp_timeout
    debug disable_tqdm do_eval do_predict do_train ds3_gather_for_generation enable_jit_checkpoint
    entropy_coef_delta entropy_coef_max entropy_coef_min entropy_target eval_accumulation_steps eval_delay
    eval_do_concat_batches eval_use_gather_object fp16_full_eval fsdp_config full_determinism
    gradient_checkpointing_kwargs greater_is_better hub_always_push hub_private_repo hub_revision hub_strategy
    hub_token ignore_data_skip include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor
    length_column_name liger_kernel_config local_rank log_completions_hub_repo log_level log_level_replica
    log_multimodal log_on_each_node log_unique_prompts logging_nan_inf_filter logging_strategy lr_scheduler_kwargs
    max_tool_calling_iterations neftune_noise_alpha num_completions_to_print optim_args optim_target_modules
    pad_to_multiple_of parallelism_config prediction_loss_only restore_callback_states_from_checkpoint
    sapo_temperature_neg sapo_temperature_pos save_on_each_node skip_memory_metrics tf32 torch_compile_backend
    torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id trackio_static_space_id
    train_sampling_strategy transformers_continuous_batching_config use_cache use_cpu
    use_transformers_continuous_batching use_transformers_paged vespo_k_neg vespo_k_pos vespo_lambda_neg
    vespo_lambda_pos
    """


@pytest.mark.slow
def test_every_field_of_trls_configuration_has_an_answer_or_is_left_out_by_name() -> None:
    import trl

    fields = {field.name for field in dataclasses.fields(trl.GRPOConfig)}
    known = {name.theirs for name in TRL}
    assert fields - known == set(LEFT_OUT.split())
    peft = {"r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "modules_to_save"}
    elsewhere = {field.name for config in (trl.ModelConfig, trl.ScriptArguments)
                 for field in dataclasses.fields(config)}
    of_earlier_versions = {"max_prompt_length", "warmup_ratio", "torch_dtype", "overwrite_output_dir"}
    assert known - fields - elsewhere - peft - of_earlier_versions == {"reward_funcs"}
