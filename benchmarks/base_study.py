"""Is EMPO for my model? Three tiny bases under the same settings, three seeds each. Prints two Markdown tables and
draws one picture.

    python benchmarks/base_study.py                              # all runs, one after the other;
    docs/is_empo_for_my_model.png python benchmarks/base_study.py --only brief-empo --seeds 0

The bases (models/README.md): `tiny-arith` has the ability and not the habit; `tiny-arith-brief` was pre-trained too
briefly to have the ability; `tiny-arith-plain` has it and never writes an answer in a form that is read. Each run is
configs/quickstart.yaml, of 30 steps, on another base, with another reward, or from a warm-up (configs/warmup_tiny.yaml
on few solutions); runs differ in nothing else, but that some have no watchdog, to show what it spares. A run whose
folder is complete, with the same configuration, is not repeated. Accuracies as in reward_study.py. To add a run: a line
in STUDY.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from study_runs import Job, accuracy_of, endings, finished, mean_and_each

from rl.paths import project_root
from rl.picture import COLOURS, new_figure, plot_style, save_png
from rl.runs.folder import RunFolder
from rl.runs.summary import Summary, read_summary
from rl.runs.tracking import HELD_OUT_ACCURACY, read_json_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRAIN, WARMUP = Path("configs/quickstart.yaml"), Path("configs/warmup_tiny.yaml")
BASES = {
    "tiny-arith": "The ability is latent", "tiny-arith-brief": "Pre-trained too briefly",
    "tiny-arith-plain": "Without the format"}
WARMUP_SETTINGS = (
    "model=models/tiny-arith-plain", "data.limit=64", "data.held_out_rows=0", "steps=20", "evaluation.every=5")
"""The warm-up teaches the form of an answer, so it is short: a few passes over 64 solutions."""
WARMUP_ROW = "warmup"
SAMPLES = 16
"""Of each question, where a base is measured before training."""

GRPO = ("data.path=models/tiny-arith/questions/train_with_answers.jsonl", "data.columns.answer=answer",
        "rewards.0.use=rewards.accuracy:accuracy", "selection.low=null", "selection.high=null")
RANDOM = (
    "rewards.0.use=rewards.controls:random_reward", "selection.low=null", "selection.high=null",
    "watchdog.enabled=false")
STEPS = ("steps=30",)
"""Of every run; the quick start has 40."""
UNWATCHED = ("watchdog.enabled=false",)


BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]
GREY = "#868e96"


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the study. colour: of its curve, None: in the picture only where it was stopped. warmed: starts from
    the warm-up of the same seed. shows_reward: its reward, which for EMPO is the share of agreement, is a dotted curve
    beside its accuracy."""

    base: str
    label: str
    colour: str | None
    overrides: tuple[str, ...] = ()
    warmed: bool = False
    shows_reward: bool = False


STUDY = {
    "latent-empo": Entry("tiny-arith", "EMPO", BLUE, shows_reward=True),
    "brief-empo": Entry("tiny-arith-brief", "EMPO", None),
    "brief-empo-unwatched": Entry("tiny-arith-brief", "EMPO without watchdog", BLUE, UNWATCHED, shows_reward=True),
    "brief-grpo": Entry("tiny-arith-brief", "GRPO, gold answers", GREEN, GRPO),
    "plain-empo": Entry("tiny-arith-plain", "EMPO", None),
    "plain-empo-unwatched": Entry("tiny-arith-plain", "EMPO alone, without watchdog", ORANGE, UNWATCHED),
    "plain-grpo-unwatched": Entry("tiny-arith-plain", "GRPO alone, without watchdog", PURPLE, (*GRPO, *UNWATCHED)),
    "warm-empo": Entry("tiny-arith-plain", "warm-up, then EMPO", BLUE, warmed=True, shows_reward=True),
    "warm-grpo": Entry("tiny-arith-plain", "warm-up, then GRPO, gold answers", GREEN, GRPO, warmed=True),
    "warm-random": Entry("tiny-arith-plain", "warm-up, then random reward", GREY, RANDOM, warmed=True),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the runs are, and further settings of every run and warm-up."""

    folder: Path
    run_overrides: tuple[str, ...] = ()
    warmup_overrides: tuple[str, ...] = ()


def warm_up(seed: int, settings: Settings) -> Summary:
    name = f"warmup-{seed}"
    return finished(
        Job(
            name, settings.folder / name, WARMUP, (*WARMUP_SETTINGS, *settings.warmup_overrides, f"seed={seed}"),
            "warmup"))


def run(name: str, seed: int, settings: Settings) -> Summary:
    """The summary of one run; where it starts from a warm-up, that is made first. Raises RuntimeError where one
    fails."""
    entry, warmup = STUDY[name], settings.folder / f"warmup-{seed}"
    start: tuple[str, ...] = (f"model=models/{entry.base}",)
    if entry.warmed:
        warm_up(seed, settings)
        start = (*start, f"model.adapter={warmup / 'adapter'}")
    overrides = (*STEPS, *start, *entry.overrides, *settings.run_overrides, f"seed={seed}", "tracking.rollouts_every=0")
    return finished(
        Job(
            f"{name}-{seed}", settings.folder / f"{name}-{seed}", TRAIN, overrides,
            after=warmup if entry.warmed else None))


def diagnose(base: str, folder: Path, questions: int) -> str:
    """What tells a user before training, as a table's row: `python -m eval.run` on the base, made once."""
    out = folder / f"{base}-before"
    words = [
        "--model", f"models/{base}", "--benchmarks", "tiny_arith", "-k", str(SAMPLES), "--limit", str(questions),
        "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "eval.run", *words], cwd=project_root(), env={"OMP_NUM_THREADS": "1"} | os.environ,
        capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"evaluating {base} ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    (found,) = json.loads((out / "result.json").read_text())["benchmarks"].values()
    shares = [_interval(found[f"{metric}@{SAMPLES}"]) for metric in ("avg", "maj", "pass")]
    return (
        f"| {base} | {' | '.join(shares)} | {found['unparsable_share']:.3f} | "
        f"{found['normalised_semantic_entropy']:.2f} |")


def _interval(ends: Mapping[str, float]) -> str:
    return f"{ends['value']:.3f} [{ends['low']:.3f}, {ends['high']:.3f}]"


def table(summaries: Mapping[str, Sequence[Summary]]) -> str:
    """One row per kind of run: means over the seeds, each seed behind them."""
    lines = [
        "| base | run | before, avg@8 | best on the way, avg@2 (step) | final, avg@8 | gain of the means | ended |",
        "|---|---|---|---|---|---|---|"]
    for name, runs in summaries.items():
        before, final = ([accuracy_of(when) for when in whens] for whens in zip(
            *((summary.held_out_before, summary.held_out_after) for summary in runs), strict=True))
        best = [summary.best for summary in runs if summary.best is not None]
        on_the_way = (
            f"{mean_and_each([item.value for item in best])} ({', '.join(str(item.step) for item in best)})"
            if best
            else "")
        base, label = ("tiny-arith-plain", "warm-up") if name == WARMUP_ROW else (STUDY[name].base, STUDY[name].label)
        gain = 100 * (statistics.fmean(final) - statistics.fmean(before))
        lines.append(
            f"| {base} | {label} | {mean_and_each(before)} | {on_the_way} | {mean_and_each(final)} | {gain:+.1f} | "
            f"{endings(runs)} |")
    return "\n".join(lines)


def draw(names: Sequence[str], seeds: Sequence[int], folder: Path, out: Path) -> None:
    """A panel per base: held-out accuracy over steps, the mean over the seeds and the band from least to largest. A
    warm-up lies left of step 0; a cross marks where the watchdog stopped a run, which up to there is the same run as
    without it. Dotted: what EMPO maximises."""
    bases = [base for base in BASES if any(STUDY[name].base == base for name in names)]
    with plot_style():
        figure, axes = new_figure(1, len(bases), (4.4 * len(bases) + 0.6, 5.8))
        for axis, base in zip(axes, bases, strict=True):
            runs = [name for name in names if STUDY[name].base == base]
            if any(STUDY[name].warmed for name in runs):
                _draw_warmup(axis, [folder / f"warmup-{seed}" for seed in seeds])
            for name in runs:
                if colour := STUDY[name].colour:
                    _draw_band(
                        axis, [_curve(folder / f"{name}-{seed}") for seed in seeds], 0, colour, STUDY[name].label)
                if STUDY[name].shows_reward:
                    rewards = [_curve(folder / f"{name}-{seed}", "reward_since_evaluation") for seed in seeds]
                    steps = sorted(set.intersection(*(set(curve) for curve in rewards)))
                    axis.plot(
                        steps, [statistics.fmean(curve[step] for curve in rewards) for step in steps], color=BLUE,
                        linestyle=":", linewidth=1.4, label="its reward: agreement (training)")
            _mark_stops(axis, [folder / f"{name}-{seed}" for name in runs for seed in seeds])
            axis.set(title=f"{BASES[base]}\n{base}", xlabel="training step", ylim=(-0.02, 1.02))
            if axis.get_legend_handles_labels()[0]:  # --only may leave a base without a curve
                axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8)
        axes[0].set_ylabel("held-out accuracy")
        save_png(figure, out)


def _curve(run_dir: Path, metric: str = HELD_OUT_ACCURACY) -> dict[int, float]:
    return {int(str(record["step"])): float(str(record[metric]))
            for record in read_json_lines(RunFolder(run_dir).metrics_file) if metric in record}


def _draw_band(axis: Axes, curves: Sequence[Mapping[int, float]], origin: int, colour: str, label: str) -> None:
    """Behind the end of a seed that was stopped, the mean and the band are those of the others."""
    steps = sorted(set().union(*curves))
    columns = [[curve[step] for curve in curves if step in curve] for step in steps]
    places = [step - origin for step in steps]
    axis.plot(
        places, [statistics.fmean(column) for column in columns], color=colour, marker="o", markersize=3, label=label)
    low, high = ([edge(column) for column in columns] for edge in (min, max))
    axis.fill_between(places, low, high, color=colour, alpha=0.18, linewidth=0)


def _mark_stops(axis: Axes, folders: Sequence[Path]) -> None:
    ends = [
        max(_curve(folder).items()) for folder in folders if read_summary(RunFolder(folder)).stop_reason == "watchdog"]
    if ends:
        axis.plot(
            [step for step, _ in ends], [accuracy for _, accuracy in ends], color="#c92a2a", marker="x", markersize=7,
            markeredgewidth=2, linestyle="none", zorder=5, label="the watchdog stops a run")


def _draw_warmup(axis: Axes, folders: Sequence[Path]) -> None:
    curves = [_curve(folder) for folder in folders]
    length = max(max(curve) for curve in curves)
    axis.axvspan(-length, 0, color="#f1f3f5", zorder=0)
    axis.text(-length / 2, 0.97, "warm-up", ha="center", va="top", fontsize=8, color="#495057")
    _draw_band(axis, curves, length, GREY, "warm-up on 64 solutions")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(STUDY), default=list(STUDY), metavar="NAME", help=", ".join(STUDY))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/base_study"), help="where the runs go")
    parser.add_argument(
        "--out", type=Path, default=project_root() / "docs" / "is_empo_for_my_model.png", help="the picture")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every run")
    parser.add_argument(
        "--set-warmup", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every warm-up")
    parser.add_argument("--questions", type=int, default=256, help="how many the bases are measured on before training")
    options = parser.parse_args(words)
    settings = Settings(options.folder.resolve(), tuple(options.set), tuple(options.set_warmup))
    # Seed by seed, so that an interrupted study has something of every run.
    runs = {(name, seed): run(name, seed, settings) for seed in options.seeds for name in options.only}
    summaries = {name: [runs[name, seed] for seed in options.seeds] for name in options.only}
    if any(STUDY[name].warmed for name in options.only):
        summaries = {WARMUP_ROW: [warm_up(seed, settings) for seed in options.seeds], **summaries}
    print(table(summaries))
    draw(options.only, options.seeds, settings.folder, options.out)
    print(
        f"\n| base, before training | avg@{SAMPLES} | maj@{SAMPLES} | pass@{SAMPLES} | without an answer | entropy / ln"
        f" {SAMPLES} |\n|---|---|---|---|---|---|")
    for base in BASES:
        if any(STUDY[name].base == base for name in options.only):
            print(diagnose(base, settings.folder, options.questions))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
