"""Rejection sampling: `python -m rl.reject [--config FILE] [key=value ...] [--resume [RUN]]`.

From any policy and a file of questions to a file of solutions that it wrote itself and a reward approved, for a warm-up
(rl/warmup.py) and then reinforcement learning. No class is defined here, because the script runs as `__main__`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT = Path("configs/reject_tiny.yaml")
OPTIONS = (
    (
        "--config FILE",
        "YAML file with any of the keys below; what it leaves out has its default. Without it configs/reject_tiny.yaml",
    ),
    (
        "KEY=VALUE ...",
        (
            "set a key, after the file: sampling.samples=16, data=questions.jsonl, generator=vllm, keep.per_question=2,"
            " rewards.0.use=rewards.majority:majority_vote, 'mix=[{path: other.jsonl, ratio: 0.5}]'")),
    (
        "--dry-run",
        (
            "check everything but the model, show the resolved configuration, the first prompt and the sizes; sample "
            "nothing")),
    ("--print-config", "print the resolved configuration as YAML and stop"),
    (
        "--resume [RUN]",
        (
            "go on with a run that was stopped, or choose again from its samples by other keep and mix: its folder, its"
            " name under runs/, or latest")),
    ("--help", "this page"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for what the user can mend (OTHERHALF_TRACEBACK=1 shows the traceback), 130 after
    Ctrl-C twice."""
    from rl.errors import report_errors

    return report_errors(lambda: _main(sys.argv[1:] if arguments is None else list(arguments)))


def _main(arguments: Sequence[str]) -> int:
    from rl.configuration.command_line import parse_run
    from rl.rejection.config import RejectConfig

    command = parse_run(arguments, RejectConfig, DEFAULT)
    if command.wants_help:
        from rl.configuration.help import render_help

        print(
            render_help(
                "python -m rl.reject",
                model=RejectConfig,
                options=OPTIONS,
                purpose=(
                    "Samples solutions from a policy and keeps those that a reward approves, as a file for a warm-up."
                )))
        return 0
    if command.print_config:
        from rl.configuration.loading import to_yaml

        print(to_yaml(command.config), end="")
        return 0
    from rl.rejection.run import describe, run

    if command.dry_run:
        print(describe(command.config))
        return 0
    return run(command.config, command.resume)


if __name__ == "__main__":
    sys.exit(main())
