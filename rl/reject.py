"""Rejection sampling: `python -m rl.reject [--config FILE] [key=value ...] [--resume [RUN]]`.

From any policy and a file of questions to a file of solutions that it wrote itself and a reward approved, for a warm-up
(rl/warmup.py) and then reinforcement learning. No class is defined here, because the script runs as `__main__`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rl.configuration.command_line import run_command
from rl.configuration.help import CommandLine
from rl.rejection.config import RejectConfig

COMMAND = CommandLine(
    "python -m rl.reject",
    "Samples solutions from a policy and keeps those that a reward approves, as a file for a warm-up.",
    RejectConfig,
    Path("configs/reject_tiny.yaml"),
    examples=(
        "sampling.samples=16, data=questions.jsonl, generator=vllm, keep.per_question=2, "
        "rewards.0.use=rewards.majority:majority_vote, 'mix=[{path: other.jsonl, ratio: 0.5}]'"
    ),
    dry_run=(
        "check everything but the model, show the resolved configuration, the first prompt and the sizes; sample "
        "nothing"),
    resume=(
        "go on with a run that was stopped, or choose again from its samples by other keep and mix: its folder, its "
        "name under runs/, or latest"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command)."""
    return run_command(COMMAND, arguments, dry_run=_dry_run, run=_run)


def _dry_run(config: RejectConfig) -> None:
    from rl.rejection.run import describe

    print(describe(config))


def _run(config: RejectConfig, resume: Path | None) -> int:
    from rl.rejection.run import run

    return run(config, resume)


if __name__ == "__main__":
    sys.exit(main())
