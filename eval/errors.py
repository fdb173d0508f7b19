"""How the evaluation's commands tell what a user can mend: settings are named by their options."""

from __future__ import annotations

from collections.abc import Callable

from rewards.errors import as_configured
from rl.errors import report_errors

# Settings that messages of rl name -> the options of the evaluation's commands; those of eval name options themselves.
OPTIONS = {
    "model.path": "--model", "model.adapter": "--adapter", "model.revision": "--revision", "model.dtype": "--dtype",
    "prompt.template": "--prompt", "prompt.chat_template": "--chat-template", "generator.backend": "--generator",
    "generator.max_sequences": "--max-sequences", "sampling.max_completion_tokens": "--max-tokens"}


def command(main: Callable[[], int]) -> int:
    """Run it; what the user can mend becomes one message without a traceback, in the words of the command line, and an
    exit code."""
    return report_errors(main, as_option, when_interrupted="interrupted; the same command goes on")


def as_option(name: str, value: str | None) -> str:
    """`--option` or `--option value`; a setting without an option keeps its name."""
    return as_configured(OPTIONS.get(name, name), value)
