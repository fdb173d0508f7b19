"""A pipeline in one page: what each stage did to held-out accuracy and what it cost, as summary.json, summary.md, a
table on the terminal and one picture over all stages (curve.png)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rl.picture import (
    COLOURS,
    columns_of,
    curve_of,
    new_figure,
    plot_style,
    save_png,
)
from rl.runs.folder import RunFolder, write_atomically
from rl.runs.intervals import Interval
from rl.runs.summary import read_summary
from rl.runs.tracking import HELD_OUT_ACCURACY, HELD_OUT_HIGH, HELD_OUT_LOW, read_json_lines
from rl.stages.plan import Stage
from rl.stages.records import PipelineRecords

COLUMNS = ("stage", "kind", "starts from", "before", "after", "steps", "sampled tokens", "seconds", "what it gave")


@dataclass(frozen=True, slots=True)
class StageSummary:
    """before, after: held-out accuracy, or None. metric: which, such as avg@8. num_sampled_tokens: completions, without
    evaluations.
    seconds: of the stage's processes, imports and evaluations included. gave: in words."""

    name: str
    kind: str
    starts_from: str
    metric: str | None
    before: Interval | None
    after: Interval | None
    steps: int | None
    num_sampled_tokens: int | None
    seconds: float
    gave: str
    folder: str


def write_pipeline_summary(folder: Path, plan: Sequence[Stage], records: PipelineRecords) -> str:
    """Writes the three files; returns the table with where they are. Raises what reading the stages' results raises."""
    stages = [_stage_summary(stage, plan, records[stage.name].seconds) for stage in plan]
    file = RunFolder(folder).summary_file
    write_atomically(
        file, json.dumps({"stages": [asdict(stage) for stage in stages]}, indent=2, allow_nan=False) + "\n")
    rows = [_row(stage) for stage in stages]
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *(f"| {' | '.join(row)} |" for row in rows)]
    markdown = file.with_suffix(".md")
    write_atomically(markdown, f"# {folder.name}\n\n" + "\n".join(lines) + "\n")
    picture = draw_pipeline(plan, RunFolder(folder).curve_file, folder.name)
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (COLUMNS, *rows)]
    places = [f"{'summary':<14}{file}, {markdown.name}", *([f"{'curves':<14}{picture}"] if picture else [])]
    return "\n".join([table[0], "-" * len(table[0]), *table[1:], "", *places])


def draw_pipeline(plan: Sequence[Stage], out: Path, title: str) -> Path | None:
    """Held-out accuracy over the steps of all warm-ups and runs, one after the other; evaluations of benchmarks as
    diamonds where they stand. None, and no file, where nothing was evaluated."""
    with plot_style():
        figure, (axis,) = new_figure(1, 1, (11.0, 4.8))
        begin, drawn = 0, 0
        borders: list[tuple[float, str]] = []
        for stage in plan:
            if stage.kind == "eval":
                drawn += _draw_evaluation(axis, stage, begin)
            if stage.kind not in ("warmup", "rl"):
                borders.append((begin, stage.name))
                continue
            records = read_json_lines(RunFolder(stage.folder).metrics_file)
            curve = curve_of(records, HELD_OUT_ACCURACY)
            colour = COLOURS[0 if stage.kind == "rl" else 1]
            if curve:
                steps, values = columns_of(curve)
                places = [begin + step for step in steps]
                low, high = (dict(curve_of(records, name)) for name in (HELD_OUT_LOW, HELD_OUT_HIGH))
                axis.plot(places, values, color=colour, marker="o", markersize=4)
                axis.fill_between(
                    places, [low.get(step, value) for step, value in curve],
                    [high.get(step, value) for step, value in curve], color=colour, alpha=0.18, linewidth=0)
                drawn += 1
            length = max([int(str(record["step"])) for record in records], default=0)
            axis.axvspan(begin, begin + length, color=colour, alpha=0.04, linewidth=0)
            axis.text(begin + length / 2, 1.03, stage.name, ha="center", color=colour, fontweight="bold", fontsize=9)
            begin += length
        if not drawn:
            return None
        for place, name in _joined(borders):
            axis.axvline(place, color="#868e96", linewidth=1.0, linestyle="--")
            axis.text(place, 0.02, f" {name}", rotation=90, va="bottom", ha="right", fontsize=8.5, color="#495057")
        axis.set(
            xlabel="step, counted through all stages (orange: supervised, blue: RL)",
            ylabel="held-out accuracy, 95% interval", ylim=(0, 1.1), xlim=(-0.01 * max(begin, 1), 1.01 * max(begin, 1)))
        axis.set_title(title, pad=16)
        save_png(figure, out)
    return out


def _draw_evaluation(axis: Any, stage: Stage, place: int) -> int:
    benchmarks = _read(stage.folder / "result.json")["benchmarks"]
    for name, entry in benchmarks.items():
        value = _average(entry)[1]
        axis.plot([place], [value["value"]], marker="D", color=COLOURS[3], linestyle="none", zorder=5)
        axis.annotate(
            f"{name} {value['value']:.3f} ", (place, value["value"]), ha="right", va="top", fontsize=8.5,
            color=COLOURS[3])
    return len(benchmarks)


def _joined(borders: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    names: dict[float, list[str]] = {}
    for place, name in borders:
        names.setdefault(place, []).append(name)
    return [(place, ", ".join(there)) for place, there in names.items()]


def _stage_summary(stage: Stage, plan: Sequence[Stage], seconds: float) -> StageSummary:
    metric = before = after = steps = tokens = None
    if stage.kind in ("warmup", "rl"):
        summary = read_summary(RunFolder(stage.folder))
        steps = summary.steps
        tokens = summary.num_sampled_tokens if stage.kind == "rl" else None
        both = (summary.held_out_before or {}, summary.held_out_after or {})
        metric = next(iter({**both[0], **both[1]}), None)
        before, after = (found.get(metric or "") for found in both)
        gave = "a policy"
        if summary.stop_reason == "watchdog":
            gave = f"its best policy, of step {summary.best.step if summary.best else 0}: stopped by the watchdog"
    elif stage.kind == "reject":
        report = _read(stage.folder / "report.json")
        lengths = [found for found in (report["lengths_kept"], report["lengths_dropped"]) if found is not None]
        tokens = sum(round(found["mean"] * found["completions"]) for found in lengths)
        mixed = f", {report['rows'] - report['kept']:,} mixed in" if report["rows"] > report["kept"] else ""
        gave = f"{report['kept']:,} solutions of {report['completions']:,} samples{mixed}"
    else:
        values = [(name, *_average(entry)) for name, entry in _read(stage.folder / "result.json")["benchmarks"].items()]
        gave = ", ".join(f"{name} {metric_name} {value['value']:.3f}" for name, metric_name, value in values)
    starts_from = "its own model" if stage.policy is None else plan[stage.policy].name
    return StageSummary(
        stage.name, stage.kind, starts_from, metric, before, after, steps, tokens, seconds, gave, str(stage.folder))


def _average(entry: Mapping[str, Any]) -> tuple[str, Mapping[str, float]]:
    """The benchmark's avg@k over all its samples."""
    name = f"avg@{entry['num_samples']}"
    return name, entry[name]


def _row(stage: StageSummary) -> list[str]:
    def interval(found: Interval | None) -> str:
        return "" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"

    return [
        stage.name, stage.kind, stage.starts_from, interval(stage.before), interval(stage.after),
        "" if stage.steps is None else str(stage.steps),
        "" if stage.num_sampled_tokens is None else f"{stage.num_sampled_tokens:,}", f"{stage.seconds:.0f}", stage.gave]


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
