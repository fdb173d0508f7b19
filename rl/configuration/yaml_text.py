"""YAML as configurations are written in it: by YAML 1.2's rules for plain values. 1e-6 is a number, `off` and `no` are
text, 010 is ten, and a key that is given twice is refused.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from rl.configuration.problems import seen
from rl.errors import ConfigError
from rl.paths import project_root


class Loader(yaml.SafeLoader):
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


class Dumper(yaml.SafeDumper):
    """Quotes all that YAML 1.1 or 1.2 would read as something else than text."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
)
for _tag, _pattern, _first in _PLAIN_VALUES:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_decimal_int)


def read_value(text: str) -> Any:
    """The value that the text is, such as 1e-6 or [1, 2]. Raises: yaml.YAMLError."""
    return yaml.load(text, Loader=Loader)


def write_mapping(values: dict[str, Any]) -> str:
    """The YAML that `read_mapping` reads as these values."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none. Raises: ConfigError naming file and line."""
    if not path.is_file():
        raise ConfigError(_missing_file(path), where=str(path))
    try:
        values = read_value(path.read_text(encoding="utf-8-sig"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}: column {mark.column + 1}" if mark else str(path)
        raise ConfigError(f"not valid YAML: {error.problem or error.context}", where=where) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a YAML text in UTF-8: {error}", where=str(path)) from None
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(where=str(path), seen=seen(values), expected="keys and values, such as `steps: 40`")
    return values


def _missing_file(path: Path) -> str:
    folders = {path.parent.resolve(), project_root() / "configs"}
    files = sorted({file for folder in folders if folder.is_dir() for file in folder.glob("[!.]*.yaml")})
    like = difflib.get_close_matches(path.stem, [file.stem for file in files], n=3, cutoff=0.5)
    chosen = [file for name in like for file in files if file.stem == name] or files
    there = ", ".join(str(_short(file)) for file in chosen)
    kind = "is a folder, not a file" if path.is_dir() else "no such file"
    return kind + (f"; {'similar' if like else 'there are'}: {there}" if there else "")


def _short(path: Path) -> Path:
    return path.relative_to(project_root()) if path.is_relative_to(project_root()) else path
