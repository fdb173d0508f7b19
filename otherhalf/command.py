"""The console command `otherhalf`: its first word names one of the project's commands, whose `main` gets the others.

A new command is a line in COMMANDS.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": ("rl.train", "train a policy on questions, with gold answers or without any"),
    "warmup": ("rl.warmup", "supervised warm-up on solutions"),
    "pipeline": ("rl.pipeline", "warm-ups, training, rejection sampling and evaluations as stages of one"),
    "reject": ("rl.reject", "rejection sampling into a file that a warm-up reads"),
    "eval": ("eval.run", "evaluate a model or a run on benchmarks"),
    "compare": ("eval.compare", "two evaluations side by side, with intervals"),
    "grade": ("eval.grade", "grade an evaluation's completions, or other people's, anew"),
    "answer": ("eval.answer", "the answer that most of k samples agree on"),
    "forecast": ("eval.forecast", "what training has to work with, before it begins"),
    "explain": ("rewards.explain", "why each completion of a group got what it got"),
    "check": ("rewards.check", "try a reward function against the contract"),
    "view": ("view.command", "look at runs, evaluations and pipelines in a browser"),
    "export": ("rl.export", "merge a run's adapter into a plain checkpoint"),
    "picture": ("rl.picture", "learning curves of one run, or of several"),
    "doctor": ("otherhalf.doctor", "versions, devices, memory and conflicts on this machine"),
}
"""Word -> (module, what it is for)."""


def main(words: Sequence[str] | None = None) -> int:
    """The exit code of the command that the first word names (None: the process's own words); 2 where there is none."""
    given = list(sys.argv[1:] if words is None else words)
    first = given[0] if given else ""
    if first in COMMANDS:
        exit_code: int = importlib.import_module(COMMANDS[first][0]).main(given[1:])
        return exit_code
    if first in ("--help", "-h", "help", "--version"):
        print(version() if first == "--version" else help_page())
        return 0
    if not first:
        print(help_page(), file=sys.stderr)
        return 2
    near = difflib.get_close_matches(first, COMMANDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    print(f"error: {first!r} is no command of otherhalf; {hint}otherhalf --help lists them", file=sys.stderr)
    return 2


def help_page() -> str:
    lines = [f"  {word:<10}{purpose}" for word, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        ["usage: otherhalf COMMAND [WORDS ...]", "", *lines, "",
         "otherhalf COMMAND --help tells what a command takes. Each is a module's own too: otherhalf train is",
         "python -m rl.train. On several GPUs: accelerate launch -m otherhalf train ..."])


def version() -> str:
    from importlib import metadata

    try:
        return f"otherhalf {metadata.version('otherhalf')}"
    except metadata.PackageNotFoundError:
        return "otherhalf, not installed (it runs from its folder)"
