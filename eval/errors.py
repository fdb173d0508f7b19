"""Which errors of an evaluation are the user's to mend, and how they are told: in the words of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from rl.errors import describe_error, exit_code, user_errors

# Configuration keys in messages of rl -> the options of the evaluation's commands.
_OPTIONS = {"model.path": "--model", "model.adapter": "--adapter", "model.revision": "--revision", "model.dtype": "--dtype",
            "prompt.template": "--prompt", "prompt.chat_template": "--chat-template", "generator.backend=": "--generator ",
            "generator.backend": "--generator", "generator.max_sequences": "--max-sequences",
            "sampling.max_completion_tokens": "--max-tokens"}


def evaluation_errors() -> tuple[type[BaseException], ...]:
    """The classes, of the modules loaded so far (see rl.errors.user_errors)."""
    names = {"eval.tasks": "EvaluationError", "eval.records": "RecordsError", "eval.benchmarks": "BenchmarkError",
             "eval.comparison": "ComparisonError"}
    return (*(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules), *user_errors())


def command(main: Callable[[], int]) -> int:
    """Run it; what the user can mend becomes one message without a traceback (OTHERHALF_TRACEBACK=1 shows it) and an exit code."""
    try:
        return main()
    except BaseException as error:
        if os.environ.get("OTHERHALF_TRACEBACK") or not isinstance(error, evaluation_errors()):
            raise
        print(f"error: {in_options(describe_error(error))}", file=sys.stderr)
        return exit_code(error)


def in_options(message: str) -> str:
    """The message with the options' names in place of configuration keys."""
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message
