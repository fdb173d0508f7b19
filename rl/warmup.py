"""Supervised warm-up: `accelerate launch rl/warmup.py [--config FILE] [key=value ...]`, also `python -m rl.warmup`.

From a base model that cannot follow a format, or lacks an ability, and a file of solutions, to the policy that
reinforcement learning starts from. No class is defined here, because the script runs as `__main__`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT = Path("configs/warmup_tiny.yaml")
OPTIONS = (
    (
        "--config FILE",
        "YAML file with any of the keys below; what it leaves out has its default. Without it configs/warmup_tiny.yaml",
    ),
    (
        "KEY=VALUE ...",
        "set a key, after the file: optim.lr=1e-5, data=solutions.jsonl, lora.enabled=false, prompt=boxed, merge=true"),
    ("--dry-run", "check everything, show the resolved configuration and the first row; train nothing"),
    ("--print-config", "print the resolved configuration as YAML and stop"),
    ("--resume", "go on with the warm-up in run_dir from its newest checkpoint"),
    ("--help", "this page"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for what the user can mend (OTHERHALF_TRACEBACK=1 shows the traceback), 130 after
    Ctrl-C twice."""
    from rl.errors import report_errors

    return report_errors(lambda: _main(sys.argv[1:] if arguments is None else list(arguments)))


def _main(arguments: Sequence[str]) -> int:
    from rl.configuration.command_line import parse_stage
    from rl.supervised.config import WarmupConfig

    command = parse_stage(arguments, WarmupConfig, DEFAULT)
    if command.wants_help:
        from rl.configuration.help import render_help

        print(
            render_help(
                "accelerate launch rl/warmup.py",
                model=WarmupConfig,
                options=OPTIONS,
                purpose=(
                    "Trains a language model on solutions, so that reinforcement learning has something to begin with."
                )))
        return 0
    if command.print_config:
        from rl.configuration.loading import to_yaml

        print(to_yaml(command.config), end="")
        return 0
    from rl.supervised.trl_version import check_trl

    check_trl()  # before the imports that take seconds
    from rl.supervised.run import describe, run_warmup

    if command.dry_run:
        print(describe(command.config))
        return 0
    return run_warmup(command.config, command.resume)


if __name__ == "__main__":
    sys.exit(main())
