"""Does learning without labels hold? Each part against collapse, by itself and together, for hundreds of steps at a
constant rate, on a base whose majority is twice as often right as one sample and wrong on more than half of the
questions. Prints a Markdown table; rl/picture.py draws the curves.

    python benchmarks/collapse_study.py --jobs 2                            # all, three seeds: hours
    python benchmarks/collapse_study.py --only share kl gold --seeds 0 --steps 200 --rate 4e-4
    python -m rl.picture "share=runs/collapse_study/share-*" "KL=runs/collapse_study/kl-*" --out curves.png

Each run is configs/quickstart.yaml on models/tiny-arith-1300 (or --model) without its thresholds, at a constant rate,
with the watchdog off. Held-out: avg@8 of 512 questions before and after, avg@2 in between. `best` is the best mean of
three evaluations in a row, `fall` the step of the first evaluation after it whose mean of three lies 5 points below
it. A run whose folder is complete, with the same configuration, is not repeated. To add a part: a line in STUDY.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from study_runs import Job, accuracy_of, finished, mean_and_each

from rl.records import Json
from rl.runs.folder import RunFolder
from rl.runs.summary import Summary
from rl.runs.tracking import HELD_OUT_ACCURACY, read_json_lines

CONFIG = Path("configs/quickstart.yaml")
EVERY = 20  # steps between evaluations
FALL = 0.05
COMMON = (
    "optim.schedule=constant", "watchdog.enabled=false", f"evaluation.every={EVERY}", "evaluation.num_questions=512",
    "tracking.rollouts_every=0", "checkpoint.every=100")
UNBOUNDED = ("selection.low=null", "selection.high=null")
ANSWERS = "models/tiny-arith/questions/train_with_answers.jsonl"
KL = "loss.kl_weight=0.05"
# 16 questions x (8 + 8 votes) a step: as many completions as the others' 32 x 8.
JURY = (
    "rewards.0.use=rewards.majority:share_of_votes", "sampling.questions_per_step=16", "votes={samples: 8, decay: 1}",
    "advantage=dr_grpo")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the study. kind: what the reward reads."""

    label: str
    kind: str
    overrides: tuple[str, ...]


def _share(label: str, *words: str) -> Entry:
    return Entry(label, "no labels", (*UNBOUNDED, *words))


STUDY = {
    "share": _share("share alone (EMPO without thresholds)"),
    "low": _share("+ low 0.2", "selection.low=0.2"),
    "high": _share("+ high 0.9", "selection.high=0.9"),
    "bounds": _share("+ bounds 0.2, 0.9", "selection.low=0.2", "selection.high=0.9"),
    "narrow": _share("+ bounds 0.3, 0.75", "selection.low=0.3", "selection.high=0.75"),
    "kl": _share("+ KL 0.05", KL),
    "dr_grpo": _share("+ dr_grpo", "advantage=dr_grpo"),
    "majority": _share("majority vote", "rewards.0.use=rewards.majority:majority_vote"),
    "soft": _share("soft votes", "rewards.0.use=rewards.majority:soft_votes"),
    "consensus": _share("+ no consensus below 3 votes", "selection.min_votes=3", "selection.penalty=0.5"),
    "certainty": _share(
        "+ self-certainty, one by one", "advantage.normalise=each",
        "rewards=[{use: rewards.semantic_entropy:semantic_entropy}, {use: rewards.confidence:self_certainty, "
        "weight: 0.2}]"),
    "clip-cov": _share("+ Clip-Cov", "loss.covariance=clip"),
    "flips": _share("+ flips", "advantage.flips.enabled=true", "data.limit=1024"),
    "few-questions": _share("share alone, 1,024 questions", "data.limit=1024"),
    "large": _share("share of groups of 32, 8 a step", "sampling.group_size=32", "sampling.questions_per_step=8"),
    "large-kl": _share(
        "share of groups of 32, 8 a step, + KL 0.05", "sampling.group_size=32", "sampling.questions_per_step=8", KL),
    "kl-0.2": _share("+ KL 0.2", "loss.kl_weight=0.2"),
    "jury": _share("jury: share of 8 votes of the start, dr_grpo", *JURY),
    "jury-grpo": _share("jury, divided by the deviation", *JURY, "advantage=grpo"),
    "jury-16": _share("jury of 16 votes (384 completions a step)", *JURY, "votes.samples=16"),
    "jury-majority": _share("majority of the jury, not its share", *JURY, "rewards.0.use=rewards.majority:voted"),
    "jury-average": _share("jury of an average, 0.99", *JURY, "votes.decay=0.99"),
    "jury-kl": _share("jury + KL 0.05", *JURY, KL),
    "jury-anchors": Entry("jury + 64 labelled questions, 4 of 16 a step, at a quarter of their weight", "64 labels", (
        *UNBOUNDED, *JURY, f"anchors={ANSWERS}", "anchors.limit=64", "anchors.weight=0.25")),
    "jury-full-anchors": Entry("the same, at their whole weight", "64 labels", (
        *UNBOUNDED, *JURY, f"anchors={ANSWERS}", "anchors.limit=64")),
    "anchors": Entry("+ 64 labelled questions, 4 of 32 a step", "64 labels", (
        *UNBOUNDED, f"anchors={ANSWERS}", "anchors.limit=64")),
    "gold": Entry("gold answers", "labels", (
        *UNBOUNDED, f"data.path={ANSWERS}", "data.columns.answer=answer", "rewards.0.use=rewards.accuracy:accuracy")),
    "random": Entry("random", "control", (*UNBOUNDED, "rewards.0.use=rewards.controls:random_reward")),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """Held-out accuracy of one run. best: the best mean of three evaluations in a row, and its middle step. fall: the
    first step from which on a mean of three lies FALL below the best; None where none does. lost, gained: shares of
    all questions whose majority was right before training and is not after it, and the other way round."""

    steps: tuple[int, ...]
    accuracies: tuple[float, ...]
    lost: float
    gained: float

    @property
    def means(self) -> list[tuple[int, float]]:
        values = self.accuracies
        return [(self.steps[i], statistics.fmean(values[i - 1 : i + 2])) for i in range(1, len(values) - 1)]

    @property
    def best(self) -> tuple[int, float]:
        return max(self.means, key=lambda mean: mean[1])

    @property
    def last(self) -> float:
        """Mean of the last three."""
        return self.means[-1][1]

    @property
    def fall(self) -> int | None:
        at, best = self.best
        return next((step for step, mean in self.means if step > at and mean < best - FALL), None)


def curve(folder: Path) -> Curve:
    records: list[Mapping[str, Json]] = [
        record for record in read_json_lines(RunFolder(folder).metrics_file) if HELD_OUT_ACCURACY in record]
    last = records[-1]
    return Curve(tuple(int(str(record["step"])) for record in records),
                 tuple(float(str(record[HELD_OUT_ACCURACY])) for record in records),
                 *(float(str(last[f"held_out/majority_{name}"])) for name in ("lost", "gained")))


def run(name: str, seed: int, options: argparse.Namespace) -> tuple[Summary, Curve]:
    """One run, which is made unless its folder holds it already. Raises RuntimeError where the run fails."""
    folder = options.folder.resolve() / f"{name}-{options.rate:g}-{seed}"
    words = (*COMMON, f"model={options.model}", f"steps={options.steps}", f"optim.lr={options.rate}",
             *STUDY[name].overrides, *options.set, f"seed={seed}")
    return finished(Job(f"{name}, seed {seed}", folder, CONFIG, words)), curve(folder)


def table(found: dict[str, list[tuple[Summary, Curve]]]) -> str:
    """A row per part: means over the seeds, each seed behind them; steps in the order of the seeds."""
    lines = [
        "| reward | reads | before, avg@8 | best (steps) | last three | last minus best, points | falls at "
        "| after, avg@8 | majority lost | gained |", "|---|---|---|---|---|---|---|---|---|---|"]
    for name, runs in found.items():
        curves = [curve for _, curve in runs]
        best, last = [curve.best[1] for curve in curves], [curve.last for curve in curves]
        before, after = ([accuracy_of(getattr(summary, f"held_out_{when}")) for summary, _ in runs]
                         for when in ("before", "after"))
        at = ", ".join(str(curve.best[0]) for curve in curves)
        falls = ", ".join("-" if curve.fall is None else str(curve.fall) for curve in curves)
        difference = 100 * (statistics.fmean(last) - statistics.fmean(best))
        lines.append(
            f"| {STUDY[name].label} | {STUDY[name].kind} | {statistics.fmean(before):.3f} "
            f"| {mean_and_each(best)} ({at}) | {mean_and_each(last)} | {difference:+.1f} | {falls} "
            f"| {mean_and_each(after)} | {statistics.fmean(curve.lost for curve in curves):.2f} "
            f"| {statistics.fmean(curve.gained for curve in curves):.2f} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=list(STUDY), default=list(STUDY), metavar="NAME", help=", ".join(STUDY))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="of each run (default 300)")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate (default 1e-4)")
    parser.add_argument("--model", default="models/tiny-arith-1300", help="the base (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/collapse_study"), help="where the runs go")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, one thread each")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every run")
    options = parser.parse_args(words)
    with ThreadPoolExecutor(options.jobs) as pool:
        # Seed by seed, so that an interrupted study has something of every part.
        runs = {(name, seed): pool.submit(run, name, seed, options)
                for seed in options.seeds for name in options.only}
        found = {name: [runs[name, seed].result() for seed in options.seeds] for name in options.only}
    print(table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
