"""Graded questions -> result.json, a Markdown table, and the lines on the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.records import GradedQuestion
from eval.scoring import Scores, curve_points, score_questions
from eval.store import RESULT
from rl.generate.vllm_engine import installed_version
from rl.runs.folder import write_atomically
from rl.runs.intervals import Interval
from rl.runs.summary import installed_versions

MARKDOWN = "result.md"
FEW_QUESTIONS = 100
"""Below so many, one question is a point or more, and the table says so."""


def benchmark_result(
    questions: Sequence[GradedQuestion], ks: Sequence[int], protocol: Mapping[str, Any]
) -> dict[str, Any]:
    """One benchmark's entry of result.json; ks: those that were asked for."""
    samples = min(len(question.samples) for question in questions)
    scores = score_questions(questions, sorted({*ks, *curve_points(samples)}))
    return {
        "num_questions": scores.num_questions, "num_samples": scores.num_samples, "k": list(ks), **_numbers(scores, ks),
        "truncated_share": scores.truncated_share, "unparsable_share": scores.unparsable_share,
        "timed_out_share": sum(question.timed_out_share for question in questions) / len(questions),
        "mean_completion_tokens": scores.mean_completion_tokens, "semantic_entropy": scores.semantic_entropy,
        "normalised_semantic_entropy": scores.normalised_semantic_entropy, "protocol": dict(protocol),
    }


def _numbers(scores: Scores, ks: Sequence[int]) -> dict[str, dict[str, float]]:
    """avg@k is the same for every k up to n: it stands under those that were asked for and under n. The others under
    all."""
    numbers = {f"avg@{k}": scores.avg for k in sorted({*ks, scores.num_samples})}
    for name, curve in (("pass", scores.pass_at), ("maj", scores.maj_at), ("best", scores.best_at)):
        numbers |= {f"{name}@{k}": interval for k, interval in curve.items()}
    return {name: asdict(interval) for name, interval in numbers.items()}


def write_result(folder: Path, head: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """result.json and result.md in the folder. head: model, adapter, settings, seed, wall_s and the like."""
    result = {
        **head, "versions": {**installed_versions(), "vllm": installed_version() or "not installed"},
        "benchmarks": dict(benchmarks)}
    write_atomically(folder / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_atomically(folder / MARKDOWN, markdown(result))
    return result


def markdown(result: Mapping[str, Any]) -> str:
    """A heading with the model, the table, and what it was sampled with."""
    adapter = f" with {result['adapter']}" if result.get("adapter") else ""
    lines = [f"# {result['model']}{adapter}", "", *_table(result["benchmarks"]), ""]
    for name, entry in result["benchmarks"].items():
        protocol = entry["protocol"]
        lines.append(
            f"- {name}: "
            + ", ".join(
                f"{key} {protocol[key]}"
                for key in (
                    "prompt", "chat_template", "chat_template_kwargs", "date", "stop_token_ids", "temperature", "top_p",
                    "max_tokens", "samples", "seed", "grader")
                if key in protocol))
    return "\n".join(lines) + "\n"


def _table(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    columns, rows = _cells(benchmarks)
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", *(f"| {' | '.join(row)} |" for row in rows)]


def terminal_table(benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    """Aligned columns; all numbers in percent, intervals of 95% over questions."""
    columns, rows = _cells(benchmarks)
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (columns, *rows)]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *_remarks(benchmarks)])


def _cells(benchmarks: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = ["benchmark", "questions", "k", "avg@k", "pass@k", "maj@k"]
    has_best = any(f"best@{max(entry['k'])}" in entry for entry in benchmarks.values())
    columns += [*(["best@k"] if has_best else []), "truncated", "no answer", "tokens", "entropy"]
    rows = []
    for name, entry in benchmarks.items():
        for k in entry["k"]:
            tokens = entry["mean_completion_tokens"]
            rows.append(
                [
                    name, str(entry["num_questions"]), str(k),
                    *(_percent(entry[f"{kind}@{k}"]) for kind in ("avg", "pass", "maj")),
                    *([_percent(entry[f"best@{k}"]) if f"best@{k}" in entry else "-"] if has_best else []),
                    f"{entry['truncated_share']:.1%}", f"{entry['unparsable_share']:.1%}",
                    "-" if tokens is None else f"{tokens:.0f}", f"{entry['normalised_semantic_entropy']:.3f}"])
    return columns, rows


def _remarks(benchmarks: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    for name, entry in benchmarks.items():
        if (count := entry["num_questions"]) < FEW_QUESTIONS:
            yield f"{name}: {count} questions, one of them is {100 / count:.1f} points"
        if (share := entry["timed_out_share"]) > 0.0:
            yield (
                f"{name}: {share:.2%} of the verdicts were not reached within the grader's deadline and count as wrong;"
                " python -m eval.grade tries again")
        if entry["truncated_share"] > 0.1:
            yield (
                f"{name}: {entry['truncated_share']:.0%} of the completions were cut at "
                f"{entry['protocol']['max_tokens']} tokens; a longer --max-tokens may change the numbers")


def _percent(interval: Mapping[str, float] | Interval) -> str:
    ends = asdict(interval) if isinstance(interval, Interval) else interval
    return f"{100 * ends['value']:.1f} [{100 * ends['low']:.1f}, {100 * ends['high']:.1f}]"
