"""The prompt of a run: the day that is fixed when it begins, and what its folder says of it to those who sample from
its policy later.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rewards.errors import named
from rl.config import PromptSection, Section
from rl.configuration.yaml_text import read_mapping
from rl.errors import ConfigError
from rl.ranks import gather
from rl.runs.folder import RunFolder

Config = TypeVar("Config", bound=Section)


@dataclass(frozen=True, slots=True)
class RunPrompt:
    """How a run in `folder` asked its policy. stop_strings, stop_token_ids: beside the template's and the model's."""

    folder: Path
    prompt: PromptSection
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]


def stored_prompt(folder: RunFolder) -> RunPrompt:
    """Of any command's run. Raises ConfigError where its configuration cannot be read."""
    values = read_mapping(folder.config_file)
    sampling = values.get("sampling", {})  # a warm-up has none
    return RunPrompt(
        folder.path, PromptSection.model_validate(values.get("prompt", {})), tuple(sampling.get("stop_strings", ())),
        tuple(sampling.get("stop_token_ids", ())))


def prompt_of_weights(path: Path) -> RunPrompt | None:
    """Of the run in whose folder these weights lie (runs/NAME/checkpoints/best/adapter, runs/NAME/model); None where
    they lie in none."""
    place = path.absolute()
    runs = [RunFolder(folder) for folder in (place, *place.parents[:3])]
    return next((stored_prompt(run) for run in runs if run.holds_run), None)


def check_same_day(prompt: PromptSection, num_ranks: int) -> None:
    """Raises ConfigError, on every rank, where processes that began across midnight have fixed different days."""
    days = sorted(set(gather(prompt.date, num_ranks, "compare the day of their prompts")), key=str)
    if len(days) > 1:
        raise ConfigError(f"the run's processes have {days[0]} and {days[-1]}", where=named("prompt.date"),
                          remedy=f"start it again, or {named('prompt.date', str(days[-1]))}")


def with_day(config: Config, *, resume: bool) -> Config:
    """A configuration with a prompt and a run_dir -> the same with prompt.date: today for a new run, the day of the run
    that goes on, where none is named."""
    values = dict(config)
    prompt: PromptSection = values["prompt"]
    if prompt.date is not None:
        return config
    day = stored_prompt(RunFolder(values["run_dir"])).prompt.date if resume else None
    return config.model_copy(update={"prompt": prompt.on(day or datetime.date.today())})
