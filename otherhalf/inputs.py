"""What a program hands to a run as objects -> what a configuration names: rows become a file in the run's folder, a
model a checkpoint there, a function a name with the digest of its source.

Files are named by their contents, so that the same objects give the same configuration again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, TypeAlias

from rewards.errors import named
from rewards.loading import HANDED_OVER
from rl.errors import ConfigError, DataError
from rl.questions.files import Row, as_json, shown_value
from rl.runs.folder import RunFolder, write_atomically

Function: TypeAlias = Callable[..., Any]
WITH_ROWS = ("data", "evaluation", "anchors")
"""Sections whose `path` may be rows."""
FUNCTIONS = r"rewards\.\d+(\.use)?|.*\.(reward|grader)"
"""Keys whose values may be functions."""


def take_in(values: dict[str, Any], folder: RunFolder, tokenizer: Any = None) -> dict[str, Function]:
    """Put names in the place of all objects among the (nested) values; returns the functions by their names.

    Writes into folder.inputs. tokenizer: of a model that is an object. Raises ConfigError or DataError."""
    for key in WITH_ROWS:
        section = values.get(key)
        if isinstance(section, dict) and not isinstance(section.get("path"), str | Path | None):
            values[key] = {**section, "path": str(write_rows(folder.inputs, key, section["path"]))}
    model = values.get("model")
    if isinstance(model, dict) and not isinstance(model.get("path"), str | Path | None):
        values["model"] = {**model, "path": str(write_model(folder.inputs, model["path"], tokenizer))}
    elif tokenizer is not None:
        raise ConfigError("it is for a model that is an object, and the model is a path", where="tokenizer",
                          remedy="leave it out: a checkpoint has its own")
    functions: dict[str, Function] = {}
    for key in sorted(values):  # in one order, by which functions of one source are numbered
        values[key] = _plain(values[key], functions, key)
    return functions


def as_section(name: str, value: Any) -> Any:
    """Rows and models stand for the `path` of their section."""
    if isinstance(value, Mapping) and hasattr(value, "column_names"):
        raise DataError("a DatasetDict", where=named(name),
                        expected=f"one of its splits, such as {name}=dataset[{next(iter(value), 'train')!r}]")
    return value if isinstance(value, str | Path | Mapping | None) else {"path": value}


def as_rewards(value: Any) -> Any:
    """A list of rewards, each a section or what stands for its `use`; TRL's own functions are called as TRL calls
    them."""
    entries = [value] if callable(value) or isinstance(value, str | Mapping) else list(value)
    return [_as_trl_calls(entry) for entry in entries]


def _as_trl_calls(entry: Any) -> Any:
    use = entry.get("use") if isinstance(entry, Mapping) else entry
    if not str(getattr(use, "__module__", "")).startswith("trl."):
        return entry
    return {"style": "trl", **(entry if isinstance(entry, Mapping) else {"use": entry})}


def write_rows(folder: Path, key: str, rows: Iterable[Any]) -> Path:
    """A JSONL file with the rows (mappings of column to value), named by their digest. Raises DataError."""
    if not isinstance(rows, Iterable):
        raise DataError(where=named(key), seen=shown_value(rows),
                        expected="a path, a list of dicts or a datasets.Dataset")
    lines = []
    for number, row in enumerate(rows, start=1):
        place = Row(f"{named(key)}: row {number}", number, {})
        if not isinstance(row, Mapping):
            raise DataError(where=place.where, seen=shown_value(row), expected="a dict, such as {'question': '1+1=?'}")
        values = {str(name): as_json(_native(value), place, str(name)) for name, value in row.items()}
        lines.append(json.dumps(values, ensure_ascii=False) + "\n")
    # A lone surrogate has no UTF-8 form; reading the file refuses it with its place.
    content = "".join(lines).encode("utf-8", "backslashreplace")
    path = folder / f"{key}-{hashlib.sha256(content).hexdigest()[:12]}.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return path


def _native(value: Any) -> Any:
    """numpy's numbers and arrays as Python's, also within others."""
    if isinstance(value, Mapping):
        return {key: _native(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_native(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_model(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A checkpoint of a loaded transformers model, named by the digest of all its files. Raises ConfigError."""
    where = named("model")
    if not hasattr(model, "save_pretrained") or not hasattr(model, "config"):
        raise ConfigError(where=where, seen=shown_value(model),
                          expected="a folder, a hub id or a transformers model (with tokenizer=...)")
    if hasattr(model, "peft_config"):
        raise ConfigError("a model with PEFT's adapter", where=where,
                          remedy="the base's path, with the adapter's folder in **{'model.adapter': FOLDER}")
    if getattr(model, "hf_quantizer", None) is not None:
        raise ConfigError("a quantised model, whose weights are not those of its checkpoint", where=where,
                          remedy="its path, with **{'model.quantization': 'nf4'}")
    if tokenizer is None:
        raise ConfigError("missing; a model that is an object has none", where="tokenizer",
                          remedy="tokenizer=AutoTokenizer.from_pretrained(...)")
    temporary = folder / f".model.{os.getpid()}"  # other processes of the run do the same
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    path = folder / f"model-{_digest(temporary)}"
    try:
        temporary.rename(path)
    except OSError:
        if not path.is_dir():
            raise
        shutil.rmtree(temporary)
    return path


def _digest(folder: Path) -> str:
    """Of the names and bytes of all files, also of a tokenizer or configuration, with which other weights train."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _plain(value: Any, functions: dict[str, Function], where: str) -> Any:
    """Names in the place of functions, which are noted, texts in that of paths, lists in that of tuples. where: the
    dotted key. Raises ConfigError for a function or model where neither may stand."""
    if isinstance(value, Mapping):
        return {key: _plain(inner, functions, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, functions, f"{where}.{number}") for number, inner in enumerate(value)]
    if callable(value):
        if hasattr(value, "save_pretrained") or not re.fullmatch(FUNCTIONS, where):
            raise ConfigError(where=named(where), seen=f"an object of type {type(value).__name__}",
                              expected="a value as a file has it: functions stand in rewards, a loaded model in model",
                              remedy="the path of its checkpoint, where it is a model")
        return _use(value, functions)
    return str(value) if isinstance(value, Path) else value


def _use(function: Function, functions: dict[str, Function]) -> str:
    """The name by which a configuration has the function: our own by their places, others as handed over."""
    module, name = getattr(function, "__module__", ""), getattr(function, "__name__", type(function).__name__)
    if module.startswith("rewards.") and getattr(importlib.import_module(module), name, None) is function:
        return f"{module}:{name}"
    digest = source_digest(function)
    use, number = f"{HANDED_OVER}:{name}@{digest}", 1
    while functions.setdefault(use, function) is not function:  # another object of the same source
        number += 1
        use = f"{HANDED_OVER}:{name}.{number}@{digest}"
    return use


def source_digest(function: Function) -> str:
    """Of the function's source with its defaults and closure, or of its code where the source cannot be had or holds
    several; of a callable object, its class's."""
    return hashlib.sha256(_source(function).encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _source(function: Function) -> str:
    if isinstance(function, functools.partial):
        return f"{_source(function.func)}{_seen([function.args, dict(sorted(function.keywords.items()))])}"
    whole = inspect.unwrap(function)
    of = whole if inspect.isroutine(whole) else type(whole)
    code = getattr(of, "__code__", None)
    values = "".join(_seen(value) for each in (function, whole) for value in _bound(each))
    try:
        source = textwrap.dedent(inspect.getsource(of))
    except (OSError, TypeError):
        return (_code(code) if code else f"{of.__module__}.{of.__qualname__}") + values
    return source + (_code(code) if code and code.co_name == "<lambda>" else "") + values


def _code(code: CodeType) -> str:
    constants = [_code(value) if inspect.iscode(value) else sorted(map(repr, value)) if isinstance(value, frozenset)
                 else value for value in code.co_consts]
    return repr((code.co_code, constants, code.co_names))


def _bound(function: Any) -> Iterator[Any]:
    """Its defaults and the values of its closure."""
    yield from getattr(function, "__defaults__", None) or ()
    yield from sorted((getattr(function, "__kwdefaults__", None) or {}).items())
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            value = cell.cell_contents
            # What may be filled while the run goes on is no part of what the function is.
            yield type(value) if isinstance(value, list | dict) else value


def _seen(value: Any) -> str:
    """Plain values as they are, also within others; of all else, whose text may hold an address, the class."""
    if isinstance(value, Mapping):
        value = list(value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_seen, value))}]"
    if value is None or type(value) in (bool, int, float, str, bytes):
        return repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}"


def remove_unused(folder: RunFolder, before: set[Path]) -> None:
    """After a run that has not begun: what was written for it, and the folders that were made for that."""
    own = folder.config_file.read_text(encoding="utf-8") if folder.holds_run else ""
    for path in contents(folder) - before:
        if path.name not in own:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for place in (folder.inputs, folder.path):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def contents(folder: RunFolder) -> set[Path]:
    return set(folder.inputs.iterdir()) if folder.inputs.is_dir() else set()
