"""Literal parts of a supervised warm-up on models/tiny-arith, and its whole runs through the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rl.configuration.loading import load
from rl.policy.policy import Policy
from rl.supervised.config import WarmupConfig
from rl.supervised.inputs import WarmupInputs, read_warmup_inputs
from rl.supervised.run import load_warmup_policy
from rl.supervised.solutions import SolutionRow
from rl.warmup import main
from tests.reference.tiny_run import change_adapter, literal_logprobs
from tests.reference.whole_run import one_thread

# A warm-up of about two seconds.
SMALL = (
    "lora.rank=4", "steps=6", "optim.batch_rows=8", "optim.micro_batch_rows=4", "evaluation.num_questions=16",
    "evaluation.samples=2", "evaluation.every=2", "checkpoint.every=2", "data.limit=64", "data.held_out_rows=8",
    "tracking.progress=lines")


def warm_up(run_dir: Path, *words: str) -> int:
    """`python -m rl.warmup` in this process on one thread, with the settings of SMALL, then `words`; returns the exit
    code."""
    with one_thread():
        return main([*SMALL, f"run_dir={run_dir}", *words])


def warmup_parts(*overrides: str, adapter_scale: float = 0.05) -> tuple[WarmupConfig, WarmupInputs, Policy]:
    """The parts of a small warm-up; a LoRA policy's adapter is not zero, so that it counts."""
    config = load(None, ["evaluation.path=null", "model.dtype=float32", "lora.rank=4", *overrides], WarmupConfig)
    inputs = read_warmup_inputs(config)
    policy = load_warmup_policy(config, inputs, torch.device("cpu"))
    if policy.is_adapter:
        change_adapter(policy, adapter_scale)
    return config, inputs, policy


def literal_losses(policy: Policy, rows: Sequence[SolutionRow]) -> torch.Tensor:
    """- ln pi of every completion token of every row, each row in a forward of its own: [T]."""
    return -torch.cat([literal_logprobs(policy, row.prompt.token_ids, row.completion_ids) for row in rows])
