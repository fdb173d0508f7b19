"""TRL's SFTTrainer behind our configuration: tokenised rows in, an adapted policy out. The only module that calls TRL's
trainer.

Of TRL are used: packing, the batch, the loss and the loop around the optimiser. Not used are its templates and its
tokenising: a row comes with its ids and a mask of what carries loss. The learning rate is that of a training run
(rl/optimizer.py). trl is imported when a trainer is made, since its import takes seconds and it is an option of the
installation.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from rewards.errors import named
from rl.errors import ConfigError
from rl.optimizer import learning_rate, make_optimizer
from rl.policy.policy import Policy, resolve_dtype
from rl.ranks import LONGEST_WAIT
from rl.supervised.config import WarmupConfig, WarmupOptimSection
from rl.supervised.distillation import attach_teacher
from rl.supervised.solutions import SolutionRow

NEVER = 1 << 40
"""Steps between checkpoints where there shall be none."""
OF_ALL_WARMUPS: dict[str, Any] = {
    "fp16": False, "completion_only_loss": True, "gradient_checkpointing": False, "logging_steps": 1,
    "logging_nan_inf_filter": False, "eval_strategy": "no", "report_to": "none", "disable_tqdm": True,
    "save_strategy": "steps", "dataloader_pin_memory": False, "dataloader_drop_last": False,
    "ddp_find_unused_parameters": False, "ddp_timeout": int(LONGEST_WAIT.total_seconds())}
"""What TRL would decide by itself otherwise."""


def trainer_arguments(config: WarmupConfig, output_dir: Path) -> Any:
    """TRL's SFTConfig for the configuration; its `device` is where the policy belongs.

    Raises ConfigError where the rows of an update do not divide among the processes, or one has several GPUs."""
    from trl import SFTConfig

    optim = config.optim
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # Full parameters are kept in float32 and computed in the policy's dtype, as in training (rl/policy/forward.py).
    dtype = resolve_dtype(config.model.dtype, torch.device("cpu" if on_cpu else "cuda"))
    # TRL asks a mixture of experts for its balancing loss, which distillation's forward does not give
    # (rl/supervised/distillation.py).
    balancing = None if config.distillation is None else 0.0
    arguments = SFTConfig(
        output_dir=str(output_dir), seed=config.seed, data_seed=config.seed, use_cpu=on_cpu,
        bf16=dtype == torch.bfloat16 and not config.lora.enabled, max_steps=config.steps or -1,
        num_train_epochs=config.epochs, per_device_train_batch_size=optim.micro_batch_rows,
        max_grad_norm=optim.max_grad_norm, learning_rate=optim.lr, weight_decay=optim.weight_decay,
        packing=config.packing, router_aux_loss_coef=balancing, save_steps=config.checkpoint.every or NEVER,
        save_total_limit=config.checkpoint.keep, **OF_ALL_WARMUPS)
    arguments.gradient_accumulation_steps = _accumulation_steps(optim, arguments.world_size)
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"{arguments.n_gpu} GPUs are visible to one process, which uses one",
            remedy="accelerate launch --multi_gpu rl/warmup.py ..., or CUDA_VISIBLE_DEVICES=0")
    return arguments


def _accumulation_steps(optim: WarmupOptimSection, num_ranks: int) -> int:
    """Micro-batches of each process per update. Raises ConfigError where they do not make up optim.batch_rows."""
    per_pass = optim.micro_batch_rows * num_ranks
    if optim.batch_rows % per_pass:
        raise ConfigError(
            f"{optim.batch_rows} rows per update are no multiple of "
            f"{named('optim.micro_batch_rows', optim.micro_batch_rows)} x {num_ranks} process(es)",
            where=named("optim.batch_rows"),
            remedy=(
                f"{named('optim.batch_rows', -(-optim.batch_rows // per_pass) * per_pass)}, or fewer micro_batch_rows"))
    return optim.batch_rows // per_pass


def make_trainer(
    config: WarmupConfig,
    policy: Policy,
    rows: Sequence[SolutionRow],
    max_tokens: int,
    arguments: Any,
    callbacks: Sequence[Any] = (),
    teacher: Policy | None = None,
) -> Any:
    """An SFTTrainer over the rows, ready for `train()`. It changes the forward of policy.model: copies for sampling are
    made before.

    teacher: of config.distillation, where there is one."""
    import datasets
    from transformers import PrinterCallback

    # the length of packed rows; longer ones are not here any more
    arguments.max_length = max_tokens if config.packing else None
    # it knows only flash attention's packing; ours is tested
    logging.getLogger("trl.trainer.sft_trainer").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    base: Any = policy.causal_lm
    is_in_4_bits, base.is_loaded_in_4bit = getattr(base, "is_loaded_in_4bit", False), False
    # Where it sees that, TRL makes the adapter bfloat16; ours trains in float32 over any base.
    trainer = _trainer_class(config)(
        model=policy.model, args=arguments, train_dataset=as_dataset(rows), processing_class=policy.tokenizer,
        callbacks=list(callbacks),
        optimizers=(make_optimizer(policy.trainable_parameters().values(), config.optim), None))
    base.is_loaded_in_4bit = is_in_4_bits
    trainer.remove_callback(PrinterCallback)
    if config.distillation is not None:
        assert teacher is not None
        attach_teacher(policy.causal_lm, teacher.causal_lm, config.distillation)
    return trainer


def _trainer_class(config: WarmupConfig) -> Any:
    """TRL's trainer with our learning rate and without its telemetry."""
    from trl import SFTTrainer

    class WarmupTrainer(SFTTrainer):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            self.lr_scheduler: Any = LambdaLR(
                optimizer or self.optimizer,
                lambda step: learning_rate(config.optim, step, num_training_steps) / config.optim.lr)
            return self.lr_scheduler

        def _send_telemetry(self) -> None:
            """TRL reports the kind of model and data to the hub. We do not."""

    return WarmupTrainer


def as_dataset(rows: Sequence[SolutionRow]) -> Any:
    """The rows as TRL takes them when they are tokenised already: ids, and 1 where a token carries loss."""
    from datasets import Dataset

    return Dataset.from_dict({
        "input_ids": [[*row.prompt.token_ids, *row.completion_ids] for row in rows],
        "completion_mask": [[0] * len(row.prompt.token_ids) + [1] * len(row.completion_ids) for row in rows]})
