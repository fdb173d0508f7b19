"""What a user can mend, as a value: which setting or row, what was seen, what was expected, the remedy.

A message names settings through `named`, which marks them in the text. So whoever shows the message can name them in
its own words: a run says `generator.backend=vllm`, an evaluation's command says `--generator vllm`, and what loads a
teacher's model says `teacher.path` where the loading itself says `model.path`. `str(error)` says what configurations
say. `report_errors` is how a command tells such an error. Imports nothing of this project.
"""

from __future__ import annotations

import functools
import os
import re
import select
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Self

# Of Unicode's private use area: no text that a user writes has them.
_OPEN, _BETWEEN, _CLOSE = "\ue000", "\ue001", "\ue002"
_MARKED = re.compile(f"{_OPEN}([^{_BETWEEN}{_CLOSE}]*)(?:{_BETWEEN}([^{_CLOSE}]*))?{_CLOSE}")

# Exit codes; the last two are the shells' own for a command that Ctrl-C ended, and for one whose output nobody reads.
USER_ERROR, INTERRUPTED, NOBODY_READS = 2, 130, 141

Words = Callable[[str, str | None], str]
"""(a setting's name, the value to give it or None) -> how a command says that."""


def named(name: str, value: object = None) -> str:
    """A setting's name within a message, or with a value what to set: `generator.backend`, `generator.backend=vllm`."""
    return f"{_OPEN}{name}{_CLOSE}" if value is None else f"{_OPEN}{name}{_BETWEEN}{value}{_CLOSE}"


def as_configured(name: str, value: str | None) -> str:
    """The words of a configuration, `name` or `name=value`; of a command's option, `--name` or `--name value`."""
    return name if value is None else f"{name}{' ' if name.startswith('-') else '='}{value}"


def in_words(text: str, words: Words = as_configured) -> str:
    """The text with its marked settings named by `words`."""
    return _MARKED.sub(lambda match: words(match[1], match[2]), text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. Any part may be "".

    where: the setting (`named("optim.lr")`), or the file and row. what: the matter, a sentence. seen, expected: values
    or their descriptions. remedy: what to do."""

    what: str = ""
    where: str = ""
    seen: str = ""
    expected: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return in_words(self.text)

    @property
    def text(self) -> str:
        """One line, with its marked settings: `where: what; saw seen; expected expected. Remedy: remedy`."""
        parts = (self.what, self.seen and f"saw {self.seen}", self.expected and f"expected {self.expected}")
        sentence = "; ".join(filter(None, parts))
        remedy = self.remedy and f"Remedy: {self.remedy}"
        matter = ". ".join(filter(None, (sentence, remedy)))
        return f"{self.where}: {matter}" if self.where else matter

    def renamed(self, rename: Callable[[str], str]) -> Problem:
        """This problem with other settings in the place of its own."""
        def mend(text: str) -> str:
            return _MARKED.sub(lambda match: named(rename(match[1]), match[2]), text)

        return Problem(*(mend(getattr(self, field.name)) for field in fields(self)))


class UserError(ValueError):
    """What a user can mend: one message without a traceback. Subclasses say what kind, for those who tell them apart.

    Args: what: the matter in a sentence, or several problems. where, seen, expected, remedy: see `Problem`."""

    def __init__(
        self, *what: str | Problem, where: str = "", seen: str = "", expected: str = "", remedy: str = ""
    ) -> None:
        if where or seen or expected or remedy or not what:
            (text,) = what or ("",)
            assert isinstance(text, str)
            what = (Problem(text, where, seen, expected, remedy),)
        self.problems = tuple(Problem(one) if isinstance(one, str) else one for one in what)
        super().__init__(*self.problems)

    def __str__(self) -> str:
        return self.in_words(as_configured)

    def in_words(self, words: Words) -> str:
        """The message, one problem a line, with its settings named by `words`."""
        return "\n".join(in_words(problem.text, words) for problem in self.problems)

    def renamed(self, rename: Callable[[str], str]) -> Self:
        """This error about other settings: `rename` gives each setting's name, such as teacher.path for model.path."""
        return type(self)(*(problem.renamed(rename) for problem in self.problems))


def user_message(error: BaseException) -> str | None:
    """What to tell a user about an error that they can mend, its settings marked; None for an error of ours."""
    if isinstance(error, UserError):
        return "\n".join(problem.text for problem in error.problems)
    if isinstance(error, OSError):
        # A library may give a Path, bytes or a descriptor as its name.
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{error.strerror}" if error.strerror else str(error)
    return None


def report_errors(
    main: Callable[[], int], words: Words = as_configured, *, when_interrupted: str = "interrupted",
    message_of: Callable[[BaseException], str | None] = user_message,
) -> int:
    """`main()`'s exit code; what the user can mend becomes one message on stderr and its exit code, and a warning one
    line. OTHERHALF_TRACEBACK=1 lets the error through. Where whoever read the output has gone (`| head`), the command
    ends without a word but for what the error adds to itself.

    words: how the command names settings. when_interrupted: what it says after Ctrl-C. message_of: the message of an
    error, None where it keeps its traceback."""
    try:
        with plain_warnings(words):
            code = main()
            sys.stdout.flush()  # here, and not at the interpreter's end, which would show a traceback
            return code
    except BaseException as error:
        if _drop_output_without_reader() and isinstance(error, BrokenPipeError):
            for note in getattr(error, "__notes__", ()):
                print(in_words(note, words), file=sys.stderr)
            return NOBODY_READS
        message = when_interrupted if isinstance(error, KeyboardInterrupt) else message_of(error)
        if message is None or os.environ.get("OTHERHALF_TRACEBACK"):
            raise
        message = "\n".join([message, *getattr(error, "__notes__", ())])
        rank = int(os.environ.get("RANK", "0"))
        print(f"error{f' (process {rank})' if rank else ''}: {in_words(message, words)}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else USER_ERROR


@contextmanager
def plain_warnings(words: Words = as_configured) -> Iterator[None]:
    """Each warning within the block is a line on stderr, its settings named by `words`."""
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show_warning, words)
        yield


def _drop_output_without_reader() -> bool:
    """Whether nobody reads our output, and then let what is left of it go nowhere. It is asked of the system: a server
    that hangs up breaks pipes too."""
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # no file of the system's
        return False
    poll = select.poll()
    poll.register(number, 0)
    is_gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if is_gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return is_gone


def _show_warning(
    words: Words, message: Warning | str, category: type[Warning], *place: object, **more: object
) -> None:
    """A line that says what is the matter; Python's own form begins with a path and ends with a line of our source."""
    print(f"warning: {in_words(str(message), words)}", file=sys.stderr)
