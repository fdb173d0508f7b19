"""Which errors of an evaluation are the user's to mend, and how they are told: in the words of the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rl.errors import report_errors, user_errors

# Configuration keys in messages of rl -> the options of the evaluation's commands.
_OPTIONS = {
    "model.path": "--model", "model.adapter": "--adapter", "model.revision": "--revision", "model.dtype": "--dtype",
    "prompt.template": "--prompt", "prompt.chat_template": "--chat-template", "generator.backend=": "--generator ",
    "generator.backend": "--generator", "generator.max_sequences": "--max-sequences",
    "sampling.max_completion_tokens": "--max-tokens",
    "interrupted before the step's end; what was saved before is whole": "interrupted; the same command goes on"}


def evaluation_errors() -> tuple[type[BaseException], ...]:
    """The classes, of the modules loaded so far (see rl.errors.user_errors)."""
    names = {"eval.tasks": "EvaluationError", "eval.records": "RecordsError", "eval.benchmarks": "BenchmarkError",
             "eval.comparison": "ComparisonError"}
    return (
        *(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules),
        *user_errors())


def command(main: Callable[[], int]) -> int:
    """Run it; what the user can mend becomes one message without a traceback, in the words of the command line, and an
    exit code."""
    return report_errors(main, evaluation_errors, in_options)


def in_options(message: str) -> str:
    """The message with the options' names in place of configuration keys."""
    for key, option in _OPTIONS.items():
        message = message.replace(key, option)
    return message
