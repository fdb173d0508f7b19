"""The skeleton of the evaluation's commands: words -> options -> what they ask for, and how is told what a user can
mend: settings are named by their options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from rewards.errors import as_configured
from rl.errors import report_errors

# Settings that messages of rl name -> the options of the evaluation's commands; those of eval name options themselves.
OPTIONS = {
    "model.path": "--model", "model.adapter": "--adapter", "model.revision": "--revision", "model.dtype": "--dtype",
    "model.head_dtype": "--head-dtype", "model.quantization": "--quantization",
    "prompt.template": "--prompt", "prompt.chat_template": "--chat-template",
    "prompt.chat_template_kwargs": "--chat-template-kwargs", "prompt.date": "--date",
    "sampling.stop_strings": "--stop-strings", "sampling.stop_token_ids": "--stop-token-ids",
    "generator.backend": "--generator",
    "generator.max_sequences": "--max-sequences", "sampling.max_completion_tokens": "--max-tokens"}


def run_command(
    parse: Callable[[Sequence[str]], argparse.Namespace], act: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None, own: Mapping[str, str] | None = None,
) -> int:
    """Do what the arguments (None: the process's own) ask for. own: options that messages name -> what this command
    calls them. Returns the exit code: act's, 2 for what the user can
    mend (one message without a traceback, in the words of the command line), 130 after Ctrl-C."""

    def main() -> int:
        return act(parse(sys.argv[1:] if arguments is None else arguments))

    def words(name: str, value: str | None) -> str:
        return as_option((own or {}).get(name, name), value)

    return report_errors(main, words, when_interrupted="interrupted; the same command goes on")


def as_option(name: str, value: str | None) -> str:
    """`--option` or `--option value`; a setting without an option keeps its name."""
    return as_configured(OPTIONS.get(name, name), value)
