"""Folders to look at, for tests of view/: lines as a run and an evaluation write them, without training anything."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.records import GradedQuestion, Sample, to_lines
from rl.runs.folder import RunFolder
from rl.runs.tracking import JsonLines, MetricsLog, RolloutsLog
from tests.reference.scored_groups import scored_group

HOSTILE = ("</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script> "
           "\ud83d \\boxed{7}")


def write_run(path: Path, num_steps: int, *, gold: str | None = "7", texts: Sequence[str] | None = None) -> Path:
    """A run of two groups a step: one whose majority is right from step 3 on and wrong before, one that is refused."""
    path.mkdir(exist_ok=True)
    folder = RunFolder(path)
    folder.config_file.write_text("seed: 0\noptim:\n  lr: 0.5\nselection:\n  low: null\n")
    with MetricsLog(folder) as metrics, RolloutsLog(folder) as rollouts:
        for step in range(1, num_steps + 1):
            metrics.log(step, "train", {"reward": step / 10, "normalised_entropy": 0.5, "step_s": 1.0})
            answers = ["7", "7", "8", None] if step >= 3 else ["8", "8", "7", None]
            group = _with_gold(scored_group(f"q{step % 3}", answers, texts=texts, num_tokens=[3, 5, 8, 13]), gold)
            rollouts.log(step, group, advantages=[0.5, 0.5, -0.5, -0.5], refused=None)
            even = _with_gold(scored_group("even", ["7"] * 4, truncated=[1]), gold)
            rollouts.log(step, even, advantages=None, refused="equal_rewards")
        metrics.log(num_steps, "eval", {"held_out/accuracy": 0.5, "held_out/low": 0.4, "held_out/high": 0.6})
    return path


def write_evaluation(path: Path, num_questions: int) -> Path:
    """Three samples of each question; result.json as far as the page reads it."""
    path.mkdir()
    (path / "settings.json").write_text(json.dumps({"tasks": {"sums": {"temperature": 1}}}))
    with JsonLines(path / "completions.jsonl") as lines:
        for number in range(num_questions):
            samples = tuple(Sample(f"so \\boxed{{{value}}}", str(value), float(value == 7), label, False, 4, 0)
                            for label, value in enumerate((7, 8, 9)))
            for line in to_lines(GradedQuestion("sums", f"q{number}", f"3+4+{number}-{number}=?", "7", {}, samples)):
                lines.append(line)
    interval = {"value": 1 / 3, "low": 0.2, "high": 0.5}
    (path / "result.json").write_text(json.dumps({"model": "m", "benchmarks": {"sums": {
        "num_questions": num_questions, "num_samples": 3, "avg@3": interval,
        "protocol": {"temperature": 1}}}}))
    return path


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]]


def _with_gold(scored: Any, gold: str | None) -> Any:
    question = dataclasses.replace(scored.group.question, answer=gold)
    prompt = dataclasses.replace(scored.group.prompt, question=question)
    return dataclasses.replace(scored, group=dataclasses.replace(scored.group, prompt=prompt))


def train_two_runs(folder: Path, *words: str) -> tuple[Path, Path]:
    """Real ones: GRPO and EMPO on the tiny model, with gold answers in the rollouts of both, of the first
    also tokens with their log-probabilities. The first completion of
    the first is hostile. words: settings in the place of those of a run of a second."""
    from tests.reference.whole_run import GRPO, no_pixels, train

    runs = folder / "grpo", folder / "empo"
    with no_pixels():
        assert train(runs[0], *GRPO, "tracking.token_logprobs=true", *words) == 0
        assert train(runs[1], *GRPO[:2], "optim.lr=1e-3", *words) == 0
    first, *others = (runs[0] / "rollouts.jsonl").read_bytes().splitlines(keepends=True)
    line = json.loads(first)
    line["completions"][0]["text"], line["question"] = HOSTILE, f"{line['question']} <b onclick=x>bold</b>"
    (runs[0] / "rollouts.jsonl").write_bytes(json.dumps(line).encode() + b"\n" + b"".join(others))
    return runs
