"""Our configuration -> TRL's GRPOTrainer with the same settings, in float32 on the CPU, which reports after every step.

Where TRL's defaults would cost it time that ours does not spend, they are off: gradient checkpointing, logging, saving,
progress bars. Its sampler is transformers' generate; one forward and backward takes `micro_batch` sequences. A further
setting that both sides must share is added in `common_arguments`, or in `_arguments` where benchmarks/gpu_trl.py leaves
it to TRL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rewards.contract import GroupScore
from rewards.loading import load
from rl.config import RunConfig
from rl.paths import resolve_path
from rl.records import Prompt


@dataclass(frozen=True, slots=True)
class TrlStep:
    """One finished step. number: from 1. started_s: on time.perf_counter. seconds: from before sampling until after the
    optimiser and the zeroing of gradients. completion_tokens: sampled, stop tokens included. model: TRL's trained
    model."""

    number: int
    started_s: float
    seconds: float
    completion_tokens: int
    model: PeftModel


AfterStep = Callable[[TrlStep], bool]
"""Called between two steps, off TRL's clock; True ends the training."""


def train(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], *, steps: int, micro_batch: int,
    output_dir: Path, after_step: AfterStep,
) -> None:
    """Train for `steps` steps on the prompts in their order, config.sampling.questions_per_step of them in each.

    micro_batch: sequences per forward pass; it must divide the number of sequences per step.
    Raises: ValueError where the two sides would not do the same work.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    _check_same_work(config, tokenizer, prompts)
    token_counts: list[int] = []
    trainer = GRPOTrainer(
        model=str(resolve_path(config.model.path)),
        args=GRPOConfig(**_arguments(config, steps, micro_batch, output_dir)),
        reward_funcs=_reward_for_trl(config, token_counts),
        train_dataset=Dataset.from_list(
            [{"prompt": prompt.text, "answer": prompt.question.answer} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=config.lora.rank, lora_alpha=config.lora.alpha, lora_dropout=config.lora.dropout,
            target_modules=config.lora.targets, task_type="CAUSAL_LM", bias="none"),
        callbacks=[_StepClock(after_step, token_counts)])
    dtypes = {parameter.dtype for parameter in trainer.model.parameters()}
    if dtypes != {torch.float32}:
        raise ValueError(
            f"TRL's model has parameters of {sorted(map(str, dtypes))}; expected float32 alone, as on our side")
    trainer.train()


def num_trainable(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def common_arguments(config: RunConfig, steps: int, micro_batch: int, output_dir: Path) -> dict[str, Any]:
    """GRPOConfig's, for any precision and sampler. micro_batch: sequences per forward pass. Raises ValueError where it
    does not divide a step's."""
    sampling = config.sampling
    num_sequences = sampling.questions_per_step * sampling.group_size
    if num_sequences % micro_batch:
        raise ValueError(f"{micro_batch} sequences per forward pass do not divide the {num_sequences} of a step")
    return {
        "output_dir": str(output_dir),
        "max_steps": steps,
        "seed": config.seed,
        "shuffle_dataset": False,
        # One optimiser step per sampled batch.
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": num_sequences // micro_batch,
        "num_generations": sampling.group_size,
        "temperature": sampling.temperature,
        "max_completion_length": sampling.max_completion_tokens,
        # "dapo" is our clip with the aggregation "token"; tests/rl/test_trl_parity.py compares their gradients.
        "loss_type": "dapo",
        "beta": 0.0,
        "learning_rate": config.optim.lr,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_grad_norm": config.optim.max_grad_norm,
        "report_to": [],
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True}


def _arguments(config: RunConfig, steps: int, micro_batch: int, output_dir: Path) -> dict[str, Any]:
    optim = config.optim
    return {
        **common_arguments(config, steps, micro_batch, output_dir), "model_init_kwargs": {"dtype": "float32"},
        "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "use_vllm": False,
        "top_p": config.sampling.top_p, "top_k": config.sampling.top_k, "epsilon": config.loss.clip_low,
        "epsilon_high": config.loss.clip_high, "scale_rewards": "group", "num_iterations": 1,
        "weight_decay": optim.weight_decay, "adam_beta1": optim.betas[0], "adam_beta2": optim.betas[1],
        "adam_epsilon": optim.eps, "dataloader_num_workers": 0,
    }


def _check_same_work(config: RunConfig, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> None:
    loss, optim = config.loss, config.optim
    found = (
        loss.name, loss.aggregation, loss.kl_weight, loss.entropy_bonus, loss.top_entropy_share, loss.correction.mode,
        config.advantage.name, config.advantage.std, config.advantage.eps, config.advantage.cap, optim.schedule,
        optim.warmup_steps, optim.epochs, optim.minibatches, config.selection.low, config.selection.high,
        len(config.rewards))
    expected = (
        "clip", "token", 0.0, 0.0, 1.0, "none", "grpo", "sample", 1e-4, None, "constant", 0, 1, 1, None, None, 1)
    if found != expected:
        raise ValueError(f"the configuration asks for {found}, the comparison with TRL is written for {expected}")
    for prompt in prompts:
        if tuple(tokenizer(prompt.text)["input_ids"]) != prompt.token_ids:
            raise ValueError(
                f"question {prompt.question.id!r}: TRL would tokenize its prompt differently from "
                "rl/questions/prompting.py")


def _reward_for_trl(config: RunConfig, token_counts: list[int]) -> Callable[..., list[float | None]]:
    """The configuration's own reward function, called for each group of TRL's flat batch; appends to token_counts per
    batch."""
    group_size, section = config.sampling.group_size, config.rewards[0]
    function = load(section.use)

    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], answer: list[str],
        **columns: object,
    ) -> list[float | None]:
        token_counts.append(sum(map(len, completion_ids)))
        values: list[float | None] = []
        for start in range(0, len(completions), group_size):
            group = slice(start, start + group_size)
            score = function(
                question=prompts[start], completions=completions[group], answer=answer[start], **section.arguments)
            values += score.scores if isinstance(score, GroupScore) else score
        return [None if value is None else section.weight * value for value in values]

    return reward


class _StepClock(TrainerCallback):
    """Times each step and hands it on, between two steps."""

    def __init__(self, after_step: AfterStep, token_counts: Sequence[int]) -> None:
        self._after_step = after_step
        self._token_counts = token_counts
        self._started_s = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self._started_s = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        seconds = time.perf_counter() - self._started_s
        step = TrlStep(state.global_step, self._started_s, seconds, self._token_counts[-1], others["model"])
        if self._after_step(step):
            control.should_training_stop = True
