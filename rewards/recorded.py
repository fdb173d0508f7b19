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
        raise RecordedError(
            f"--rollouts: {path} "
            + (
                "is a folder without rollouts.jsonl; expected a run's folder (with "
                "tracking.rollouts_every=0 a run records none)"
                if path.is_dir()
                else "does not exist"))
    heads = list(_heads(file))
    if not heads:
        raise RecordedError(f"--rollouts: {file} holds no groups")
    if step is not None and all(head[1] != step for head in heads):
        steps = sorted({head[1] for head in heads})
        raise RecordedError(f"--step: saw {step}; {file} has steps {steps[0]} to {steps[-1]}")
    in_step = [head for head in heads if step is None or head[1] == step]
    if question_id is None:
        last = heads[-1][1] if step is None else step
        offset = next(head[0] for head in heads if head[1] == last)
    else:
        with_id = [head for head in in_step if head[2] == question_id]
        if not with_id:
            known = list(dict.fromkeys(head[2] for head in in_step))
            near = difflib.get_close_matches(question_id, known, n=1, cutoff=0.0)
            where = f"step {step}" if step is not None else str(file)
            raise RecordedError(
                f"--question-id: saw {question_id!r}, which {where} does not have; the closest is {near[0]!r}"
                if near
                else f"--question-id: saw {question_id!r}, which {where} does not have")
        offset = with_id[-1][0]
    with file.open("rb") as opened:
        opened.seek(offset)
        return _group(json.loads(opened.readline()))


def _heads(file: Path) -> list[tuple[int, int, str]]:
    """(offset, step, question id) of each group; a last line that a kill has cut is left out."""
    heads, offset = [], 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.endswith(b"\n"):
                try:
                    record = json.loads(line)
                    heads.append((offset, int(record["step"]), str(record["question_id"])))
                    _group(record)
                except (ValueError, KeyError, TypeError) as error:
                    raise RecordedError(
                        f"--rollouts: {file}:{number} is not a group of a run ({type(error).__name__}: {error})"
                    ) from None
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
        raise RecordedError(f"there is no {file} to read the run's rewards from; name one with --reward")
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["rewards"]
        return [RewardSpec(use=entry["use"], weight=float(entry["weight"]), name=entry["name"], style=entry["style"],
                           arguments=entry["arguments"]) for entry in entries]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise RecordedError(
            f"{file}: its rewards cannot be read ({type(error).__name__}: {error}); name one with --reward") from None
