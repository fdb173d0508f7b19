"""metrics.jsonl -> pictures: one run's learning curves, or several methods against each other.

    python -m rl.picture RUN [RUN ...] --out curves.png
    python -m rl.picture "GRPO=runs/grpo-*" "EMPO=runs/empo-*" --out comparison.png

One run gives `draw_curves`, several or any with a label give `compare_runs`. A run is its folder, or its metrics.jsonl.
matplotlib is imported only when something is drawn, with the back end that needs no screen. To show another curve: a
panel function and its place in `draw_curves`.
"""

from __future__ import annotations

import argparse
import glob
import io
import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from rewards.errors import report_errors
from rl.runs.folder import RunFolder, write_atomically
from rl.runs.tracking import (
    ACCURACY,
    BENCHMARK_PREFIX,
    HELD_OUT_ACCURACY,
    HELD_OUT_HIGH,
    HELD_OUT_LOSS,
    HELD_OUT_LOW,
    LOSS,
    NORMALISED_ENTROPY,
    REFUSED_EQUAL_REWARDS,
    REFUSED_SKIPPED,
    REFUSED_TOO_HIGH,
    REFUSED_TOO_LOW,
    REWARD,
    Record,
    read_json_lines,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve: TypeAlias = "list[tuple[int, float]]"

COLOURS = ("#2563eb", "#e8590c", "#2b8a3e", "#9c36b5", "#c2255c", "#0c8599")
DPI = 120
_STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#adb5bd", "axes.labelcolor": "#343a40",
    "axes.grid": True, "grid.color": "#e9ecef", "xtick.color": "#495057", "ytick.color": "#495057",
    "legend.frameon": False, "lines.linewidth": 1.8, "lines.solid_capstyle": "round"}


def draw_curves(metrics: Path | Sequence[Path], out: Path, title: str) -> None:
    """One run as a 2x2 figure: reward and training accuracy, held-out accuracy, semantic entropy, refused groups, over
    steps.

    metrics: the run's metrics.jsonl, or several that follow each other (a step in a later one replaces an earlier
    one's).
    Raises: ValueError where no line holds anything yet.
    """
    records = [
        record for path in ([metrics] if isinstance(metrics, Path) else metrics) for record in read_json_lines(path)]
    if not records:
        raise ValueError(f"{metrics} holds no metrics yet; draw it after the first step")
    with plot_style():
        figure, axes = new_figure(2, 2, (11.0, 7.0))
        _draw_reward(axes[0], records)
        _draw_held_out(axes[1], records)
        _draw_entropy(axes[2], records)
        _draw_refused(axes[3], records)
        last = max(int(cast(int, record["step"])) for record in records)
        for axis in axes:
            axis.set_xlim(-0.015 * max(last, 1), 1.015 * max(last, 1))
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            axis.set_xlabel("training step")
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        save_png(figure, out)


def draw_warmup(metrics: Path, out: Path, title: str) -> None:
    """A supervised warm-up as two panels: cross-entropy of training and held-out solutions, and held-out accuracy, over
    steps."""
    records = read_json_lines(metrics)
    with plot_style():
        figure, axes = new_figure(1, 2, (11.0, 3.8))
        axes[0].set(title="Cross-entropy of solutions", ylabel="nats per completion token")
        for name, label, colour in ((LOSS, "training", COLOURS[0]), (HELD_OUT_LOSS, "held-out", COLOURS[2])):
            if curve := curve_of(records, name):
                axes[0].plot(*columns_of(curve), color=colour, label=label)
        axes[0].set_ylim(bottom=0.0)
        axes[0].legend(loc="best")
        _draw_held_out(axes[1], records)
        for axis in axes:
            axis.set_xlabel("step")
        figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
        save_png(figure, out)


def compare_runs(runs: Mapping[str, Sequence[Path]], out: Path, title: str = "Accuracy on held-out questions") -> None:
    """Held-out accuracy over steps: for each label the mean over its runs (seeds), and a band from their least to their
    largest.

    runs: {label: metrics.jsonl of each seed}. Only steps that all runs of a label evaluated are drawn.
    Raises: ValueError that names the label without a common evaluation.
    """
    with plot_style():
        figure, (axis,) = new_figure(1, 1, (8.0, 4.8))
        most_seeds = 1
        for index, (label, paths) in enumerate(runs.items()):
            curves = [dict(curve_of(read_json_lines(path), HELD_OUT_ACCURACY)) for path in paths]
            steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
            if not steps:
                raise ValueError(
                    f"the {len(curves)} runs of {label!r} have no evaluation at a step that all of them share; "
                    "compare runs with the same evaluation.every")
            most_seeds = max(most_seeds, len(curves))
            columns = [[curve[step] for curve in curves] for step in steps]
            means = [sum(values) / len(values) for values in columns]
            seeds = f", {len(curves)} seeds" if len(curves) > 1 else ""
            colour = COLOURS[index % len(COLOURS)]
            axis.plot(steps, means, color=colour, marker="o", markersize=4,
                      label=f"{label}{seeds}: {means[0]:.2f} → {means[-1]:.2f}")
            axis.fill_between(steps, [min(values) for values in columns], [max(values) for values in columns],
                              color=colour, alpha=0.18, linewidth=0)
        axis.set(xlabel="training step", ylabel="accuracy (mean over samples)", ylim=(0, 1.02), title=title)
        if most_seeds > 1:
            axis.text(1.0, 1.02, "line: mean over seeds, band: least to largest", transform=axis.transAxes, ha="right",
                      fontsize=8.5, color="#868e96")
        axis.legend(loc="best")
        save_png(figure, out)


def _draw_reward(axis: Axes, records: Sequence[Record]) -> None:
    axis.set(title="Training reward", ylabel="mean over completions")
    drawn = [(name, curve_of(records, name)) for name in (REWARD, ACCURACY)]
    for (name, curve), colour in zip(drawn, COLOURS, strict=False):
        if curve:
            axis.plot(*columns_of(curve), color=colour, alpha=0.25, linewidth=1.0)
            axis.plot(*columns_of(_smoothed(curve)), color=colour, label=name)
    if all(curve for _, curve in drawn):
        axis.legend(loc="best")


def _draw_held_out(axis: Axes, records: Sequence[Record]) -> None:
    curve = curve_of(records, HELD_OUT_ACCURACY)
    benchmarks = _draw_benchmarks(axis, records)
    axis.set(
        title="Accuracy on held-out questions" + (" and benchmarks" if benchmarks else ""),
        ylabel="mean over samples, 95% interval", ylim=(0, 1.02))
    if not curve and benchmarks:
        axis.legend(loc="best", fontsize=8.5)
        return
    if not curve:
        axis.text(0.5, 0.5, "no evaluation", transform=axis.transAxes, ha="center", color="#868e96")
        return
    steps, values = columns_of(curve)
    low, high = dict(curve_of(records, HELD_OUT_LOW)), dict(curve_of(records, HELD_OUT_HIGH))
    # Bars rather than a band alone: a run with two evaluations has no band to see between them.
    axis.errorbar(steps, values, [[value - low.get(step, value) for step, value in curve],
                                  [high.get(step, value) - value for step, value in curve]],
                  color=COLOURS[2], marker="o", markersize=4.5, capsize=2.5, elinewidth=1.0, label="held-out")
    axis.fill_between(
        steps, [low.get(step, value) for step, value in curve], [high.get(step, value) for step, value in curve],
        color=COLOURS[2], alpha=0.15, linewidth=0)
    if benchmarks:
        axis.legend(loc="best", fontsize=8.5)
    # Off the curve and inside the frame: the first number lies below a rising curve, the last one below a high point.
    is_rising = len(curve) > 1 and curve[1][1] > curve[0][1]
    _annotate(axis, curve[0], "left", is_below=is_rising and curve[0][1] > 0.1)
    if len(curve) > 1:
        _annotate(axis, curve[-1], "right", is_below=curve[-1][1] > 0.5)


def _draw_benchmarks(axis: Axes, records: Sequence[Record]) -> list[str]:
    """avg@k of each benchmark over steps, with its interval; returns their names."""
    pattern = re.compile(re.escape(BENCHMARK_PREFIX) + r".+/avg@[0-9]+")
    names = sorted({name for record in records for name in record if pattern.fullmatch(name)})
    colours = [colour for index, colour in enumerate(COLOURS) if index != 2]  # that one is the held-out questions'
    for name, colour in zip(names, itertools.cycle(colours), strict=False):
        curve = curve_of(records, name)
        low, high = dict(curve_of(records, f"{name}/low")), dict(curve_of(records, f"{name}/high"))
        axis.errorbar(
            *columns_of(curve),
            [
                [value - low.get(step, value) for step, value in curve],
                [high.get(step, value) - value for step, value in curve]],
            color=colour, marker="s", markersize=3.5, capsize=2.0, elinewidth=0.8,
            label=name.removeprefix(BENCHMARK_PREFIX))
    return names


def _annotate(axis: Axes, point: tuple[int, float], align: Literal["left", "right"], *, is_below: bool) -> None:
    axis.annotate(f"{point[1]:.3f}", point, xytext=(6 if align == "left" else -6, -18 if is_below else 11),
                  textcoords="offset points", ha=align, color="#343a40", fontweight="bold")


def _draw_entropy(axis: Axes, records: Sequence[Record]) -> None:
    axis.set(title="Semantic entropy", ylabel="H / ln G (0: all agree, 1: all differ)", ylim=(0, 1.02))
    curve = curve_of(records, NORMALISED_ENTROPY)
    if curve:
        axis.plot(*columns_of(curve), color=COLOURS[3], alpha=0.25, linewidth=1.0)
        axis.plot(*columns_of(_smoothed(curve)), color=COLOURS[3])


def _draw_refused(axis: Axes, records: Sequence[Record]) -> None:
    axis.set(title="Groups that did not train", ylabel="share of sampled groups", ylim=(0, 1.02))
    reasons = {
        "entropy too low": REFUSED_TOO_LOW, "entropy too high": REFUSED_TOO_HIGH,
        "equal rewards": REFUSED_EQUAL_REWARDS, "not judged": REFUSED_SKIPPED}
    curves = {label: dict(curve_of(records, name)) for label, name in reasons.items()}
    colours = dict(zip(reasons, ("#748ffc", "#ffa94d", "#ced4da", "#e03131"), strict=True))
    # A bound that is not set refuses nothing and needs no place in the legend.
    curves = {label: curve for label, curve in curves.items() if any(curve.values())}
    steps = sorted(set().union(*curves.values()))
    if steps:
        axis.stackplot(
            steps, [[curve.get(step, 0.0) for step in steps] for curve in curves.values()], labels=list(curves),
            colors=[colours[label] for label in curves], linewidth=0)
        axis.legend(loc="best", reverse=True)


def curve_of(records: Sequence[Record], name: str) -> Curve:
    """(step, value) of one metric in the order of the steps; lines without it, or with null, are left out."""
    values = {cast(int, record["step"]): float(value) for record in records
              if isinstance(value := record.get(name), (int, float))}
    return sorted(values.items())


def columns_of(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _smoothed(curve: Curve) -> Curve:
    """Mean over a centred window of a tenth of the curve: what one batch of questions adds is noise."""
    reach = len(curve) // 20
    windows = [curve[max(0, index - reach):index + reach + 1] for index in range(len(curve))]
    return [
        (step, sum(value for _, value in window) / len(window))
        for (step, _), window in zip(curve, windows, strict=True)]


def plot_style() -> AbstractContextManager[None]:
    """Draw in this context: the look of all the project's pictures."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def new_figure(rows: int, columns: int, inches: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with the back end Agg, outside pyplot's registry: needs no screen and leaves no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def save_png(figure: Figure, out: Path) -> None:
    """Write the picture as a whole or not at all; its folder is made. Raises: OSError with the remedy."""
    buffer = io.BytesIO()
    # Without the metadata two drawings of the same numbers are the same file.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, buffer.getvalue())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return report_errors(lambda: _draw(arguments))


def _draw(arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rl.picture",
                                     description="Draw learning curves of one run, or compare several.")
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="run folder or metrics.jsonl, or label=pattern for a comparison over seeds")
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--title", help="title of the figure")
    options = parser.parse_args(arguments)
    try:
        runs = [_parse_run(text) for text in options.runs]
        if len(runs) == 1 and "=" not in options.runs[0]:
            path = runs[0][1][0]
            draw_curves(path, options.out, options.title or path.parent.name)
        else:
            grouped: dict[str, list[Path]] = {}
            for label, paths in runs:
                grouped.setdefault(label, []).extend(paths)
            compare_runs(grouped, options.out, **({"title": options.title} if options.title else {}))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


def _parse_run(text: str) -> tuple[str, list[Path]]:
    """`label=pattern` -> (label, each match's metrics.jsonl); a run without a label is named by its folder."""
    label, separator, pattern = text.rpartition("=")
    matches = [Path(match) for match in sorted(glob.glob(pattern))]
    paths = [RunFolder(match).metrics_file if match.is_dir() else match for match in matches]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise ValueError(f"no run at {pattern!r}: neither a folder with metrics.jsonl nor such a file; "
                         "give a path or a quoted pattern")
    return (label if separator else paths[0].parent.name), paths


if __name__ == "__main__":
    sys.exit(main())
