"""The main command: `accelerate launch rl/train.py [--config FILE] [key=value ...]`, also `python -m rl.train`.

The composition root: parses, builds the parts, runs. No class is defined here, because the script runs as `__main__`, a
module other than `rl.train`. torch is imported only once there is something to train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rl.config import RunConfig
    from rl.evaluation.benchmarks import BuildBenchmarks


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for what the user can mend (one message, no traceback; OTHERHALF_TRACEBACK=1 shows
    it), 130 after Ctrl-C twice. A run that a signal or the watchdog stopped has saved what it had: 0."""
    from rl.errors import report_errors

    return report_errors(lambda: _main(sys.argv[1:] if arguments is None else list(arguments)))


def _main(arguments: Sequence[str]) -> int:
    from rl.configuration.command_line import parse

    command = parse(arguments)
    if command.wants_help:
        from rl.configuration.help import render_help

        print(render_help("accelerate launch rl/train.py"))
        return 0
    if command.print_config:
        from rl.configuration.loading import to_yaml

        print(to_yaml(command.config), end="")
        return 0
    build_benchmarks = _benchmarks_builder(command.config)
    if command.dry_run:
        from rl.dry_run import describe

        print(describe(command.config, build_benchmarks))
        return 0
    from rl.run import run

    return run(command.config, command.resume, build_benchmarks)


def _benchmarks_builder(config: RunConfig) -> BuildBenchmarks | None:
    """The one place where rl knows of eval: the composition root stands above both."""
    if not config.evaluation.benchmarks:
        return None
    from eval.live_benchmarks import build_live_tasks

    return build_live_tasks


if __name__ == "__main__":
    sys.exit(main())
