"""The step of benchmarks/gpu.py with TRL's GRPOTrainer: vLLM in colocate mode and bfloat16 on a GPU, transformers on a
CPU.

The settings are those of our side: the same checkpoint, questions, stop tokens, LoRA, learning rate, one optimiser step
per sampled batch. TRL's own defaults that cost time (logging, saving, progress bars) are off. `benchmarks/trl_side.py`
is the same for float32 on a CPU.
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


def measure(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    steps: int,
    on_gpu: bool,
    checkpointing: bool,
    micro_batch: int,
    output_dir: Path,
) -> list[Step]:
    """`steps` steps on the prompts in their order; micro_batch: sequences per forward pass."""
    sampling, token_counts = config.sampling, list[int]()
    num_sequences = sampling.questions_per_step * sampling.group_size
    assert num_sequences % micro_batch == 0

    def reward(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any
    ) -> list[float]:
        token_counts.append(sum(map(len, completion_ids)))
        return for_trl(prompts, completions)

    stops = sorted({*sampling.stop_token_ids, int(tokenizer.eos_token_id)})
    if on_gpu:
        sampler: dict[str, Any] = {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": config.generator.memory_share or 0.35,
            "vllm_max_model_length": config.data.max_prompt_tokens + sampling.max_completion_tokens,
            "generation_kwargs": {"stop_token_ids": stops}}
    else:
        sampler = {"use_vllm": False, "use_cpu": True, "generation_kwargs": {"eos_token_id": stops}}
    clock = _Clock(token_counts)
    trainer = GRPOTrainer(
        model=config.model.path,
        args=GRPOConfig(
            output_dir=str(output_dir),
            max_steps=steps,
            seed=config.seed,
            shuffle_dataset=False,
            bf16=on_gpu,
            model_init_kwargs={"dtype": "bfloat16" if on_gpu else "float32"},
            gradient_checkpointing=checkpointing,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=num_sequences // micro_batch,
            num_generations=sampling.group_size,
            temperature=sampling.temperature,
            max_completion_length=sampling.max_completion_tokens,
            loss_type="dapo",
            beta=0.0,
            learning_rate=config.optim.lr,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=config.optim.max_grad_norm,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            **sampler),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": prompt.text} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=config.lora.targets, task_type="CAUSAL_LM",
            bias="none"),
        callbacks=[clock])
    trainer.train()
    return clock.steps
