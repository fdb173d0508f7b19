"""Rejection sampling on models/tiny-arith through the command line, and sampled questions made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.reject import main
from rl.rejection.samples import Completion, SampledQuestion
from tests.reference.whole_run import one_thread

ANSWERED = "models/tiny-arith/questions/train_with_answers.jsonl"
UNANSWERED = "models/tiny-arith/questions/train.jsonl"

# A run of about two seconds: 3 chunks of 16, 16 and 8 questions x 4 completions.
SMALL = (
    f"data={ANSWERED}", "data.limit=40", "sampling.samples=4", "sampling.questions_per_chunk=16", "keep.order=shortest",
    "keep.per_question=4", "tracking.progress=lines")
LABEL_FREE = (f"data={UNANSWERED}", "rewards.0.use=rewards.majority:majority_vote", "keep.high=0.9")


def reject(run_dir: Path, *words: str) -> int:
    """`python -m rl.reject` in this process on one thread, with the settings of SMALL, then `words`; returns the exit
    code."""
    return command(*SMALL, f"run_dir={run_dir}", *words)


def command(*words: str) -> int:
    """`python -m rl.reject` in this process on one thread; returns the exit code."""
    with one_thread():
        return main(list(words))


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "solutions.jsonl").read_text().splitlines()]


def report_of(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return report


def completion(
    text: str, reward: float = 1.0, *, tokens: int | None = None, truncated: bool = False, exact: bool = True
) -> Completion:
    """tokens: by default as many as the text has characters."""
    return Completion(text, tokens or len(text), truncated, 0, reward, {"accuracy": reward}, None, 0, exact)


def sampled(
    completions: Sequence[Completion], *, name: str = "q", entropy: float | None = 0.5, judged: bool = True
) -> SampledQuestion:
    return SampledQuestion(name, entropy, judged, tuple(completions))
