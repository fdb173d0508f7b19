"""Which errors are the user's to mend, and how a command tells them: one message without a traceback, in its own words.
All others are ours and keep their traceback."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from rewards.errors import UserError, Words, as_configured, in_words, named

USER_ERROR, INTERRUPTED = 2, 130  # exit codes; 130 is the shells' own for a command that Ctrl-C ended

INTERRUPTED_STEP = "interrupted before the step's end; what was saved before is whole"


class ConfigError(UserError):
    """The configuration is not usable: each problem with its key, the value seen and what was expected."""


class DataError(UserError):
    """Questions or solutions cannot be used: the file, line and field, and the remedy."""


class SamplerError(UserError):
    """No sampler as configured: something is not installed, not reachable, or serves something else."""


def report_errors(
    main: Callable[[], int], words: Words = as_configured, *, when_interrupted: str = INTERRUPTED_STEP
) -> int:
    """`main()`'s exit code; what the user can mend becomes one message on stderr and its exit code, and a warning one
    line. OTHERHALF_TRACEBACK=1 lets the error through.

    words: how the command names settings. when_interrupted: what it says after Ctrl-C."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return main()
    except BaseException as error:
        message = when_interrupted if isinstance(error, KeyboardInterrupt) else user_message(error)
        if message is None or os.environ.get("OTHERHALF_TRACEBACK"):
            raise
        message = "\n".join([message, *getattr(error, "__notes__", ())])
        rank = int(os.environ.get("RANK", "0"))
        print(f"error{f' (process {rank})' if rank else ''}: {in_words(message, words)}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else USER_ERROR


def user_message(error: BaseException) -> str | None:
    """What to tell a user about an error that they can mend, its settings marked (rewards.errors.named); None for an
    error of ours."""
    if isinstance(error, UserError):
        return "\n".join(problem.text for problem in error.problems)
    # By name: torch is not loaded here, and where it is not, it cannot have raised.
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the accelerator's memory is full ({str(error).splitlines()[0]}). Remedy: a lower "
            f"{named('optim.micro_batch_tokens')} or {named('generator.max_sequences')}, or "
            f"{named('model.gradient_checkpointing', 'true')}")
    if isinstance(error, OSError):
        return ": ".join(filter(None, (error.filename, error.strerror))) if error.strerror else str(error)
    return str(error) if isinstance(error, FloatingPointError) else None


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """A line that says what is the matter; Python's own form begins with a path and ends with a line of our source."""
    print(f"warning: {message}", file=sys.stderr)
