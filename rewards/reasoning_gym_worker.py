"""reasoning-gym inside processes of its own: makes a task's entries, and scores one answer.

Two reasons for the processes. Some tasks iterate over sets, so that their questions depend on Python's hash seed: both
processes run with PYTHONHASHSEED=0, and an entry that was made in one is made again in the other from its reference
alone. And some scorers hand the answer to eval() or to sympy's parser, which is eval() too: here an audit hook refuses
to open files for writing, to start programs and to use the network while an answer is scored. That stops what a model
stumbles on; it is no sandbox against an adversary.
Not to be imported by a training process: importing reasoning-gym takes a second and loads sympy and matplotlib.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import sys
from functools import lru_cache
from typing import Any

import numpy
import reasoning_gym
from reasoning_gym.factory import DATASETS

OTHER_QUESTION = -1.0  # what score_entry returns where the reference leads to another question; scores are in [0, 1]
_REFUSED_EVENTS = (
    "subprocess.", "socket.", "shutil.", "ctypes.", "pty.", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "os.spawn", "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.chown", "os.link",
    "os.symlink", "os.truncate", "os.putenv", "os.chdir")
_scoring = False


class _RefusedError(PermissionError):
    """An answer tried to do more than be an answer."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _scoring:
        return
    opens_for_writing = event == "open" and bool(_write_mode(*arguments[1:3]))
    if opens_for_writing or event.startswith(_REFUSED_EVENTS):
        raise _RefusedError(event)


def _write_mode(mode: object = None, flags: object = 0) -> bool:
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return (isinstance(mode, str) and bool(set(mode) & set("wax+"))) or (
        mode is None and isinstance(flags, int) and bool(flags & writes))


sys.addaudithook(_audit)


@lru_cache(maxsize=32)
def _dataset(task: str, config: str) -> Any:
    return reasoning_gym.create_dataset(task, **_as_tuples(task, json.loads(config)))


@lru_cache(maxsize=4096)
def _entry(task: str, config: str, index: int) -> dict[str, Any]:
    return _made(_dataset(task, config), index)


def _made(dataset: Any, index: int) -> dict[str, Any]:
    """Entry `index`; Python's and numpy's global generators, which some tasks (list_functions) draw from, start from
    the index."""
    random.seed(index)
    numpy.random.seed(index)
    entry: dict[str, Any] = dataset[index]
    return entry


@lru_cache(maxsize=8)
def _replay(task: str, config: str) -> tuple[Any, list[dict[str, Any]]]:
    return reasoning_gym.create_dataset(task, **_as_tuples(task, json.loads(config))), []


def _replayed_entry(task: str, config: str, index: int) -> dict[str, Any]:
    """The entry as `generate` made it, after all before it: a task may depend on what was made earlier."""
    dataset, entries = _replay(task, config)
    while len(entries) <= index:
        entries.append(_made(dataset, len(entries)))
    return entries[index]


def score_entry(reference: str, question: str, answer: str) -> float:
    """The task's own score of `answer`, cut to [0, 1]. reference: JSON of task, config and index; question: the text it
    must lead to.

    Raises whatever the scorer raises, and ValueError for a score that is no number."""
    global _scoring
    where = json.loads(reference)
    config = json.dumps(where["config"], sort_keys=True)
    entry = _entry(where["task"], config, where["index"])
    if entry["question"] != question:
        entry = _replayed_entry(where["task"], config, where["index"])
    if entry["question"] != question:
        return OTHER_QUESTION
    _scoring = True
    try:
        score = float(_dataset(where["task"], config).score_answer(answer, entry))
    finally:
        _scoring = False
    if math.isnan(score):
        raise ValueError("the scorer returned NaN")
    return min(1.0, max(0.0, score))


def describe(task: str, config: dict[str, Any]) -> dict[str, Any]:
    """Whether the task can be made with this configuration: {"problem": None, or what is wrong, with "known" names
    where it is one}."""
    known = sorted(name for name in DATASETS if name != "composite")
    if task not in known:
        return {"problem": "task", "known": known}
    fields = [field.name for field in dataclasses.fields(DATASETS[task][1])]
    for key in config:
        if key not in fields:
            return {"problem": "key", "key": key, "known": [name for name in fields if name not in ("seed", "size")]}
    try:
        _dataset(task, json.dumps(config, sort_keys=True))
        _entry(task, json.dumps(config, sort_keys=True), 0)
    except Exception as error:  # the tasks check their parameters with assert, or fail on them in ways of their own
        return {
            "problem": "value", "message": f"{type(error).__name__}: {error}" if str(error) else type(error).__name__}
    return {"problem": None}


def _as_tuples(task: str, config: dict[str, Any]) -> dict[str, Any]:
    """YAML has no tuples, and some tasks' parameters are."""
    defaults = {field.name: field.default for field in dataclasses.fields(DATASETS[task][1])}
    return {key: tuple(value) if isinstance(value, list) and isinstance(defaults.get(key), tuple) else value
            for key, value in config.items()}


def generate() -> None:
    """A generating process's whole life: JSON {"task", "config"} on its input; out come describe()'s line, then one
    entry a line."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the entries
    order = json.loads(sys.stdin.read())
    task, config = order["task"], order["config"]
    found = describe(task, config)
    print(json.dumps(found), file=results, flush=True)
    if found["problem"] is None:
        # a new one: describe() has made an entry of the other
        dataset, _ = _replay(task, json.dumps(config, sort_keys=True))
        for index in range(len(dataset)):
            entry = _made(dataset, index)
            print(json.dumps({"index": index, "question": entry["question"], "answer": entry["answer"]}), file=results)
        results.flush()
