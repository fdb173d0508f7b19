"""Which errors are the user's to mend, and how a run's commands tell them: one message without a traceback, in each
command's words. All others are ours and keep their traceback."""

from __future__ import annotations

from collections.abc import Callable

from rewards import errors
from rewards.errors import UserError, Words, as_configured, named

INTERRUPTED_STEP = "interrupted before the step's end; what was saved before is whole"


class ConfigError(UserError):
    """The configuration is not usable: each problem with its key, the value seen and what was expected."""


class DataError(UserError):
    """Questions or solutions cannot be used: the file, line and field, and the remedy."""


class GeneratorError(UserError):
    """No sampler as configured: something is not installed, not reachable, or serves something else."""


def report_errors(
    main: Callable[[], int], words: Words = as_configured, *, when_interrupted: str = INTERRUPTED_STEP
) -> int:
    """rewards.errors.report_errors with what a run may meet besides (`user_message`)."""
    return errors.report_errors(main, words, when_interrupted=when_interrupted, message_of=user_message)


def user_message(error: BaseException) -> str | None:
    """What to tell a user about an error that they can mend, its settings marked (rewards.errors.named); None for an
    error of ours. Here too: full memory of the accelerator, another process of the run that has ended, and numbers that
    are none."""
    # By name: torch is not loaded here, and where it is not, it cannot have raised.
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the accelerator's memory is full ({str(error).splitlines()[0]}). Remedy: a lower "
            f"{named('optim.micro_batch_tokens')} or {named('generator.max_sequences')}, or "
            f"{named('model.gradient_checkpointing', 'full')}")
    if isinstance(error, RuntimeError) and "gloo/transport" in str(error):
        return f"another process of the run has ended; see what it wrote last ({str(error).splitlines()[0]})"
    return str(error) if isinstance(error, FloatingPointError) else errors.user_message(error)
