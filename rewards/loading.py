"""A reward's name in a config -> the function: `package.module:name`, or `file.py:name`.

Files and modules are looked for beside the config that names them, then in the working directory, and imported once. A
file may import modules that lie beside it or in the working directory; what is installed comes before them.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.contract import RewardError

HANDED_OVER = "python"
"""In the place of a module or file: a function that a program handed over, `python:name@digest of its source`."""
_handed_over: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar("handed_over", default={})  # noqa: B039


@contextmanager
def handing_over(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within the block, and in its thread, `load` finds these functions by their names."""
    token = _handed_over.set(functions)
    try:
        yield
    finally:
        _handed_over.reset(token)


def load(use: str, search_from: Path | None = None) -> Callable[..., Any]:
    """The function named by `use`; search_from: folder that relative files and modules are looked for in first.

    Raises RewardError for a name without a colon, a missing file, module or function (with the closest match),
    something that is not callable, and a file that raises when it is imported (with its line).
    """
    if use in _handed_over.get():
        return _handed_over.get()[use]
    place, name = split_use(use)
    where = f"reward {use!r}"
    if place == HANDED_OVER:
        raise RewardError(
            "a program handed this function over to otherhalf.train, and it is known nowhere else", where=where,
            remedy="the same program with resume=..., or a function in a module or file")
    folders = ([search_from] if search_from is not None else []) + [Path.cwd()]
    module = _import_file(where, place, folders) if place.endswith(".py") else _import_module(where, place, folders)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(sorted(public)) or 'no function'}"
        raise RewardError(f"{place} has no {name!r}; {hint}", where=where)
    function = getattr(module, name)
    if not callable(function):
        raise RewardError(f"{name} is {type(function).__name__}, expected a function", where=where)
    return function


def split_use(use: str) -> tuple[str, str]:
    """(the module or file, the function in it). Raises RewardError where one of them is missing."""
    place, _, name = use.rpartition(":")
    if not place or not name:
        raise RewardError(f"reward {use!r} names no function; write package.module:name or file.py:name")
    return place, name


def user_line(error: BaseException, filename: str | None) -> str:
    """`file:line` of the deepest frame in `filename`, or else of the deepest frame of all, from an exception's
    traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == filename]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    if not frames:
        return filename or "unknown place"
    frame = own[-1] if own else frames[-1]
    return f"{frame.filename}:{frame.lineno}"


def _import_module(where: str, place: str, folders: Sequence[Path]) -> ModuleType:
    _import_from(folders)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(error.name + ".")):
            raise RewardError(
                f"there is no module {error.name!r}; is it installed, or is a file meant "
                f"({place.rsplit('.', 1)[-1]}.py:...)?", where=where) from error
        raise RewardError(f"importing {place} raised {_describe(error, None)}", where=where) from error
    except Exception as error:  # any error of the user's own code becomes one message that names its line
        raise RewardError(f"importing {place} raised {_describe(error, None)}", where=where) from error


def _import_from(folders: Sequence[Path]) -> None:
    """Find modules there too, from now on: a function may import when it is called. Last, so that no file of a user's
    takes the place of a library's. `accelerate launch` does not look in the working directory by itself."""
    sys.path += [str(folder.resolve()) for folder in folders if str(folder.resolve()) not in sys.path]


def _import_file(where: str, place: str, folders: Sequence[Path]) -> ModuleType:
    candidates = list(dict.fromkeys((folder / Path(place).expanduser()).resolve() for folder in folders))
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise RewardError(f"there is no file {' or '.join(map(str, candidates))}", where=where)
    module_name = f"reward_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    _import_from([path.parent, Path.cwd()])
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up while it is executed
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # any error of the user's own code becomes one message that names its line
        del sys.modules[module_name]
        raise RewardError(f"importing {path} raised {_describe(error, str(path))}", where=where) from error
    return module


def _describe(error: Exception, filename: str | None) -> str:
    return f"{type(error).__name__}: {error} at {user_line(error, filename)}"
