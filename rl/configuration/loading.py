"""Turns a YAML file and `key=value` overrides into a configuration, or into one error that lists everything that is
wrong.

The file is read by YAML 1.2's rules for plain values: 1e-6 is a number, `off` and `no` are text, 010 is ten; a key that
is given twice is refused. Overrides are typed by the models of rl/config.py (RunConfig unless another one is named).
New keys are added there; nothing changes here. Imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, overload

import yaml
from pydantic import BeforeValidator, ValidationError
from pydantic.fields import FieldInfo

from rewards.errors import Problem
from rl.config import RunConfig, Section
from rl.configuration.help import all_keys, default_of, expected, is_list_of_sections, section_of, show_value
from rl.errors import ConfigError
from rl.paths import project_root, resolve_path
from rl.records import Json

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
    values = {} if path is None else read_mapping(resolve_path(path))
    problems: list[str | Problem] = []
    overridden: set[str] = set()
    for override in overrides:
        try:
            overridden.add(_apply(values, override, model))
        except ConfigError as error:
            problems.extend(error.problems)
    try:
        config = model.model_validate(values)
    except ValidationError as error:
        source = "" if path is None else f"{path}: "
        for key, message in _explain(error, model).items():
            # The second: what a section refuses as a whole, such as thresholds that cross, names the section.
            is_override = any(
                key == name or key.startswith(name + ".") or name.startswith(key + ".") for name in overridden)
            problems.append(("override " if is_override else source) + message)
        raise ConfigError(*problems) from None
    if problems:
        raise ConfigError(*problems)
    return config


def to_yaml(config: Section) -> str:
    """All keys with their values, as `load` reads them back: load(to_yaml(c)) == c exactly (with c's own class)."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def differences(old: Config, new: Config) -> list[tuple[str, Json, Json]]:
    """(dotted key, old value, new value) of every key that differs; None stands for an entry that one of them lacks."""
    before, after = _flat(old.model_dump(mode="json"), type(old)), _flat(new.model_dump(mode="json"), type(new))
    keys = list(before) + [key for key in after if key not in before]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def closest(name: str, candidates: Sequence[str]) -> str | None:
    """The candidate that is most like `name`, or None if none is like it."""
    matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return matches[0] if matches else None


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain values (set below), and without keys that appear twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own interface)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    problem = f"the key {key.value!r} is given twice, first in line {seen[key.value]}; keep one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_decimal_int(self, node: yaml.ScalarNode) -> int:
        return int(node.value, 16) if node.value.startswith("0x") else int(node.value)


class _Dumper(yaml.SafeDumper):
    """Quotes all that YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)
for _tag, _pattern, _first in _PLAIN_VALUES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_decimal_int)


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none. Raises: ConfigError naming file and line."""
    if not path.is_file():
        raise ConfigError(_missing_file(path))
    try:
        values = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}: column {mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML text in UTF-8: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: saw {_seen(values)}; expected keys and values, such as `steps: 40`")
    return values


def _missing_file(path: Path) -> str:
    folders = {path.parent.resolve(), project_root() / "configs"}
    files = sorted({file for folder in folders if folder.is_dir() for file in folder.glob("[!.]*.yaml")})
    like = difflib.get_close_matches(path.stem, [file.stem for file in files], n=3, cutoff=0.5)
    chosen = [file for name in like for file in files if file.stem == name] or files
    there = ", ".join(str(_short(file)) for file in chosen)
    kind = "is a folder, not a file" if path.is_dir() else "no such file"
    return f"{path}: {kind}" + (f"; {'similar' if like else 'there are'}: {there}" if there else "")


def _short(path: Path) -> Path:
    return path.relative_to(project_root()) if path.is_relative_to(project_root()) else path


def _apply(values: dict[str, Any], override: str, root: type[Section]) -> str:
    """Set one `key=value` in the (nested) values; returns the key. Raises: ConfigError."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key=value, such as optim.lr=1e-6")
    parts = key.split(".")
    container: Any = values
    model = root
    for depth, part in enumerate(parts):
        path = ".".join(parts[: depth + 1])
        field = model.model_fields.get(part) if not isinstance(container, list) else None
        if isinstance(container, list):
            container = _entry(container, part, path)
            if depth == len(parts) - 1:
                raise ConfigError(f"override {key}: name a key of the entry, one of: {', '.join(model.model_fields)}")
            continue
        if field is None:
            raise ConfigError(f"override {_unknown(path, model, root)}")
        if depth == len(parts) - 1:
            container[part] = _typed(text, field, key, container.get(part))
            return key
        inner = section_of(field.annotation)
        if get_origin(field.annotation) is dict:
            _set_in_mapping(container, parts[depth:], _as_yaml(text, key, "a value as YAML has it"))
            return key
        if inner is None:
            raise ConfigError(f"override {key}: {path} has no keys of its own; it is {expected(field)}")
        container[part] = _opened(container.get(part), field)
        container, model = container[part], inner
        if not isinstance(container, dict | list):
            raise ConfigError(f"override {key}: {path} is {_seen(container)} in the file; expected {expected(field)}")
    raise AssertionError("the last part of a key returns or raises")


def _set_in_mapping(container: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    """Set data.task.max_terms where `task` takes any names; mappings on the way are copied, since an anchor may use
    them twice."""
    for part in parts[:-1]:
        inner = container.get(part)
        copy = dict(inner) if isinstance(inner, dict) else {}
        container[part] = copy
        container = copy
    container[parts[-1]] = value


def _as_yaml(text: str, key: str, wanted: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"override {key}: saw {text!r}, which is not valid YAML ({problem}); expected {wanted}") from None


def _opened(value: Any, field: FieldInfo) -> Any:
    """A section or list of sections to write into: the shorthand spelt out, a missing list filled with its default."""
    if value is None and is_list_of_sections(field.annotation):
        return [entry.model_dump(mode="json") for entry in field.get_default(call_default_factory=True)]
    if value is None:
        return {}
    value = _spelt_out(value, field)
    # Copies, so that an anchor that a YAML file uses twice is not changed in both places.
    if isinstance(value, list):
        return [dict(entry) if isinstance(entry, dict) else entry for entry in value]
    return dict(value) if isinstance(value, dict) else value


def _entry(entries: list[Any], part: str, path: str) -> dict[str, Any]:
    if not re.fullmatch(r"[0-9]+", part) or int(part) >= len(entries):
        raise ConfigError(
            f"override {path}: expected the number of an entry, 0 to {len(entries) - 1} (set the whole list to add one)"
        )
    entry = entries[int(part)]
    if not isinstance(entry, dict):
        raise ConfigError(f"override {path}: the entry is {_seen(entry)}; expected a section (keys and values)")
    return entry


def _spelt_out(value: Any, field: FieldInfo) -> Any:
    for item in field.metadata:
        if isinstance(item, BeforeValidator):
            value = cast(Any, item.func)(value)
    return value


def _typed(text: str, field: FieldInfo, key: str, current: Any) -> Any:
    """The override's text as the kind of value that the field takes: text as it was typed, all else as YAML reads
    it."""
    options = get_args(field.annotation) or (field.annotation,)
    takes_text = get_origin(field.annotation) not in (list, dict) and (str in options or Path in options)
    try:
        value = _as_yaml(text, key, expected(field))
    except ConfigError:
        if takes_text:
            return text
        raise
    if takes_text:
        is_null = value is None and type(None) in options
        is_quoted = isinstance(value, str) and text.lstrip()[:1] in ("'", '"')
        is_list = isinstance(value, list | dict) and any(get_origin(option) is list for option in options)
        return value if is_null or is_quoted or is_list else text
    inner = section_of(field.annotation)
    if inner is not None and isinstance(value, str):
        short = _spelt_out(value, field)
        if isinstance(short, dict):
            before = _opened(current, field)
            return {**before, **short} if isinstance(before, dict) else short
    return value


def _explain(error: ValidationError, root: type[Section]) -> dict[str, str]:
    """Dotted key -> one line; a key that fails as each member of a union is named once."""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        key, model, field = _locate(item["loc"], root)
        if key in lines:
            continue
        if item["type"] == "extra_forbidden":
            lines[key] = _unknown(key, model, root)
        elif item["type"] == "value_error":
            lines[key] = f"{key}: {item['ctx']['error']}" if key else str(item["ctx"]["error"])
        elif field is None:
            lines[key] = f"{key}: saw {_seen(item['input'])}; expected a section (keys and values)"
        else:
            # The default of a section is all of its keys: too long to help.
            default = "" if section_of(field.annotation) is not None else f" (default {default_of(field) or 'none'})"
            lines[key] = f"{key}: saw {_seen(item['input'])}; expected {expected(field)}{default}"
    return lines


def _locate(loc: Sequence[int | str], root: type[Section]) -> tuple[str, type[Section], FieldInfo | None]:
    """The dotted key of a pydantic location, its section's model, and its field if it is one.

    What follows a plain value in a location is an index into it, or the name of a union's member: only indices are
    kept."""
    parts: list[str] = []
    model = root
    field: FieldInfo | None = None
    is_plain = False
    for part in loc:
        if isinstance(part, int):
            parts.append(str(part))
        elif not is_plain:
            parts.append(part)
            field = model.model_fields.get(part)
            inner = section_of(field.annotation) if field is not None else None
            if inner is not None:
                model = inner
            else:
                is_plain = True
    return ".".join(parts), model, field


def _unknown(key: str, model: type[Section], root: type[Section]) -> str:
    """`key` does not exist: name the one that was probably meant, in the same section or elsewhere."""
    prefix, _, name = key.rpartition(".")
    names = [item.name for item in all_keys(root) if not item.is_section]
    # By the last part alone: two keys of one section would look alike by its name.
    near_ending = closest(name, [other.rpartition(".")[2] for other in names])
    same_ending = [other for other in names if other.rpartition(".")[2] == name]
    like_ending = [other for other in names if other.rpartition(".")[2] == near_ending]
    # Too short for likeness: lr in optim.lrate.
    begins_alike = [field for field in model.model_fields if name.startswith(field)] if prefix else []
    in_section = closest(name, list(model.model_fields)) or next(iter(begins_alike), None)
    if in_section is not None and (prefix or not same_ending):
        near = f"{prefix}.{in_section}" if prefix else in_section
    else:
        # Of the keys of other sections only one of exactly that name: a person who names a section knows where to look.
        near = " or ".join((same_ending or ([] if prefix else like_ending))[:3])
    if near:
        return f"{key}: unknown key; did you mean {near}?"
    return f"{key}: unknown key; {prefix or 'the configuration'} has: {', '.join(model.model_fields)}"


def _seen(value: object) -> str:
    shown = repr(value) if isinstance(value, str) else show_value(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _flat(values: Mapping[str, Any], model: type[Section]) -> dict[str, Json]:
    """Dotted key -> value; a plain list or mapping is one value."""
    return dict(_flat_items(values, "", model))


def _flat_items(values: Mapping[str, Any], prefix: str, model: type[Section]) -> Iterator[tuple[str, Json]]:
    for name, value in values.items():
        inner = section_of(model.model_fields[name].annotation)
        if inner is None or value is None:
            yield prefix + name, value
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                yield from _flat_items(entry, f"{prefix}{name}.{index}.", inner)
        else:
            yield from _flat_items(value, f"{prefix}{name}.", inner)
