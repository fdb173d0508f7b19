"""Reinforcement learning, the main command: `accelerate launch rl/train.py [--config FILE] [key=value ...]`, also
`python -m rl.train`.

A composition root: it alone hands a run what stands above rl. No class is defined here, because the script runs as
`__main__`, a module other than `rl.train`. torch is imported only once there is something to train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rl.config import RunConfig
from rl.configuration.command_line import run_command
from rl.configuration.help import CommandLine

if TYPE_CHECKING:
    from rl.evaluation.benchmarks import BuildBenchmarks

COMMAND = CommandLine(
    "accelerate launch rl/train.py",
    "Trains a language model on a file of questions, with gold answers or without any.",
    RunConfig,
    Path("configs/quickstart.yaml"),
    examples=(
        "optim.lr=1e-6, data.columns.answer=null, sampling.stop_token_ids=[1,2], rewards.0.weight=0.5, "
        "'rewards=[{use: my_rewards.py:brevity, weight: 0.2}]', model=FOLDER (for model.path)"),
    dry_run=(
        "check everything, show the resolved configuration, one prompt, the sizes of a step and the memory it needs; "
        "train nothing"),
    plan=(
        "with --dry-run: whether the run fits into a card of so many GB, and the nearest settings that do; needs no "
        "GPU, no questions and no weights: a config.json, or a well-known model's name"),
    resume="continue a run from its newest checkpoint: its folder, its name under runs/, or latest")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command). A run that a signal or the watchdog stopped has saved what it had: 0."""
    return run_command(COMMAND, arguments, dry_run=_dry_run, run=_run, plan=_plan)


def _dry_run(config: RunConfig) -> None:
    from rl.dry_run import describe

    describe(config, benchmarks_builder(config))


def _plan(config: RunConfig, gpu_memory_gb: float) -> None:
    from rl.dry_run import plan

    plan(config, gpu_memory_gb)


def _run(config: RunConfig, resume: Path | None) -> int:
    from rl.run import run

    run(config, resume, benchmarks_builder(config))
    return 0


def benchmarks_builder(config: RunConfig) -> BuildBenchmarks | None:
    """The one place where training knows of eval."""
    if not config.evaluation.benchmarks:
        return None
    from eval.live_benchmarks import build_live_tasks

    return build_live_tasks


if __name__ == "__main__":
    sys.exit(main())
