"""Completions of a reasoning-gym question -> what the task's own scorer says: 105 procedural tasks, of which many have
no single answer.

Questions come from `data: reasoning_gym:TASK` (rl/questions/generated.py) with a column `reasoning_gym`: {"task",
"config", "index"}, from which the whole entry that a scorer needs is made again, in a worker that can be killed
(reasoning_gym_worker.py). So records, checkpoints and digests carry a hundred bytes instead of boards and mazes. A
scorer that raises, hangs or dies on an answer gives it 0, and is counted in `failed_share` or `timed_out_share`. Needs
`pip install reasoning-gym`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache

from rewards.contract import GroupScore, RewardError
from rewards.extraction import extract
from rewards.processes.pool import WorkerPool

COLUMN = "reasoning_gym"
INSTALL = "pip install -c constraints.txt -e '.[reasoning-gym]'"
_OTHER_QUESTION = -1.0  # reasoning_gym_worker.OTHER_QUESTION: importing that module would import the library


def score(
    *, question: str, completions: list[str], reasoning_gym: Mapping[str, object], **columns: object
) -> GroupScore:
    """r_i = the task's score of the final answer of completion i, in [0, 1]; many tasks give part of it for an answer
    that is close, or for any answer at all. Without an answer 0.

    The final answer is what stands in the last <answer>...</answer> (reasoning-gym's own form; a \\boxed{} inside of it
    counts), or else what extraction.py finds. Raises RewardError without the library, and where the reference leads to
    another question.
    """
    answers = [_final_answer(completion) for completion in completions]
    reference = json.dumps(dict(reasoning_gym), sort_keys=True)
    different = list(dict.fromkeys(answer for answer in answers if answer is not None))
    outcomes = dict(zip(different, _pool().call([(reference, question, answer) for answer in different]), strict=True))
    values: dict[str | None, float] = {None: 0.0}
    for answer, outcome in outcomes.items():
        value = 0.0 if outcome.value is None else float(outcome.value)
        if value == _OTHER_QUESTION:
            raise RewardError(
                f"reasoning-gym makes another question of {reference}; the installed version is not the one that the "
                "questions were made with. Install that one, or start a new run")
        values[answer] = value
    statuses = [outcomes[answer].status for answer in answers if answer is not None]
    return GroupScore(
        scores=[values[answer] for answer in answers],
        metrics={"timed_out_share": statuses.count("timed_out") / len(answers),
                 "failed_share": sum(status in ("failed", "died") for status in statuses) / len(answers)},
        answers=answers)


def solved(
    *, question: str, completions: list[str], reasoning_gym: Mapping[str, object], **columns: object
) -> GroupScore:
    """r_i = 1 where `score` gives the full mark, else 0: held-out accuracy counts what is right, and no part of it."""
    scored = score(question=question, completions=completions, reasoning_gym=reasoning_gym)
    return GroupScore([float(value == 1.0) for value in scored.scores], scored.metrics, answers=scored.answers)


score.needs_columns = solved.needs_columns = (COLUMN,)  # type: ignore[attr-defined]


def _final_answer(completion: str) -> str | None:
    end = completion.rfind("</answer>")
    start = completion.rfind("<answer>", 0, max(end, 0))
    if start < 0:
        return extract(completion).answer
    inside = completion[start + len("<answer>"):end].strip()
    boxed = extract(inside)
    return (boxed.answer if boxed.rule == "boxed" else inside) or None


@cache
def _pool() -> WorkerPool:
    check_installed()
    return WorkerPool("rewards.reasoning_gym_worker:score_entry")


def check_installed() -> None:
    """Raises RewardError with the line to type where the library is missing."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise RewardError("reasoning-gym is not installed", remedy=INSTALL)
