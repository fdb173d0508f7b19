"""The skeleton of the commands that a file and `key=value` configure (rl/train.py and its siblings): the words that a
person types -> what to do. Imports no torch, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rewards.errors import named
from rl.config import Section
from rl.configuration.help import CommandLine, render_help
from rl.configuration.loading import load, to_yaml
from rl.configuration.other_names import known_elsewhere
from rl.configuration.problems import closest
from rl.errors import ConfigError, report_errors
from rl.paths import project_root
from rl.runs.folder import RunFolder, find_run

FLAGS = ("--dry-run", "--print-config", "--help", "-h")
Config = TypeVar("Config", bound=Section)


@dataclass(frozen=True, slots=True)
class Command(Generic[Config]):
    """What the user asked for. config: validated. resume: the folder of the run to go on with, or None. gpu_memory_gb:
    of the card to plan for; None: there is nothing to plan."""

    config: Config
    resume: Path | None
    wants_help: bool = False
    dry_run: bool = False
    print_config: bool = False
    gpu_memory_gb: float | None = None


def run_command(
    line: CommandLine[Config], arguments: Sequence[str] | None, *, dry_run: Callable[[Config], None],
    run: Callable[[Config, Path | None], int], plan: Callable[[Config, float], None] | None = None,
) -> int:
    """Do what the arguments (None: the process's own) ask for; --help and --print-config are answered here.

    run: takes the configuration and the folder of the run to go on with, and returns the exit code. plan: takes the
    configuration and the memory of a card in GB.
    Returns the exit code: run's, 2 for what the user can mend (one message, no traceback; OTHERHALF_TRACEBACK=1 shows
    it), 130 after Ctrl-C twice."""

    def main() -> int:
        # A script's own folder comes first there: a reward that imports its neighbour config.py would get rl/config.py.
        sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != project_root() / "rl"]
        command = parse(sys.argv[1:] if arguments is None else arguments, line)
        if command.wants_help:
            print(render_help(line))
        elif command.print_config:
            print(to_yaml(command.config), end="")
        elif command.gpu_memory_gb is not None and plan is not None:
            plan(command.config, command.gpu_memory_gb)
        elif command.dry_run:
            dry_run(command.config)
        else:
            return run(command.config, command.resume)
        return 0

    return report_errors(main)


def parse(arguments: Sequence[str], line: CommandLine[Config]) -> Command[Config]:
    """Raises ConfigError for unusable words, RunFolderError where there is no such run to resume.

    With --resume the configuration is that of the run, with the overrides given now; which may differ is marked in
    rl/config.py."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--resume")
    if line.plan is not None:
        parser.add_argument("--gpu-memory", type=_gigabytes)
    for flag in FLAGS:
        parser.add_argument(flag, action="store_true")
    try:
        known, others = parser.parse_known_args(_with_resume_value(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see --help") from error
    if unknown := [word for word in others if word.startswith("-") or "=" not in word]:
        meant = f"an option or key=value{_hint(unknown[0], line.model)}; see --help"
        raise ConfigError(where=repr(unknown[0]), expected=meant)
    if known.help or known.h:
        return Command(line.model(), None, wants_help=True)
    gpu_memory_gb = getattr(known, "gpu_memory", None)
    if gpu_memory_gb is not None and not known.dry_run:
        raise ConfigError("plans and trains nothing", where="--gpu-memory", remedy="--dry-run --gpu-memory GB")
    path = known.config
    resume = None
    if known.resume is not None:
        if line.resume is None:
            raise ConfigError("the same command without it goes on where it was cut off", where="--resume")
        resume = _run_to_resume(known.resume, path, others, line.model)
        path = path or RunFolder(resume).config_file
        others = [*others, f"run_dir={resume}"]
    config = load(path or project_root() / line.default, others, line.model)
    return Command(config, resume, dry_run=known.dry_run, print_config=known.print_config, gpu_memory_gb=gpu_memory_gb)


def _gigabytes(text: str) -> float:
    """Raises ArgumentTypeError for what is no size."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}; expected the memory of a card in GB, such as 24")
    return size


def _hint(word: str, model: type[Section]) -> str:
    """What was probably meant by a word that is neither an option nor key=value."""
    key, equals, value = word.lstrip("-").partition("=")
    if word.endswith((".yaml", ".yml")):
        meant: str | None = f"--config {word}"
    elif key.partition(".")[0] in model.model_fields:
        meant = f"{key}={value if equals else 'VALUE'}"
    elif (known := known_elsewhere(key, model)) is not None and known[1].ours:
        meant = f"{known[1].ours[0]}=VALUE"
    else:
        meant = closest(f"--{key}", ("--config", "--resume", *FLAGS))
    return f" (did you mean {meant}?)" if meant else ""


def _with_resume_value(arguments: Sequence[str]) -> list[str]:
    """A bare --resume, also one followed by key=value or another option, means --resume latest."""
    words: list[str] = []
    for position, word in enumerate(arguments):
        words.append(word)
        following = arguments[position + 1] if position + 1 < len(arguments) else "--"
        if word == "--resume" and (following.startswith("-") or ("=" in following and not Path(following).exists())):
            words.append("latest")
    return words


def _run_to_resume(name: str, config_path: Path | None, overrides: Sequence[str], model: type[Section]) -> Path:
    """`latest` is the run in the folder that is being configured, if there is one, else the newest beside it that has
    such a configuration.

    A run_dir in so many words that holds no run is refused: the newest run beside it is not the one that was meant.
    """
    given = [word.partition("=")[2] for word in overrides if word.partition("=")[0] == "run_dir"]
    if given:
        configured = Path(given[-1])
    elif config_path is not None:
        configured = Path(load(config_path, overrides, model).model_dump()["run_dir"])
    else:
        configured = None
    if name == "latest" and configured is not None and RunFolder(configured).holds_run:
        return configured
    if name == "latest" and given:
        raise ConfigError(
            f"--resume found no run in {given[-1]}", where=named("run_dir"), expected="the folder of a run",
            remedy="the run's own folder, or --resume without run_dir for the newest run")
    return find_run(name, configured.parent if configured is not None else Path("runs"), lambda run: is_of(model, run))


def is_of(model: type[Section], run: RunFolder) -> bool:
    """Whether the run was configured by this class: other commands' runs stand in the same folder."""
    try:
        load(run.config_file, [], model)
    except ConfigError:
        return False
    return True
