"""Every reward that ships, on tiny-arith: what it teaches, over three seeds. Prints a Markdown table and draws
docs/reward_study.png.

    python benchmarks/reward_study.py --jobs 2         # 12 rewards x 3 seeds
    python benchmarks/reward_study.py --only accuracy majority-vote --seeds 0

Each run is configs/quickstart.yaml with another reward and without its entropy thresholds, so that nothing but the
reward differs; the quick start itself, thresholds included, is one row more. The watchdog is on but for the controls,
which are run to their end. A run whose folder is complete, with the same configuration, is not repeated. Held-out
accuracy: before and final are avg@8, the best one on the way is avg@2 over the samples that all evaluations share
(rl/evaluation/held_out.py). To add a reward: a line in STUDY.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from study_runs import Job, accuracy_of, endings, finished, mean_and_each

from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.runs.summary import Summary
from rl.runs.tracking import HELD_OUT_ACCURACY, read_json_lines

CONFIG = Path("configs/quickstart.yaml")
WITH_ANSWERS = ("data.path=models/tiny-arith/questions/train_with_answers.jsonl", "data.columns.answer=answer")
NO_THRESHOLDS = ("selection.low=null", "selection.high=null")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the study. kind: what the reward reads."""

    label: str
    kind: str
    overrides: tuple[str, ...]


def _entry(label: str, kind: str, use: str, arguments: str = "{}") -> Entry:
    gold = WITH_ANSWERS if kind == "gold answers" or use.endswith("inverted_accuracy") else ()
    watchdog = ("watchdog.enabled=false",) if kind == "control" else ()
    return Entry(
        label, kind, (*NO_THRESHOLDS, *gold, *watchdog, f"rewards.0.use={use}", f"rewards.0.arguments={arguments}"))


STUDY = {
    "quickstart": Entry("semantic entropy p, with thresholds", "no labels", ()),
    "share": _entry("semantic entropy p", "no labels", "rewards.semantic_entropy:semantic_entropy"),
    "log": _entry("semantic entropy ln p", "no labels", "rewards.semantic_entropy:semantic_entropy", "{form: log}"),
    "power": _entry(
        "semantic entropy p^3", "no labels", "rewards.semantic_entropy:semantic_entropy", "{form: power, power: 3}"),
    "majority-vote": _entry("majority vote", "no labels", "rewards.majority:majority_vote"),
    "self-certainty": _entry("self-certainty", "no labels", "rewards.confidence:self_certainty"),
    "token-entropy": _entry("token entropy", "no labels", "rewards.confidence:token_entropy"),
    "reference-likelihood": _entry(
        "reference likelihood", "gold answers", "rewards.reference_likelihood:reference_likelihood"),
    "accuracy": _entry("accuracy", "gold answers", "rewards.accuracy:accuracy"),
    "random": _entry("random", "control", "rewards.controls:random_reward"),
    "inverted-accuracy": _entry("inverted accuracy", "control", "rewards.controls:inverted_accuracy"),
    "format-only": _entry("format only", "control", "rewards.format:format_boxed"),
}


def run(name: str, seed: int, folder: Path, more: Sequence[str] = ()) -> Summary:
    """The summary of one run, which is made unless its folder holds it already. Raises RuntimeError where the run
    fails."""
    overrides = (*STUDY[name].overrides, *more, f"seed={seed}", "tracking.rollouts_every=0")
    return finished(Job(f"{name}, seed {seed}", folder / f"{name}-{seed}", CONFIG, overrides))


def table(summaries: dict[str, list[Summary]]) -> str:
    """One row per reward: means over the seeds, each seed behind them."""
    lines = [
        "| reward | reads | before, avg@8 | best on the way, avg@2 (step) | final, avg@8 | gain of the means | ended |",
        "|---|---|---|---|---|---|---|"]
    for name, runs in summaries.items():
        before = [accuracy_of(summary.held_out_before) for summary in runs]
        final = [accuracy_of(summary.held_out_after) for summary in runs]
        best = [summary.best for summary in runs if summary.best is not None]
        steps = ", ".join(str(item.step) for item in best)
        gain = 100 * (statistics.fmean(final) - statistics.fmean(before))
        on_the_way = f"{mean_and_each([item.value for item in best])} ({steps})"
        lines.append(
            f"| {STUDY[name].label} | {STUDY[name].kind} | {mean_and_each(before)} | {on_the_way} | "
            f"{mean_and_each(final)} | {gain:+.1f} | {endings(runs)} |")
    return "\n".join(lines)


def draw(names: Sequence[str], seeds: Sequence[int], folder: Path, out: Path) -> None:
    """A panel per reward: held-out accuracy over steps, one line per seed."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"no labels": "#2563eb", "gold answers": "#2b8a3e", "control": "#868e96"}
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.1 * columns, 2.5 * rows + 0.6), sharex=True, sharey=True, squeeze=False,
        layout="constrained")
    for axis, name in zip(axes.flat, [*names, *[None] * (rows * columns - len(names))], strict=True):
        if name is None:
            axis.set_visible(False)
            continue
        for seed in seeds:
            records = [record for record in read_json_lines(RunFolder(folder / f"{name}-{seed}").metrics_file)
                       if HELD_OUT_ACCURACY in record]
            axis.plot([record["step"] for record in records], [record[HELD_OUT_ACCURACY] for record in records],
                      color=colours[STUDY[name].kind], marker="o", markersize=2.5, linewidth=1.3, alpha=0.85)
        axis.set_title(STUDY[name].label, fontsize=9.5, loc="left", fontweight="bold")
        axis.set_ylim(0, 1.02)
        axis.grid(color="#e9ecef")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("training step", fontsize=9.5)
    figure.supylabel("held-out accuracy", fontsize=9.5)
    kinds = list(dict.fromkeys(STUDY[name].kind for name in names))
    figure.legend(
        handles=[pyplot.Line2D([], [], color=colours[kind], label=kind) for kind in kinds], loc="outside upper right",
        ncols=len(kinds), frameon=False, fontsize=9)
    figure.suptitle(
        f"Rewards on tiny-arith, {len(seeds)} seed{'s' if len(seeds) > 1 else ''} each", x=0.01, ha="left",
        fontweight="bold")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(STUDY), default=list(STUDY), metavar="NAME", help=", ".join(STUDY))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/reward_study"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=project_root() / "docs" / "reward_study.png", help="the picture")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time, one thread each unless OMP_NUM_THREADS says more")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every run")
    options = parser.parse_args(words)
    folder = options.folder.resolve()
    with ThreadPoolExecutor(options.jobs) as pool:
        # Seed by seed, so that an interrupted study has something of every reward.
        runs = {
            (name, seed): pool.submit(run, name, seed, folder, options.set)
            for seed in options.seeds
            for name in options.only}
        summaries = {name: [runs[name, seed].result() for seed in options.seeds] for name in options.only}
    print(table(summaries))
    draw(options.only, options.seeds, folder, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
