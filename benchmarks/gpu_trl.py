"""The step of benchmarks/gpu.py with TRL's GRPOTrainer: vLLM in colocate mode and bfloat16 on a GPU, transformers on a
CPU.

The settings are those of our side: checkpoint, questions, stop tokens, LoRA, learning rate, one optimiser step per
sampled batch. TRL's own defaults that cost time (logging, saving, progress bars) are off. `benchmarks/trl_side.py`
compares in float32 on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from gpu_reward import for_trl
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig, GRPOTrainer
from trl_side import common_arguments

from rl.config import RunConfig
from rl.records import Prompt


@dataclass(frozen=True, slots=True)
class Step:
    """seconds from before sampling until after the optimiser; completion_tokens sampled."""

    seconds: float
    completion_tokens: int


class _Clock(TrainerCallback):
    def __init__(self, token_counts: list[int]) -> None:
        self.steps: list[Step] = []
        self._token_counts = token_counts
        self._started_s = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self._started_s = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(Step(time.perf_counter() - self._started_s, self._token_counts[-1]))


def grpo_config(
    config: RunConfig, eos_token_id: int, *, steps: int, on_gpu: bool, checkpointing: bool, micro_batch: int,
    output_dir: Path,
) -> GRPOConfig:
    """micro_batch: sequences per forward pass."""
    stops = sorted({*config.sampling.stop_token_ids, eos_token_id})
    if on_gpu:
        sampler: dict[str, Any] = {
            "use_vllm": True, "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": config.generator.memory_share or 0.35,
            "vllm_max_model_length": config.data.max_prompt_tokens + config.sampling.max_completion_tokens,
            "generation_kwargs": {"stop_token_ids": stops}}
    else:
        sampler = {"use_vllm": False, "use_cpu": True, "generation_kwargs": {"eos_token_id": stops}}
    return GRPOConfig(
        **common_arguments(config, steps, micro_batch, output_dir), bf16=on_gpu, gradient_checkpointing=checkpointing,
        model_init_kwargs={"dtype": "bfloat16" if on_gpu else "float32"}, weight_decay=0.0, **sampler)


def measure(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], arguments: GRPOConfig
) -> list[Step]:
    """The steps that the arguments ask for, on the prompts in their order."""
    token_counts: list[int] = []

    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        token_counts.append(sum(map(len, completion_ids)))
        return for_trl(prompts, completions)

    clock = _Clock(token_counts)
    trainer = GRPOTrainer(
        model=config.model.path, args=arguments, reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in prompts]), processing_class=tokenizer,
        peft_config=LoraConfig(
            r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=config.lora.targets, task_type="CAUSAL_LM",
            bias="none"),
        callbacks=[clock])
    trainer.train()
    return clock.steps
