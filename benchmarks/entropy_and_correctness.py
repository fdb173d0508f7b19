"""Does low semantic entropy go with correct majorities? Recorded groups of model samples -> a picture and its numbers.

    OTHERHALF_DATA=... python benchmarks/entropy_and_correctness.py [--out docs/entropy_and_correctness.png] [--json]

This is the claim that label-free training on semantic entropy stands on (arXiv:2302.09664, 2504.05812). Completions are
extracted, graded and clustered by rewards/; grading and clusters are also compared with what the data files record, and
each disagreement is listed. Two sets: MATH, 50 questions x 8 samples of one model; GSM8K, 659 questions x 4 samples,
one each of four GPT-3 models, so that its groups are of one question and not of one policy. Another set of the same
form: a line in SETS.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.accuracy import Verdict, grade_many
from rewards.clustering import Clusters, cluster
from rewards.extraction import extract, extract_answers
from rl.picture import COLOURS, new_figure, plot_style, save_png
from rl.runs.intervals import mean_with_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SETS = {"MATH, 8 samples": ("math100_n8_dev", "correct"), "GSM8K, 4 samples": ("gsm8k_gpt3_n4_dev", "recorded_correct")}
BINS = (0.0, 0.25, 0.5, 0.75, 1.0)  # upper ends; the first bin is the groups that agree entirely
LEAST_IN_BIN = 5  # questions; a bin with fewer is joined with the next


@dataclass(frozen=True, slots=True)
class Group:
    """One question's recorded samples, graded and clustered by us. `recorded_clusters`: lists of sample indices, None
    if not recorded."""

    id: str
    gold: str
    completions: list[str]
    verdicts: list[Verdict]
    clusters: Clusters
    recorded: list[bool]
    recorded_clusters: list[list[int]] | None
    contested_pairs: set[tuple[int, int]]

    @property
    def entropy(self) -> float:
        """H / ln G, in [0, 1]."""
        return self.clusters.normalised_entropy

    @property
    def accuracy(self) -> float:
        return sum(verdict.correct for verdict in self.verdicts) / len(self.verdicts)

    @property
    def majority_correct(self) -> float:
        """maj@G: share of correct samples in the largest cluster, the mean over tied ones; 0 where nothing was
        answered."""
        majority = self.clusters.majority
        shares = []
        for label in majority:
            members = [
                verdict.correct for verdict, of in zip(self.verdicts, self.clusters.labels, strict=True) if of == label]
            shares.append(sum(members) / len(members))
        return sum(shares) / len(shares) if shares else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """Shares in [0, 1]. grading_agreement: over samples. cluster_agreement: over pairs that are not contested, None
    where no clusters are recorded. auroc: of -entropy for "the majority is right"; 0.5 is chance. Thirds: majority
    correctness of the groups with the lowest and highest entropy; groups of equal entropy count as their mean."""

    num_groups: int
    num_samples: int
    grading_agreement: float
    cluster_agreement: float | None
    mean_accuracy: float
    majority_accuracy: float
    majority_low: float
    majority_high: float
    mean_entropy: float
    auroc: float
    lowest_third: float
    highest_third: float


def read(path: Path, recorded_key: str) -> list[Group]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    verdicts = iter(grade_many([(sample["text"], row["answer"]) for row in rows for sample in row["samples"]]))
    groups = []
    for row in rows:
        completions = [sample["text"] for sample in row["samples"]]
        groups.append(
            Group(
                row["id"], row["answer"], completions, [next(verdicts) for _ in completions],
                cluster(extract_answers(completions)), [bool(sample[recorded_key]) for sample in row["samples"]],
                row.get("clusters"), {(min(pair), max(pair)) for pair in row.get("contested_pairs", ())}))
    return groups


def summarise(groups: Sequence[Group]) -> Summary:
    pairs = [ours == recorded for group in groups for ours, recorded in compared_pairs(group)]
    samples = [
        verdict.correct == recorded
        for group in groups
        for verdict, recorded in zip(group.verdicts, group.recorded, strict=True)]
    majority = mean_with_interval([group.majority_correct for group in groups])
    by_entropy = tie_averaged(groups)
    third = len(groups) // 3
    return Summary(
        num_groups=len(groups), num_samples=len(samples), grading_agreement=mean(samples),
        cluster_agreement=mean(pairs) if pairs else None, mean_accuracy=mean([group.accuracy for group in groups]),
        majority_accuracy=majority.value, majority_low=majority.low, majority_high=majority.high,
        mean_entropy=mean([group.entropy for group in groups]), auroc=auroc(groups),
        lowest_third=mean(by_entropy[:third]), highest_third=mean(by_entropy[-third:]))


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def compared_pairs(group: Group) -> list[tuple[bool, bool]]:
    """(we put them together, the record does) for each pair of samples that is not contested."""
    if group.recorded_clusters is None:
        return []
    recorded = {index: label for label, members in enumerate(group.recorded_clusters) for index in members}
    ours = group.clusters.labels
    return [(ours[i] == ours[j], recorded[i] == recorded[j]) for i, j in combinations(range(len(ours)), 2)
            if (i, j) not in group.contested_pairs]


def tie_averaged(groups: Sequence[Group]) -> list[float]:
    """Majority correctness in the order of entropy, each replaced by the mean over the groups of the same entropy."""
    ordered = sorted(groups, key=_entropy)
    levels = [[group.majority_correct for group in level] for _, level in groupby(ordered, key=_entropy)]
    return [mean(level) for level in levels for _ in level]


def _entropy(group: Group) -> float:
    return round(group.entropy, 9)  # equal partitions, whatever the order in which their terms were added


def auroc(groups: Sequence[Group]) -> float:
    """P(H of a group with a right majority < H of one with a wrong one), equal H counting half; a tied majority counts
    as its shares."""
    wins = total = 0.0
    for right in groups:
        for wrong in groups:
            weight = right.majority_correct * (1.0 - wrong.majority_correct)
            total += weight
            wins += weight * (
                1.0 if _entropy(right) < _entropy(wrong) else 0.5 if _entropy(right) == _entropy(wrong) else 0.0)
    return wins / total if total else math.nan


def disagreements(groups: Iterable[Group]) -> list[str]:
    """Table rows of the samples that we grade otherwise than the record does."""
    rows = []
    for group in groups:
        for index, (verdict, recorded) in enumerate(zip(group.verdicts, group.recorded, strict=True)):
            if verdict.correct != recorded:
                rule = extract(group.completions[index]).rule
                reason = "timed out" if verdict.timed_out else "equal for us" if verdict.correct else \
                    "nothing extracted" if rule == "none" else "not equal for us"
                rows.append(
                    f"| {group.id} | {index} | `{group.gold}` | `{verdict.extracted}` | {rule} | {recorded} | "
                    f"{reason} |")
    return rows


def binned(groups: Sequence[Group], value: Callable[[Group], float]) -> list[tuple[float, float, float, float, int]]:
    """(mean entropy, mean value, low, high, number of groups) of each bin; low and high: 95% Wilson score interval."""
    bins: list[list[Group]] = [[]]
    for start, end in zip((-1.0, *BINS), BINS, strict=False):
        if len(bins[-1]) >= LEAST_IN_BIN:
            bins.append([])
        bins[-1] += [group for group in groups if start < _entropy(group) <= end]
    if len(bins) > 1 and len(bins[-1]) < LEAST_IN_BIN:
        last = bins.pop()
        bins[-1] += last
    return [(mean([group.entropy for group in members]), share, *wilson(share, len(members)), len(members))
            for members in bins for share in [mean([value(group) for group in members])]]


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a share among `count`; unlike a bootstrap it has a width where all are equal."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - reach), min(1.0, centre + reach)


def draw(sets: dict[str, list[Group]], out: Path) -> None:
    with plot_style():
        figure, (left, right) = new_figure(1, 2, (11.0, 4.6))
        for at, (name, groups) in enumerate(sets.items()):
            _draw_majority(left, name, groups, COLOURS[at], shift=(-1, 1)[at % 2])
            _draw_accuracy(right, name, groups, COLOURS[at], shift=(-1, 1)[at % 2])
        left.set(title="Is the group's majority answer right?", ylabel="share of questions, 95% interval")
        right.set(title="How many of the group's samples are right?", ylabel="share of correct samples per question")
        right.text(
            0.02, 0.1, "area of a dot: share of the set's questions", transform=right.transAxes, fontsize=8.5,
            color="#868e96")
        for axis in (left, right):
            axis.set(
                xlabel="semantic entropy, H / ln G  (0: all answers agree, 1: all differ)", xlim=(-0.05, 1.05),
                ylim=(-0.05, 1.08))
        left.legend(loc="lower left")
        right.legend(loc="upper right")
        figure.suptitle(
            "Low semantic entropy goes with correct majorities", x=0.012, ha="left", fontsize=13, fontweight="bold")
        save_png(figure, out)


def _draw_majority(axis: Axes, name: str, groups: Sequence[Group], colour: str, *, shift: int) -> None:
    points = binned(groups, lambda group: group.majority_correct)
    x, y, low, high, counts = zip(*points, strict=True)
    axis.errorbar(
        [value + 0.006 * shift for value in x], y,
        [[v - b for v, b in zip(y, low, strict=True)], [t - v for v, t in zip(y, high, strict=True)]], color=colour,
        marker="o", markersize=5, capsize=3, elinewidth=1.1, label=f"{name}, {len(groups)} questions")
    for here, share, count in zip(x, y, counts, strict=True):
        axis.annotate(
            f"n={count}", (here, share), xytext=(7, 4 if shift > 0 else -14), textcoords="offset points", fontsize=8,
            color=colour)


def _draw_accuracy(axis: Axes, name: str, groups: Sequence[Group], colour: str, *, shift: int) -> None:
    counts = Counter((_entropy(group), group.accuracy) for group in groups)
    axis.scatter(
        [entropy + 0.008 * shift for entropy, _ in counts], [accuracy for _, accuracy in counts],
        s=[1500 * count / len(groups) + 8 for count in counts.values()], alpha=0.35, linewidths=0, color=colour)
    points = binned(groups, lambda group: group.accuracy)
    axis.plot([point[0] for point in points], [point[1] for point in points], color=colour, marker="D", markersize=6,
              markeredgecolor="white", label=f"{name}: mean in bins of entropy")


def report(sets: dict[str, list[Group]]) -> str:
    summaries = {name: summarise(groups) for name, groups in sets.items()}
    lines = ["| " + " | ".join(["", *summaries]) + " |", "|---" * (len(summaries) + 1) + "|"]
    for key in asdict(next(iter(summaries.values()))):
        values = [getattr(summary, key) for summary in summaries.values()]
        shown = [
            "not recorded" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
            for value in values]
        lines.append(f"| {key} | {' | '.join(shown)} |")
    lines += [
        "", "| majority correctness | bin's mean entropy | questions | share right | 95% interval |",
        "|---|---|---|---|---|"]
    for name, groups in sets.items():
        lines += [f"| {name} | {x:.2f} | {count} | {y:.3f} | [{low:.3f}, {high:.3f}] |"
                  for x, y, low, high, count in binned(groups, lambda group: group.majority_correct)]
    rows = [row for groups in sets.values() for row in disagreements(groups)]
    lines += ["", f"{len(rows)} samples graded otherwise than recorded"]
    if rows:
        lines += ["", "| question | sample | gold | extracted | rule | recorded | reason |", "|---" * 7 + "|", *rows]
    apart = [
        f"{group.id}: ours {group.clusters.labels}, recorded {group.recorded_clusters}"
        for groups in sets.values()
        for group in groups
        if any(ours != recorded for ours, recorded in compared_pairs(group))]
    return "\n".join([*lines, "", f"{len(apart)} groups clustered otherwise than recorded", *apart])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Semantic entropy of recorded groups against the correctness of their majorities.")
    parser.add_argument("--out", type=Path, help="PNG file to write")
    parser.add_argument(
        "--json", action="store_true", help="the summary as one line of JSON, by file, instead of tables")
    options = parser.parse_args()
    if "OTHERHALF_DATA" not in os.environ:
        parser.error("OTHERHALF_DATA must name the folder that holds samples/")
    folder = Path(os.environ["OTHERHALF_DATA"]) / "samples"
    sets = {name: read(folder / f"{file}.jsonl", key) for name, (file, key) in SETS.items()}
    if options.json:
        print(json.dumps({SETS[name][0]: asdict(summarise(groups)) for name, groups in sets.items()}))
    else:
        print(report(sets))
    if options.out is not None:
        draw(sets, options.out)


if __name__ == "__main__":
    main()
