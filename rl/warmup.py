"""Supervised warm-up: `accelerate launch rl/warmup.py [--config FILE] [key=value ...]`, also `python -m rl.warmup`.

From a base model that cannot follow a format, or lacks an ability, and a file of solutions, to the policy that
reinforcement learning starts from. No class is defined here, because the script runs as `__main__`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rl.configuration.command_line import run_command
from rl.configuration.help import CommandLine
from rl.supervised.config import WarmupConfig
from rl.supervised.trl_version import check_trl

COMMAND = CommandLine(
    "accelerate launch rl/warmup.py",
    "Trains a language model on solutions, so that reinforcement learning has something to begin with.", WarmupConfig,
    Path("configs/warmup_tiny.yaml"),
    examples="optim.lr=1e-5, data=solutions.jsonl, lora.enabled=false, prompt=boxed, merge=true",
    dry_run="check everything, show the resolved configuration and the first row; train nothing",
    resume="go on with a warm-up from its newest checkpoint: its folder, its name under runs/, or latest",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command)."""
    return run_command(COMMAND, arguments, dry_run=_dry_run, run=_run)


def _dry_run(config: WarmupConfig) -> None:
    check_trl()  # before the import, which takes seconds
    from rl.supervised.run import describe

    print(describe(config))


def _run(config: WarmupConfig, resume: Path | None) -> int:
    check_trl()
    from rl.supervised.run import run_warmup

    return run_warmup(config, resume=resume is not None)


if __name__ == "__main__":
    sys.exit(main())
