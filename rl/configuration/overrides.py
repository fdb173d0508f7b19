"""`key=value` -> the value set in what a configuration file gave, as the kind of value that the key's field takes. A
program's own values are set under the same names, as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args, get_origin

import yaml
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from rewards.errors import named
from rl.config import Section
from rl.configuration.keys import expected, is_list_of_sections, section_of
from rl.configuration.problems import seen, unknown_key
from rl.configuration.yaml_text import read_value
from rl.errors import ConfigError


def apply_override(values: dict[str, Any], override: str, root: type[Section]) -> str:
    """Set one `key=value` in the (nested) values; returns the key. Raises: ConfigError."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(where=f"override {override!r}", expected="key=value, such as optim.lr=1e-6")
    _Override(key, text, root).set_in_section(values, root, 0)
    return key


def apply_value(values: dict[str, Any], key: str, value: Any, root: type[Section]) -> None:
    """Set one key, dotted or not, to a value that is no text to be read. Raises: ConfigError."""
    _Value(key, value, root).set_in_section(values, root, 0)


class _Override:
    """One `key=value` on its way down through sections and lists of sections; depth: how many parts of the key it has
    passed."""

    KIND = "override "

    def __init__(self, key: str, text: str, root: type[Section]) -> None:
        self._key, self._text, self._root = key, text, root
        self._parts = key.split(".")
        self._where = f"{self.KIND}{named(key)}"

    def set_in_section(self, section: dict[str, Any], model: type[Section], depth: int) -> None:
        part, path = self._parts[depth], self._path(depth)
        field = model.model_fields.get(part)
        if field is None:
            problem = unknown_key(path, model, self._root, self._text, self._key)
            raise ConfigError(replace(problem, where=f"{self.KIND}{problem.where}"))
        if depth == len(self._parts) - 1:
            section[part] = self._typed(field, section.get(part))
        elif get_origin(field.annotation) is dict:
            _set_in_mapping(section, self._parts[depth:], self._as_yaml("a value as YAML has it"))
        elif (inner := section_of(field.annotation)) is None:
            raise ConfigError(f"{path} has no keys of its own; it is {expected(field)}", where=self._where)
        else:
            below = section[part] = _opened(section.get(part), field)
            if isinstance(below, list):
                self._set_in_list(below, inner, depth + 1)
            elif isinstance(below, dict):
                self.set_in_section(below, inner, depth + 1)
            else:
                raise ConfigError(f"{path} is {seen(below)} in the file", where=self._where, expected=expected(field))

    def _set_in_list(self, entries: list[Any], model: type[Section], depth: int) -> None:
        part, where = self._parts[depth], f"{self.KIND}{named(self._path(depth))}"
        if not re.fullmatch(r"[0-9]+", part) or int(part) >= len(entries):
            raise ConfigError(
                where=where,
                expected=f"the number of an entry, 0 to {len(entries) - 1} (set the whole list to add one)")
        entry = entries[int(part)]
        if not isinstance(entry, dict):
            raise ConfigError(f"the entry is {seen(entry)}", where=where, expected="a section (keys and values)")
        if depth == len(self._parts) - 1:
            raise ConfigError(f"name a key of the entry, one of: {', '.join(model.model_fields)}", where=self._where)
        self.set_in_section(entry, model, depth + 1)

    def _path(self, depth: int) -> str:
        return ".".join(self._parts[:depth + 1])

    def _as_yaml(self, wanted: str) -> Any:
        try:
            return read_value(self._text)
        except yaml.YAMLError as error:
            problem = getattr(error, "problem", None) or str(error)
            raise ConfigError(
                where=self._where, seen=f"{self._text!r}, which is not valid YAML ({problem})",
                expected=wanted) from None

    def _typed(self, field: FieldInfo, current: Any) -> Any:
        """The text as the kind of value that the field takes: text as it was typed, all else as YAML reads it."""
        options = get_args(field.annotation) or (field.annotation,)
        takes_text = get_origin(field.annotation) not in (list, dict) and (str in options or Path in options)
        try:
            value = self._as_yaml(expected(field))
        except ConfigError:
            if takes_text:
                return self._text
            raise
        if takes_text:
            is_null = value is None and type(None) in options
            is_quoted = isinstance(value, str) and self._text.lstrip()[:1] in ("'", '"')
            is_list = isinstance(value, list | dict) and any(get_origin(option) is list for option in options)
            return value if is_null or is_quoted or is_list else self._text
        return _beside(value, current, field)


class _Value(_Override):
    """A program's value in the place of a text."""

    KIND = ""

    def __init__(self, key: str, value: Any, root: type[Section]) -> None:
        super().__init__(key, str(value), root)
        self._value = value

    def _as_yaml(self, wanted: str) -> Any:
        return self._value

    def _typed(self, field: FieldInfo, current: Any) -> Any:
        return _merged(self._value, current, field)


def _merged(value: Any, current: Any, field: FieldInfo) -> Any:
    """A section as a mapping sets the keys that it names, also in the sections in it, and keeps the others."""
    section, before = section_of(field.annotation), _opened(current, field)
    if section is None or not isinstance(value, Mapping) or not isinstance(before, dict):
        return _beside(value, current, field)
    fields = section.model_fields
    return {**before, **{name: _merged(inner, before.get(name), fields[name]) if name in fields else inner
                         for name, inner in value.items()}}


def _beside(value: Any, current: Any, field: FieldInfo) -> Any:
    """A section's shorthand sets that one key and keeps the others; every other value is itself."""
    if section_of(field.annotation) is not None and isinstance(value, str):
        short = _spelt_out(value, field)
        if isinstance(short, dict):
            before = _opened(current, field)
            return {**before, **short} if isinstance(before, dict) else short
    return value


def _set_in_mapping(container: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set data.task.max_terms where `task` takes any names; mappings on the way are copied, since an anchor may use
    them twice."""
    for part in parts[:-1]:
        inner = container.get(part)
        copy = dict(inner) if isinstance(inner, dict) else {}
        container[part] = copy
        container = copy
    container[parts[-1]] = value


def _opened(value: Any, field: FieldInfo) -> Any:
    """A section or list of sections to write into: the shorthand spelt out, a missing list filled with its default."""
    if value is None and is_list_of_sections(field.annotation):
        return [entry.model_dump(mode="json") for entry in field.get_default(call_default_factory=True)]
    if value is None:
        return {}
    value = _spelt_out(value, field)
    # Copies, so that an anchor that a YAML file uses twice is not changed in both places.
    if isinstance(value, list):
        entries = [_spelt_out(entry, *get_args(field.annotation)) for entry in value]
        return [dict(entry) if isinstance(entry, dict) else entry for entry in entries]
    return dict(value) if isinstance(value, dict) else value


def _spelt_out(value: Any, of: Any) -> Any:
    """of: a field, or the annotation of a list's entries."""
    for item in of.metadata if isinstance(of, FieldInfo) else getattr(of, "__metadata__", ()):
        if isinstance(item, BeforeValidator):
            value = cast(Any, item.func)(value)
    return value
