"""A YAML file and `key=value` overrides -> a configuration, or one error that lists everything that is wrong.

How YAML is read: rl/configuration/yaml_text.py; what overrides may set: overrides.py; how problems are told:
problems.py. All three go by the models (rl/config.py, unless another one is named), where new keys are added; nothing
changes here. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import ValidationError

from rewards.errors import Problem
from rl.config import RunConfig, Section
from rl.configuration.overrides import apply_override, apply_value
from rl.configuration.problems import explain
from rl.configuration.yaml_text import read_mapping, write_mapping
from rl.errors import ConfigError
from rl.paths import resolve_path

Config = TypeVar("Config", bound=Section)


@overload
def load(path: Path | None, overrides: Sequence[str]) -> RunConfig: ...


@overload
def load(path: Path | None, overrides: Sequence[str], model: type[Config]) -> Config: ...


def load(path: Path | None, overrides: Sequence[str], model: type[Section] = RunConfig) -> Section:
    """The models' defaults, then the file's values, then the overrides in their order.

    path: see resolve_path; None or an empty file gives the defaults. overrides: "optim.lr=1e-6",
    "rewards.0.weight=0.5", "model=FOLDER" (a section that takes a shorthand: sets that one key and keeps the others).
    model: the configuration's class.
    Raises: ConfigError listing all problems, one a line."""
    values = _values_of(path)
    problems: list[Problem] = []
    overridden: set[str] = set()
    for override in overrides:
        try:
            overridden.add(apply_override(values, override, model))
        except ConfigError as error:
            problems.extend(error.problems)
    config, found = _validated(values, model)
    problems += [_placed(problem, path, _is_set_by(key, overridden)) for key, problem in found.items()]
    if config is None or problems:
        raise ConfigError(*problems)
    return config


def with_settings(path: Path | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The file's values (None: no file), and a program's settings in their order: names, dotted or not, to values as
    they are, sections as mappings. Not validated. Raises: ConfigError for names that are no keys, one a line."""
    values = _values_of(path)
    problems: list[Problem] = []
    for key, value in settings.items():
        try:
            apply_value(values, key, value, RunConfig)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(*problems)
    return values


def validated(values: Mapping[str, Any]) -> RunConfig:
    """Raises: ConfigError listing all problems, one a line."""
    config, problems = _validated(values, RunConfig)
    if config is None:
        raise ConfigError(*problems.values())
    return config


def to_yaml(config: Section) -> str:
    """All keys with their values, as `load` reads them back: load(to_yaml(c)) == c exactly (with c's own class)."""
    return write_mapping(config.model_dump(mode="json"))


def _values_of(path: Path | None) -> dict[str, Any]:
    return {} if path is None else read_mapping(resolve_path(path))


def _validated(values: Mapping[str, Any], model: type[Config]) -> tuple[Config | None, dict[str, Problem]]:
    """The configuration, or, for each key that is wrong, its problem."""
    try:
        return model.model_validate(values), {}
    except ValidationError as error:
        return None, explain(error, model)


def _is_set_by(key: str, overridden: set[str]) -> bool:
    """Whether one of the overrides set the key, or something in it: what a section refuses as a whole, such as
    thresholds that cross, names the section."""
    return any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in overridden)


def _placed(problem: Problem, path: Path | None, is_override: bool) -> Problem:
    if is_override:
        return replace(problem, where=f"override {problem.where}")
    return problem if path is None else replace(problem, where=": ".join(filter(None, (str(path), problem.where))))
