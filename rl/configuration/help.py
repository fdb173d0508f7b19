"""What a command says of itself, and the page that its `--help` prints: usage, options, every key. Imports no torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rl.config import Section
from rl.configuration.keys import all_keys

Config = TypeVar("Config", bound=Section)


@dataclass(frozen=True, slots=True)
class CommandLine(Generic[Config]):
    """A command that is configured by a file and by `key=value`.

    prog: how it is started. purpose: a sentence. model: its configuration's class, which has a run_dir. default: the
    file that is used where none is named. examples: of keys that are set. dry_run, resume: what these options do;
    resume None: the same command goes on by itself, and there is no such option. plan: what
    --gpu-memory does; None: there is no such option."""

    prog: str
    purpose: str
    model: type[Config]
    default: Path
    examples: str
    dry_run: str
    resume: str | None
    plan: str | None = None

    def options(self) -> Iterator[tuple[str, str]]:
        """Each option with its meaning."""
        yield (
            "--config FILE",
            f"YAML file with any of the keys below; what it leaves out has its default. Without it {self.default}")
        yield "KEY=VALUE ...", f"set a key, after the file: {self.examples}"
        yield "--dry-run", self.dry_run
        if self.plan is not None:
            yield "--gpu-memory GB", self.plan
        yield "--print-config", "print the resolved configuration as YAML and stop"
        if self.resume is not None:
            yield "--resume [RUN]", self.resume
        yield "--help", "this page"


def render_help(command: CommandLine[Config], width: int | None = None) -> str:
    """width: columns, by default the terminal's (at most 120)."""
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    options = list(command.options())
    flags = " ".join(f"[{option}]" for option, _ in options if option.startswith("--") and option != "--help")
    lines = [f"usage: {command.prog} {flags} [KEY=VALUE ...]", "", *_hanging("", command.purpose, width), ""]
    for option, meaning in options:
        lines += _hanging(f"  {option:<16}", meaning, width)
    lines += ["", "Keys, with what each may be, its default and its meaning:"]
    for key in all_keys(command.model):
        if key.is_section:
            lines += ["", *_hanging(f"{key.name}: ", key.meaning, width)]
            continue
        unit = f", in {key.unit}" if key.unit else ""
        lines += _hanging(f"  {key.name}  ", f"{key.expected}{unit}; default {key.default or 'none'}", width, indent=6)
        lines += _hanging(" " * 6, key.meaning, width)
    return "\n".join(lines) + "\n"


def _hanging(head: str, text: str, width: int, indent: int | None = None) -> list[str]:
    """`text` after `head`, wrapped; further lines are indented to the head's end, or by `indent`."""
    margin = " " * (len(head) if indent is None else indent)
    return textwrap.wrap(text, max(width, 40), initial_indent=head, subsequent_indent=margin,
                         break_long_words=False, break_on_hyphens=False)
