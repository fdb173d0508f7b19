"""A run's folder -> one recorded group, and the rewards that the run was configured with; for explain.py.

Reads rollouts.jsonl (written by rl/runs/tracking.py) and config.resolved.yaml line by line, without loading anything of
the training side.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.errors import UserError
from rewards.scoring import RewardSpec


class RecordedError(UserError):
    """There is no such run, step or question; the message names what there is."""


@dataclass(frozen=True, slots=True)
class RecordedGroup:
    """One line of rollouts.jsonl. completions, answers, labels, rewards: [G]."""

    step: int
    question_id: str
    question: str
    answer: str | None
    columns: Mapping[str, object]
    prompt: str
    completions: Sequence[str]
    answers: Sequence[str | None]
    labels: Sequence[int]
    rewards: Sequence[float]


def read_group(path: Path, step: int | None = None, question_id: str | None = None) -> RecordedGroup:
    """path: a run's folder or its rollouts.jsonl. Of several groups the last one of that question, else the first of
    the step, else of the file's last step. Raises RecordedError."""
    file = path / "rollouts.jsonl" if path.is_dir() else path
    if not file.is_file():
        if not path.is_dir():
            raise RecordedError(f"{path} does not exist", where="--rollouts")
        raise RecordedError(
            f"{path} is a folder without rollouts.jsonl", where="--rollouts",
            expected="a run's folder (with tracking.rollouts_every=0 a run records none)")
    head = _chosen(_heads(file), file, step, question_id)
    with file.open("rb") as opened:
        opened.seek(head.offset)
        return _group(json.loads(opened.readline()))


@dataclass(frozen=True, slots=True)
class _Head:
    """Where a group's line begins, and what it is of."""

    offset: int
    step: int
    question_id: str


def _chosen(heads: Sequence[_Head], file: Path, step: int | None, question_id: str | None) -> _Head:
    """By the rule of `read_group`."""
    if not heads:
        raise RecordedError(f"{file} holds no groups", where="--rollouts")
    in_step = [head for head in heads if step is None or head.step == step]
    if not in_step:
        steps = [head.step for head in heads]
        raise RecordedError(
            where="--step", seen=str(step), expected=f"one of the steps {min(steps)} to {max(steps)} of {file}")
    if question_id is None:
        return next(head for head in in_step if head.step == in_step[-1].step)
    with_id = [head for head in in_step if head.question_id == question_id]
    if not with_id:
        known = dict.fromkeys(head.question_id for head in in_step)
        (near,) = difflib.get_close_matches(question_id, known, n=1, cutoff=0.0)
        where = f"step {step}" if step is not None else str(file)
        raise RecordedError(
            where="--question-id", seen=f"{question_id!r}, which {where} does not have",
            expected=f"one of its questions; the closest is {near!r}")
    return with_id[-1]


def _heads(file: Path) -> list[_Head]:
    """Of each group; a last line that a kill has cut is left out."""
    heads, offset = [], 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.endswith(b"\n"):
                try:
                    record = json.loads(line)
                    heads.append(_Head(offset, int(record["step"]), str(record["question_id"])))
                    _group(record)
                except (ValueError, KeyError, TypeError) as error:
                    raise RecordedError(
                        f"{file}:{number} is not a group of a run ({type(error).__name__}: {error})",
                        where="--rollouts") from None
            offset += len(line)
    return heads


def _group(record: Mapping[str, Any]) -> RecordedGroup:
    completions = record["completions"]
    return RecordedGroup(
        step=record["step"], question_id=record["question_id"], question=record["question"], answer=record["answer"],
        columns=record.get("columns", {}), prompt=record["prompt"], completions=[item["text"] for item in completions],
        answers=[item["answer"] for item in completions], labels=[item["cluster"] for item in completions],
        rewards=[item["reward"] for item in completions])


def rewards_of_run(path: Path) -> list[RewardSpec]:
    """The terms that the run beside rollouts.jsonl was configured with. Raises RecordedError."""
    import yaml

    file = (path if path.is_dir() else path.parent) / "config.resolved.yaml"
    if not file.is_file():
        raise RecordedError(f"there is no {file} to read the run's rewards from", remedy="name one with --reward")
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["rewards"]
        return [RewardSpec(use=entry["use"], weight=float(entry["weight"]), name=entry["name"], style=entry["style"],
                           arguments=entry["arguments"]) for entry in entries]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise RecordedError(
            f"its rewards cannot be read ({type(error).__name__}: {error})", where=str(file),
            remedy="name one with --reward") from None
