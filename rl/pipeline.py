"""Several stages as one: `accelerate launch rl/pipeline.py --config FILE [key=value ...]`, also `python -m
rl.pipeline`.

Supervised warm-up, reinforcement learning, rejection sampling and evaluation in any order, each from the result of an
earlier one. The same command goes on where it was cut off and skips what is done and unchanged. No class is defined
here, because the script runs as `__main__`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

DEFAULT = Path("configs/tiny_r1_recipe.yaml")
OPTIONS = (
    ("--config FILE", f"YAML file with any of the keys below. Without it {DEFAULT}"),
    (
        "KEY=VALUE ...",
        "set a key, after the file: run_dir=runs/other, seed=1, repeat.rounds=3, stages.1.set.optim.lr=1e-4"),
    ("--dry-run", "check every stage's configuration, show the order, what each takes, and its command; run nothing"),
    ("--print-config", "print the resolved configuration as YAML and stop"),
    ("--help", "this page"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for what the user can mend, a stage's own where one failed, 130 after Ctrl-C
    twice."""
    from rl.errors import report_errors

    return report_errors(lambda: _main(sys.argv[1:] if arguments is None else list(arguments)))


def _main(arguments: Sequence[str]) -> int:
    from rl.configuration.command_line import parse_stage
    from rl.errors import ConfigError
    from rl.stages.config import PipelineConfig

    command = parse_stage(arguments, PipelineConfig, DEFAULT)
    if command.wants_help:
        from rl.configuration.help import render_help

        print(
            render_help(
                "accelerate launch rl/pipeline.py", model=PipelineConfig, options=OPTIONS,
                purpose="Runs supervised warm-ups, reinforcement learning, rejection sampling and evaluations as one."))
        return 0
    if command.resume:
        raise ConfigError("--resume: the same command without it goes on where the pipeline was cut off")
    if command.print_config:
        from rl.configuration.loading import to_yaml

        print(to_yaml(command.config), end="")
        return 0
    from eval.run import check_words  # the composition root stands above rl and eval
    from rl.stages.run import StageError, check_files, check_pipeline, describe_plan, run_pipeline

    if command.dry_run:
        plan, prepared = check_pipeline(command.config, check_words)
        print(describe_plan(plan, prepared), flush=True)
        check_files(prepared)
        return 0
    try:
        return run_pipeline(command.config, check_words)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
