"""The configuration's models as a list of keys: what each is called, what it may be, its default and its meaning, as
text.

Nothing is written down twice: types, bounds, units, defaults and meanings come from rl/config.py, so a key that is
added there appears here, in error messages (rl/configuration/problems.py) and in the help. Imports no torch.
"""

from __future__ import annotations

import datetime
import json
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from rl.config import RunConfig, Section


@dataclass(frozen=True, slots=True)
class Key:
    """One settable key. name: dotted, N stands for an entry of a list. is_section: it has keys of its own below it."""

    name: str
    expected: str
    unit: str
    default: str
    meaning: str
    is_section: bool


def section_of(annotation: Any) -> type[Section] | None:
    """The model of a section, of one that may be null, of a list's entries, or None for a plain value."""
    if get_origin(annotation) is Annotated:
        return section_of(get_args(annotation)[0])
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if get_origin(annotation) is list:
        return section_of(get_args(annotation)[0])
    if is_optional(annotation):
        return section_of(get_args(annotation)[0])
    return None


def is_optional(annotation: Any) -> bool:
    """`X | None`, such as a section that is null by default."""
    arguments = get_args(annotation)
    return get_origin(annotation) in (Union, types.UnionType) and len(arguments) == 2 and arguments[1] is type(None)


def is_list_of_sections(annotation: Any) -> bool:
    return get_origin(annotation) is list and section_of(annotation) is not None


def all_keys(model: type[Section] = RunConfig, prefix: str = "") -> Iterator[Key]:
    """Every key below `model`, in the order of the models; a section comes before its keys."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        extra = field.json_schema_extra
        unit = str(extra.get("unit", "")) if isinstance(extra, dict) else ""
        yield Key(prefix + name, expected(field), unit, default_of(field), field.description or "", inner is not None)
        if inner is not None:
            yield from all_keys(inner, f"{prefix}{name}." + ("N." if is_list_of_sections(field.annotation) else ""))


def default_of(field: FieldInfo) -> str:
    """The default as it would be typed, or as JSON where it is a section."""
    value = field.get_default(call_default_factory=True)
    return show_value(value)


def show_value(value: object) -> str:
    """A value as it would be written in YAML, on one line: null, true, 0.0005, text, [1, 2]."""
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        value = [item.model_dump(mode="json") if isinstance(item, Section) else item for item in value]
    return json.dumps(value, default=str, ensure_ascii=False)


def expected(field: FieldInfo) -> str:
    """What a field may be: "a number > 0", "one of: auto, float32", "a whole number >= 1 or null"."""
    described, or_null, _ = _describe(field.annotation).partition(" or null")
    return described + _bounds(field) + or_null


def _describe(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if section_of(annotation) is not None:
        described = "a section (keys and values)"
        if origin is list:
            described = "a list of sections" + "".join(
                f", or of texts that stand for their `{item.func.args[0]}`"
                for item in getattr(arguments[0], "__metadata__", ()))
        return described + (" or null" if is_optional(annotation) else "")
    if origin is Literal:
        return "one of: " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        # null is named last, whatever the order in the annotation.
        options = [_describe(option) for option in arguments if option is not type(None)]
        return " or ".join([*options, *(["null"] if type(None) in arguments else [])])
    if origin is list:
        return "a list, each entry " + _describe(arguments[0])
    if origin is tuple:
        return f"a list of {len(arguments)} entries, each {_describe(arguments[0])}"
    if origin is dict:
        return "a mapping of names to values"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path",
             datetime.date: "a day, such as 2026-11-28"}
    return names[annotation]


def _bounds(field: FieldInfo) -> str:
    symbols = {annotated_types.Ge: ">= {0.ge}", annotated_types.Gt: "> {0.gt}",
               annotated_types.Le: "<= {0.le}", annotated_types.Lt: "< {0.lt}",
               annotated_types.MinLen: "with at least {0.min_length} entry"}
    found = [symbols[type(item)].format(item) for item in field.metadata if type(item) in symbols]
    return " " + " and ".join(found) if found else ""


