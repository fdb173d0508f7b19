"""A pipeline's configuration -> its stages in the order they run, rounds written out, with whose results each one
takes.

What a stage takes from earlier ones is written in its settings as {NAME.model}, {NAME.adapter}, {NAME.solutions} or
{NAME.folder}; here the names are checked, and `fill` puts results in their places. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import Problem, named
from rl.configuration.problems import closest
from rl.errors import ConfigError
from rl.records import Json
from rl.stages.config import BASE, PREVIOUS, PipelineConfig, StageKind, StageSection

POLICY_KINDS: tuple[StageKind, ...] = ("warmup", "rl")
SEEDS_PER_PIPELINE = 1000
_REFERENCE = re.compile(r"\{([A-Za-z0-9_-]+)\.([A-Za-z_]+)\}")
_GIVEN_BY = {
    "model": POLICY_KINDS, "adapter": POLICY_KINDS, "solutions": ("reject",),
    "folder": (*POLICY_KINDS, "reject", "eval")}


@dataclass(frozen=True, slots=True)
class Stage:
    """index: its place, counted from 0 through all rounds; position: in the configuration's list. config: its own YAML
    file. settings: dotted key -> value, set after the file, with references. policy: the earlier stage (its index) that
    gives the policy; None: the model of its own configuration. references: the earlier stage that each name in the
    settings means. inputs: all that it takes something of."""

    index: int
    position: int
    name: str
    kind: StageKind
    config: str | None
    settings: Mapping[str, Json]
    policy: int | None
    references: Mapping[str, int]
    inputs: tuple[int, ...]
    takes_best: bool
    folder: Path

    @property
    def key(self) -> str:
        """How messages name it."""
        return f"stage {self.name} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage gives to later ones. model, revision: the checkpoint; adapter: over it, None without one. solutions:
    of `reject`.
    tokenizer: the checkpoint whose tokenizer the model has, where the model is not there yet."""

    folder: Path
    model: str | None = None
    revision: str | None = None
    adapter: str | None = None
    solutions: str | None = None
    tokenizer: str | None = None


def make_plan(config: PipelineConfig) -> tuple[Stage, ...]:
    """Raises ConfigError that names the stage and the predecessor that there is not."""
    stages: list[Stage] = []
    problems: list[Problem] = []
    latest: dict[str, int] = {}  # a stage's name, with and without its round -> the latest one so far
    for position, round_number in _order(config):
        section = config.stages[position]
        name = section.name if round_number is None else f"{section.name}-{round_number}"
        if name in latest:
            raise ConfigError(f"{name} is the name of a stage and of one in a round; rename one", where=named("stages"))
        index, where = len(stages), f"stages.{position} ({section.name})"
        settings = {key: _with_round(value, round_number) for key, value in flatten(section.set).items()}
        if config.seed is not None and section.kind != "eval":
            settings.setdefault("seed", SEEDS_PER_PIPELINE * config.seed + index)
        solutions = _untaken_solutions(stages)
        if section.kind == "warmup" and solutions is not None and not {"data", "data.path"} & settings.keys():
            settings["data.path"] = f"{{{solutions}.solutions}}"
        policy = _policy(section, where, stages, latest, problems)
        taken = {
            name: _stage_named(name, part, where, stages, latest, problems)
            for name, part in _references(list(settings.values()))}
        references = {name: number for name, number in taken.items() if number is not None}
        fixed = (
            [key for key in ("model", "model.path", "model.adapter") if key in settings] if policy is not None else [])
        if fixed and policy is not None:
            problems.append(
                Problem(
                    f"set.{fixed[0]}, but the stage takes its policy of {stages[policy].name}", where,
                    remedy=f"policy: {BASE}, or leave it out"))
        inputs = tuple(sorted({*references.values(), *(() if policy is None else (policy,))}))
        stages.append(Stage(index, position, name, section.kind, section.config, settings, policy, references, inputs,
                            section.checkpoint == "best", config.run_dir / f"{index + 1}-{name}"))
        latest[name] = latest[section.name] = index
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return tuple(stages)


def fill(stage: Stage, results: Mapping[int, Result]) -> dict[str, Json]:
    """The stage's settings with the results of earlier stages in the places of their names. results: at least those of
    `inputs`."""

    def value_of(name: str, part: str) -> str | None:
        found: str | Path | None = getattr(results[stage.references[name]], part)
        return None if found is None else str(found)

    settings = {key: _replaced(value, value_of) for key, value in stage.settings.items()}
    if stage.policy is not None and stage.kind != "eval":
        of = results[stage.policy]
        settings |= {"model.path": of.model, "model.revision": of.revision, "model.adapter": of.adapter}
    return settings


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Json]:
    """{"optim": {"lr": 1}, "model.path": "m"} -> {"optim.lr": 1, "model.path": "m"}; lists and empty mappings are
    values."""
    flat: dict[str, Json] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def _order(config: PipelineConfig) -> list[tuple[int, int | None]]:
    """(position in `stages`, number of the round or None) as they run."""
    first, last = config.repeated
    if config.repeat.rounds == 1:
        return [(position, None) for position in range(len(config.stages))]
    rounds = [
        (position, number) for number in range(1, config.repeat.rounds + 1) for position in range(first, last + 1)]
    before: list[tuple[int, int | None]] = [(position, None) for position in range(first)]
    after: list[tuple[int, int | None]] = [(position, None) for position in range(last + 1, len(config.stages))]
    return [*before, *rounds, *after]


def _policy(
    section: StageSection, where: str, stages: list[Stage], latest: Mapping[str, int], problems: list[Problem]
) -> int | None:
    if section.policy == BASE:
        return None
    if section.policy == PREVIOUS:
        return next((stage.index for stage in reversed(stages) if stage.kind in POLICY_KINDS), None)
    return _stage_named(section.policy, "model", f"{where}: policy", stages, latest, problems)


def _stage_named(
    name: str, part: str, where: str, stages: list[Stage], latest: Mapping[str, int], problems: list[Problem]
) -> int | None:
    index = latest.get(name)
    if index is None:
        near, seen = closest(name, list(latest)), f"{name!r}, which is no earlier stage"
        problems.append(
            Problem("", where, f"{seen}; did you mean {near}?")
            if near
            else Problem("", where, seen, f"one of: {', '.join(latest) or 'none, this is the first'}"))
    elif part not in _GIVEN_BY:
        problems.append(Problem("", where, f"{{{name}.{part}}}; a stage gives one of: {', '.join(_GIVEN_BY)}"))
    elif stages[index].kind not in _GIVEN_BY[part]:
        problems.append(
            Problem(f"{{{name}.{part}}} of {stages[index].key}; a {part} comes of: {', '.join(_GIVEN_BY[part])}", where)
        )
        return None
    return index


def _untaken_solutions(stages: list[Stage]) -> str | None:
    """The name of the latest `reject` whose solutions no warm-up has had yet."""
    for stage in reversed(stages):
        if stage.kind == "reject":
            return stage.name
        if stage.kind == "warmup":
            return None
    return None


def _with_round(value: Json, number: int | None) -> Json:
    return each_text(value, lambda text: text.replace("{round}", "1" if number is None else str(number)))


def _references(values: list[Json]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []

    def collect(text: str) -> str:
        found.extend(_REFERENCE.findall(text))
        return text

    each_text(values, collect)
    return found


def _replaced(value: Json, value_of: Callable[[str, str], str | None]) -> Json:
    """A text that is one reference may become null (a merged policy has no adapter)."""

    def replace(text: str) -> Json:
        if whole := _REFERENCE.fullmatch(text):
            return value_of(*whole.groups())
        return _REFERENCE.sub(lambda match: value_of(*match.groups()) or "", text)

    return each_text(value, replace)


def each_text(value: Json, change: Callable[[str], Json]) -> Json:
    """The value with each text in it changed, in lists and mappings too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: each_text(item, change) for key, item in value.items()}
    return value
