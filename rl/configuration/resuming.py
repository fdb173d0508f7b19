"""What differs between two configurations, and whether something that was begun under one may go on under the other.

One comparison for training runs, warm-ups, rejection sampling, stages of pipelines and evaluations. Which setting may
differ when is marked on its field (rl.config.setting, `may_differ`), wherever that stands; `steps` of a training run
alone depends on another setting (rl/checkpoint.py), and an evaluation that goes on by itself may differ in nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from rewards.errors import Problem, named
from rl.config import Occasion, RunConfig, Section
from rl.configuration.keys import section_of
from rl.configuration.loading import load
from rl.records import Json
from rl.runs.folder import RunFolder

_ABSENT = object()  # nothing that a configuration can say equals it


class Difference(NamedTuple):
    """key: dotted. old, new: None stands for what one of both lacks."""

    key: str
    old: Json
    new: Json


def differences(old: Section | Mapping[str, Any], new: Section | Mapping[str, Any]) -> list[Difference]:
    """Every value that differs, in the order of the keys; of two configurations or two mappings of JSON values.

    In what a user's own mapping holds (a reward's arguments, a task's settings) null is another value than none; in
    mappings of a file, which an earlier version may have written, it is the same."""
    if isinstance(old, Section) and isinstance(new, Section):
        return _differences("", old.model_dump(mode="json"), new.model_dump(mode="json"), absent=_ABSENT)
    return _differences("", old, new, absent=None)


def conflicts(old: Section, new: Section, occasion: Occasion) -> list[Difference]:
    """What differs between two configurations of one class and must not, on this occasion."""
    return [item for item in differences(old, new) if not occasion & may_differ(type(new), item.key)]


def may_differ(model: type[Section], key: str) -> Occasion:
    """On which occasions the key may: what is marked on its own field and on the sections that it lies in."""
    found, section = Occasion.NEVER, model
    for part in key.split("."):
        field = section.model_fields.get(part)
        if field is None:  # the number of a list's entry
            continue
        extra = field.json_schema_extra
        found |= Occasion(extra["may_differ"] if isinstance(extra, dict) else 0)
        inner = section_of(field.annotation)
        if inner is None:
            break
        section = inner
    return found


def conflicts_with_folder(folder: RunFolder, config: Section, occasion: Occasion) -> list[Problem]:
    """A problem for each setting that the run in the folder was begun with and that must not differ from `config`."""
    return [Problem(f"{new!r}, but the run in {folder.path} has {old!r}", named(key))
            for key, old, new in conflicts(load(folder.config_file, [], type(config)), config, occasion)]


def moved(config: RunConfig, old: Path, new: Path) -> RunConfig:
    """The configuration of a run whose folder was `old` and is `new` now: what lies among RunFolder.inputs of the one
    lies among those of the other."""
    before, after = (f"{RunFolder(folder).inputs}/" for folder in (old, new))

    def there(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: there(inner) for key, inner in value.items()}
        is_own = isinstance(value, str) and value.startswith(before)
        return after + value.removeprefix(before) if is_own else value

    values = config.model_dump(mode="json")
    return config if (placed := there(values)) == values else RunConfig.model_validate(placed)


def _differences(key: str, old: Any, new: Any, *, absent: object) -> list[Difference]:
    if absent is _ABSENT:  # a section that is null on one side differs in each of its keys
        old, new = ({} if one is None and isinstance(other, Mapping) and other else one
                    for one, other in ((old, new), (new, old)))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(name, (old.get(name, absent), new.get(name, absent))) for name in dict.fromkeys((*old, *new))]
    elif _is_list_of_mappings(old) and _is_list_of_mappings(new):
        nothing: dict[str, Any] = {}  # an entry that one of both lacks differs in all of its keys
        pairs = [(str(index), both) for index, both in enumerate(zip_longest(old, new, fillvalue=nothing))]
    else:
        shown = [None if value is _ABSENT else value for value in (old, new)]
        return [] if old == new else [Difference(key, *shown)]
    return [found for name, (before, after) in pairs
            for found in _differences(f"{key}.{name}" if key else name, before, after, absent=absent)]


def _is_list_of_mappings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value)
