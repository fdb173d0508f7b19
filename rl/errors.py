"""Which errors are the user's to mend, and how they are told: one message without a traceback. All others are ours and
keep theirs."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

USER_ERROR, INTERRUPTED = 2, 130  # exit codes; 130 is the shells' own for a command that Ctrl-C ended


def user_errors() -> tuple[type[BaseException], ...]:
    """The classes, of the modules loaded so far: what is not loaded cannot have raised, and loading it would cost
    seconds."""
    names = {
        "rl.configuration.loading": "ConfigError",
        "rl.runs.folder": "RunFolderError",
        "rl.questions.files": "DataError",
        "rl.questions.prompting": "PromptError",
        "rewards.contract": "RewardError",
        "rl.checkpoint": "CheckpointError",
        "rl.policy.policy": "PolicyError",
        "rl.runs.tracking": "JsonLinesError",
        "rl.proof.proof": "SamplerMismatchError",
        "rl.generate.errors": "SamplerError",
        "torch": "OutOfMemoryError",
    }
    own = tuple(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules)
    return (*own, OSError, FloatingPointError, KeyboardInterrupt)


def describe_error(error: BaseException) -> str:
    """The error's message, with the notes added on its way (such as from where the run can go on)."""
    return "\n".join([_message(error), *getattr(error, "__notes__", ())])


def exit_code(error: BaseException) -> int:
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else USER_ERROR


def report_errors(
    main: Callable[[], int],
    errors: Callable[[], tuple[type[BaseException], ...]] = user_errors,
    in_words: Callable[[str], str] = str,
) -> int:
    """`main()`'s exit code; what the user can mend becomes one message on stderr and its exit code, and a warning one
    line. OTHERHALF_TRACEBACK=1 lets the error through. errors: which those are. in_words: the message in the words of
    the command."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return main()
    except errors() as error:
        if os.environ.get("OTHERHALF_TRACEBACK"):
            raise
        rank = int(os.environ.get("RANK", "0"))
        print(f"error{f' (process {rank})' if rank else ''}: {in_words(describe_error(error))}", file=sys.stderr)
        return exit_code(error)


def _show_warning(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """A line that says what is the matter; Python's own form begins with a path and ends with a line of our source."""
    print(f"warning: {message}", file=sys.stderr)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before the step's end; what was saved before is whole"
    if type(error).__name__ == "OutOfMemoryError":
        return (
            f"the accelerator's memory is full ({str(error).splitlines()[0]}). Remedy: a lower optim.micro_batch_tokens"
            " or generator.max_sequences, or model.gradient_checkpointing=true")
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
