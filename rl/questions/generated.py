"""`data: reasoning_gym:TASK` -> the rows of a question file, made by reasoning-gym; a task, its parameters and a seed
decide them.

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
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rewards.contract import RewardError
from rewards.errors import named
from rewards.reasoning_gym import COLUMN, check_installed
from rl.configuration.problems import closest
from rl.errors import DataError
from rl.paths import project_root
from rl.records import Json

PREFIX = "reasoning_gym:"
DEFAULT_SIZE = 500  # reasoning-gym's own
TRAINING_SEED = 0
# reasoning-gym draws question i from seed + i: the questions of seed 1 are those of seed 0, moved by one. So the seed
# of held-out questions is far away from that of training.
HELD_OUT_SEED = 1_000_000_000


def is_generated(path: str | None) -> bool:
    return path is not None and path.startswith(PREFIX)


def held_out_task(path: str, task: Mapping[str, Json]) -> dict[str, Json]:
    """A task's parameters, with the seed of held-out questions where they name none; a file's are left as they are."""
    return {"seed": HELD_OUT_SEED, **task} if is_generated(path) else dict(task)


def task_rows(path: str, parameters: Mapping[str, Json], limit: int | None) -> Iterator[dict[str, Any]]:
    """The rows of "reasoning_gym:TASK" or "reasoning_gym:TASK+TASK", in order.

    parameters: the task's own, with its `seed` and `size`; for several tasks a mapping of such mappings by task, beside
    `seed` and `size` for all. size: how many rows in all; without it `limit`, or 500. Raises DataError, which names the
    settings data.path and data.task."""
    tasks = path.removeprefix(PREFIX).split("+")
    if len(set(tasks)) < len(tasks):
        raise DataError(f"{path} names a task twice", where=named("data.path"), remedy="name each once")
    try:
        check_installed()
    except RewardError as error:
        raise DataError(f"{path}: {error}", where=named("data.path")) from None
    seed, size, own = _split_parameters(tasks, parameters, limit or DEFAULT_SIZE)
    sizes = [size // len(tasks) + (i < size % len(tasks)) for i in range(len(tasks))]
    rows = [
        _rows_of(task, {"seed": seed, "size": count, **own[task]}, is_only=len(tasks) == 1)
        for task, count in zip(tasks, sizes, strict=True)
        if count]
    return (row for together in zip_longest(*rows) for row in together if row is not None)


def _split_parameters(
    tasks: Sequence[str], parameters: Mapping[str, Json], size: int
) -> tuple[int, int, dict[str, dict[str, Json]]]:
    """(seed, number of rows in all, each task's own parameters). size: where the parameters name none."""
    shared = {"seed": TRAINING_SEED, "size": size}
    own: dict[str, dict[str, Json]] = {task: {} for task in tasks}
    for key, value in parameters.items():
        where = named(f"data.task.{key}")
        if key in shared:
            least = 0 if key == "seed" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError(where=where, seen=repr(value), expected=f"a whole number >= {least}")
            shared[key] = value
        elif len(tasks) == 1:
            own[tasks[0]][key] = value
        elif key in own and isinstance(value, dict):
            own[key] = value
        else:
            raise DataError(
                where=where, seen=repr(value),
                expected=f"with several tasks seed, size, or a task's name ({', '.join(tasks)}) with a mapping of its "
                "parameters")
    return shared["seed"], shared["size"], own


def _rows_of(task: str, config: dict[str, Json], is_only: bool) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", "from rewards.reasoning_gym_worker import generate; generate()"],
        input=json.dumps({"task": task, "config": config}), capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, (
            str(project_root()), os.environ.get("PYTHONPATH"))))})
    first, _, rest = done.stdout.partition("\n")
    if first:
        _refuse(json.loads(first), task, config, is_only)
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DataError(
            f"reasoning-gym could not make {task} with {json.dumps(config)}: {last_line}", where=named("data.path"),
            remedy=f"other parameters ({named('data.task')})")
    return [
        {
            "id": f"{task}-{config['seed']}-{entry['index']}", "question": entry["question"], "answer": entry["answer"],
            COLUMN: {"task": task, "config": config, "index": entry["index"]}}
        for entry in map(json.loads, rest.splitlines())]


def _refuse(found: Mapping[str, Any], task: str, config: Mapping[str, Json], is_only: bool) -> None:
    """Raises DataError if the generating process says that something is wrong."""
    place = "data.task" if is_only else f"data.task.{task}"
    if found["problem"] == "task":
        near = closest(task, found["known"])
        meant = f"did you mean {near!r}?" if near else f"there are: {', '.join(found['known'])}"
        raise DataError(f"reasoning-gym has no task {task!r}; {meant}", where=named("data.path"))
    if found["problem"] == "key":
        key, near = found["key"], closest(found["key"], found["known"])
        raise DataError(
            f"saw {config[key]!r}; {task} has no such parameter{f', did you mean {near}?' if near else ''} It has: "
            f"{', '.join(found['known'])}", where=named(f"{place}.{key}"))
    if found["problem"] == "value":
        given = {key: value for key, value in config.items() if key not in ("seed", "size")}
        blamed = {key: value for key, value in given.items() if key in found["message"]} or given
        settings = ", ".join(named(f"{place}.{key}", repr(value)) for key, value in blamed.items())
        raise DataError(
            f"refused by {task} ({found['message']}); see its parameters in reasoning-gym's documentation",
            where=settings or f"its parameters {dict(config)!r}")
