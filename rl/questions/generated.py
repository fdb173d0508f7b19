"""`data: reasoning_gym:TASK` -> the rows of a question file: made by reasoning-gym, the same ones for the same task,
parameters and seed.

Several tasks are joined by +, in turn: reasoning_gym:chain_sum+gcd. Entries are made in a process of their own
(rewards/reasoning_gym_worker.py says why). A row has `question`, `answer` (None for tasks without a single one), `id`
and `reasoning_gym`, the reference by which rewards/reasoning_gym.py scores answers. For another generator of questions
write a function like `task_rows` and give its prefix a line in rl/questions/files.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

from rewards.contract import RewardError
from rewards.errors import named
from rewards.reasoning_gym import COLUMN, check_installed
from rl.configuration.problems import closest
from rl.paths import project_root
from rl.records import Json

PREFIX = "reasoning_gym:"
DEFAULT_SIZE = 500  # reasoning-gym's own
# reasoning-gym draws question i from seed + i: the questions of seed 1 are those of seed 0, moved by one. So the seeds
# of training and held-out questions are far apart.
DEFAULT_SEEDS = {"data": 0, "evaluation": 1_000_000_000, "--benchmarks": 1_000_000_000}


class TaskError(ValueError):
    """There is no such task, or it cannot be made with these parameters; the message names key and value, and the
    remedy."""


def is_option(section: str) -> bool:
    """Whether questions were asked for by a command's option, such as --benchmarks, and not by a section of a
    configuration."""
    return section.startswith("--")


def setting_name(section: str, key: str) -> str:
    """How messages call a setting: section.key, or the option that stands for the whole section."""
    return named(section) if is_option(section) else f"{section}.{key}"


def is_generated(path: str | None) -> bool:
    return path is not None and path.startswith(PREFIX)


def task_rows(path: str, parameters: Mapping[str, Json], limit: int | None, section: str) -> Iterator[dict[str, Any]]:
    """The rows of "reasoning_gym:TASK" or "reasoning_gym:TASK+TASK", in order.

    parameters: the task's own, with its `seed` and `size`; for several tasks a mapping of such mappings by task, beside
    `seed` and `size` for all. size: how many rows in all; without it `limit`, or 500. Raises TaskError."""
    tasks = path.removeprefix(PREFIX).split("+")
    if len(set(tasks)) < len(tasks):
        raise TaskError(f"{setting_name(section, 'path')}: {path} names a task twice; name each once")
    try:
        check_installed()
    except RewardError as error:
        raise TaskError(f"{setting_name(section, 'path')}: {path}: {error}") from None
    shared: dict[str, Json] = {"seed": DEFAULT_SEEDS.get(section, 0), "size": limit or DEFAULT_SIZE}
    own: dict[str, Mapping[str, Json]] = {task: {} for task in tasks}
    for key, value in parameters.items():
        if key in shared:
            least = 0 if key == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise TaskError(f"{section}.task.{key}: saw {value!r}; expected a whole number >= {least}")
            shared[key] = value
        elif len(tasks) == 1:
            own[tasks[0]] = {**own[tasks[0]], key: value}
        elif key in own and isinstance(value, dict):
            own[key] = value
        else:
            raise TaskError(
                f"{section}.task.{key}: saw {value!r}; with several tasks expected seed, size, or a task's name "
                f"({', '.join(tasks)}) with a mapping of its parameters")
    size = shared["size"]
    assert isinstance(size, int)
    sizes = [size // len(tasks) + (i < size % len(tasks)) for i in range(len(tasks))]
    rows = [_rows_of(task, {**shared, "size": count, **own[task]}, section, is_only=len(tasks) == 1)
            for task, count in zip(tasks, sizes, strict=True) if count]
    return (row for together in zip_longest(*rows) for row in together if row is not None)


def _rows_of(task: str, config: dict[str, Json], section: str, is_only: bool) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", "from rewards.reasoning_gym_worker import generate; generate()"],
        input=json.dumps({"task": task, "config": config}), capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, (
            str(project_root()), os.environ.get("PYTHONPATH"))))})
    first, _, rest = done.stdout.partition("\n")
    if first:
        _refuse(json.loads(first), task, config, section, is_only)
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise TaskError(
            f"{setting_name(section, 'path')}: reasoning-gym could not make {task} with {json.dumps(config)}: "
            f"{last_line}. Remedy: other parameters ({setting_name(section, 'task')})")
    entries = [json.loads(line) for line in rest.splitlines()]
    return [
        {
            "id": f"{task}-{config['seed']}-{entry['index']}", "question": entry["question"], "answer": entry["answer"],
            COLUMN: {"task": task, "config": config, "index": entry["index"]}}
        for entry in entries]


def _refuse(found: Mapping[str, Any], task: str, config: Mapping[str, Json], section: str, is_only: bool) -> None:
    """Raises TaskError if the generating process says that something is wrong."""
    place = f"{setting_name(section, 'task')}" if is_only else f"{section}.task.{task}"
    if found["problem"] == "task":
        near = closest(task, found["known"])
        meant = f"did you mean {near!r}?" if near else f"there are: {', '.join(found['known'])}"
        raise TaskError(f"{setting_name(section, 'path')}: reasoning-gym has no task {task!r}; {meant}")
    if found["problem"] == "key":
        near = closest(found["key"], found["known"])
        raise TaskError(f"{place}.{found['key']}: saw {config[found['key']]!r}; {task} has no such parameter"
                        f"{f', did you mean {near}?' if near else ''} It has: {', '.join(found['known'])}")
    if found["problem"] == "value":
        given = {key: value for key, value in config.items() if key not in ("seed", "size")}
        named = {key: value for key, value in given.items() if key in found["message"]} or given
        shown = (
            ", ".join(f"{place}.{key}={value!r}" for key, value in named.items()) or f"its parameters {dict(config)!r}")
        raise TaskError(
            f"{shown}: refused by {task} ({found['message']}); see its parameters in reasoning-gym's documentation")
