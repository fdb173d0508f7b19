"""The prompt of a run: the day that is fixed when it begins, and what its folder, or a record beside its weights, says
of it to those who sample from its policy later.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rewards.errors import named
from rl.config import PromptSection, Section
from rl.configuration.yaml_text import read_mapping
from rl.errors import ConfigError
from rl.ranks import gather
from rl.runs.folder import RunFolder

Config = TypeVar("Config", bound=Section)
RECORD = "run_prompt.json"
"""Beside weights, which may leave their run's folder: the prompt under which they were trained."""


@dataclass(frozen=True, slots=True)
class RunPrompt:
    """How a run in `folder` asked its policy. stop_strings, stop_token_ids: beside the template's and the model's.
    head_dtype, quantization: of its model."""

    folder: Path
    prompt: PromptSection
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    head_dtype: str | None = None
    quantization: str | None = None


def stored_prompt(folder: RunFolder) -> RunPrompt:
    """Of any command's run. Raises ConfigError where its configuration cannot be read."""
    return _of_values(folder.path, read_mapping(folder.config_file))


def prompt_of_run(run_dir: Path, config: Section) -> RunPrompt:
    """Of a run with this configuration, a warm-up's too."""
    return _of_values(run_dir, config.model_dump(mode="json"))


def _of_values(folder: Path, config: Mapping[str, Any]) -> RunPrompt:
    sampling, model = config.get("sampling", {}), config.get("model", {})  # a warm-up samples nothing
    return RunPrompt(
        folder, PromptSection.model_validate(config.get("prompt", {})), tuple(sampling.get("stop_strings", ())),
        tuple(sampling.get("stop_token_ids", ())), model.get("head_dtype"), model.get("quantization"))


def write_record(weights: Path, run: RunPrompt) -> None:
    """Into the folder of weights that were trained under this prompt."""
    record = {"run": str(run.folder), "prompt": run.prompt.model_dump(mode="json"),
              "sampling": {"stop_strings": run.stop_strings, "stop_token_ids": run.stop_token_ids},
              "model": {"head_dtype": run.head_dtype, "quantization": run.quantization}}
    (weights / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def prompt_of_weights(path: Path) -> RunPrompt | None:
    """What is recorded beside these weights, else of the run in whose folder they lie (runs/NAME/checkpoints/best/
    adapter, runs/NAME/model); None where there is neither. Raises ConfigError where it cannot be read."""
    place = path.absolute()
    record = place / RECORD
    if record.is_file():
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
            return _of_values(Path(values["run"]), values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{record} is no record of a run's prompt ({str(error).splitlines()[0]})",
                              remedy="export the model again, or remove the file") from error
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
