"""Several stages as one: `accelerate launch rl/pipeline.py --config FILE [key=value ...]`, also `python -m
rl.pipeline`.

Supervised warm-up, reinforcement learning, rejection sampling and evaluation in any order, each from the result of an
earlier one. The same command goes on where it was cut off and skips what is done and unchanged. A composition root: it
alone hands the stages what stands above rl. No class is defined here, because the script runs as `__main__`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rl.configuration.command_line import run_command
from rl.configuration.help import CommandLine
from rl.stages.config import PipelineConfig

COMMAND = CommandLine(
    "accelerate launch rl/pipeline.py",
    "Runs supervised warm-ups, reinforcement learning, rejection sampling and evaluations as one.", PipelineConfig,
    Path("configs/tiny_r1_recipe.yaml"),
    examples="run_dir=runs/other, seed=1, repeat.rounds=3, stages.1.set.optim.lr=1e-4",
    dry_run="check every stage's configuration, show the order, what each takes, and its command; run nothing",
    resume=None,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command), or that of a stage that failed."""
    return run_command(COMMAND, arguments, dry_run=_dry_run, run=_run)


def _dry_run(config: PipelineConfig) -> None:
    from eval.run import check_words
    from rl.stages.kinds import check_files
    from rl.stages.run import check_pipeline, describe_plan

    plan, prepared = check_pipeline(config, check_words)
    print(describe_plan(plan, prepared), flush=True)
    check_files(prepared)


def _run(config: PipelineConfig, resume: Path | None) -> int:
    from eval.run import check_words
    from rl.stages.run import StageError, run_pipeline

    try:
        return run_pipeline(config, check_words)
    except StageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main())
