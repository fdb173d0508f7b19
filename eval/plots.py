"""Graded questions -> PNG pictures: accuracy over k, accuracy over semantic entropy, lengths by verdict.

`draw_all` makes those of one evaluation; `draw_curves` also puts several beside each other. The numbers are made in
eval/plot_data.py, the look is that of rl/picture.py. Another picture: its numbers there, a function here, its
place in `draw_all`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from eval.plot_data import (
    NO_ANSWER,
    NUM_ENTROPY_BINS,
    RIGHT,
    TRUNCATED,
    WRONG,
    entropy_bins,
    length_histogram,
    sample_curves,
)
from eval.records import GradedQuestion
from rl.picture import COLOURS, new_figure, plot_style, save_png
from rl.runs.intervals import Interval

_LINES = {"pass@k": "-", "maj@k": "--", "best@k": ":"}
_VERDICT_COLOURS = {RIGHT: "#2b8a3e", WRONG: "#e8590c", TRUNCATED: "#ced4da", NO_ANSWER: "#9c36b5"}
_GREY = "#495057"


def draw_all(questions_by_benchmark: Mapping[str, Sequence[GradedQuestion]], folder: Path) -> list[Path]:
    """Write `folder`/NAME_pass_maj.png, NAME_entropy.png and NAME_lengths.png for each benchmark; returns what was
    written.

    One sample of each question has neither a curve nor an entropy: the lengths alone are drawn. Raises: OSError with
    the remedy."""
    written = []
    for name, questions in questions_by_benchmark.items():
        if not questions:
            continue
        stem = re.sub(r"[^\w.-]+", "_", name)
        files = [folder / f"{stem}_{kind}.png" for kind in ("pass_maj", "entropy", "lengths")]
        if min(len(question.samples) for question in questions) > 1:
            draw_curves({"": questions}, files[0], name)
            draw_entropy(questions, files[1], name)
            written += files[:2]
        draw_lengths(questions, files[2], name)
        written.append(files[2])
    return written


def draw_curves(evaluations: Mapping[str, Sequence[GradedQuestion]], out: Path, title: str) -> None:
    """pass@k, maj@k (and best@k) over k with 95% bands. evaluations: {label: questions}; one with the label "" has a
    colour per curve, several have a colour each and a kind of line per curve."""
    is_one = len(evaluations) == 1
    with plot_style():
        figure, (axis,) = new_figure(1, 1, (8.0, 4.8))
        drawn: dict[int, list[Interval]] = {}
        for index, (label, questions) in enumerate(evaluations.items()):
            for place, (name, curve) in enumerate(sample_curves(questions).items()):
                colour = COLOURS[(place if is_one else index) % len(COLOURS)]
                ends = list(curve.values())
                axis.plot(
                    list(curve), [end.value for end in ends], "-" if is_one else _LINES[name], color=colour, marker="o",
                    markersize=4, label=f"{label} {name}".strip() + f": {ends[0].value:.3f} → {ends[-1].value:.3f}")
                axis.fill_between(
                    list(curve), [end.low for end in ends], [end.high for end in ends], color=colour, alpha=0.14,
                    linewidth=0)
                for k, end in curve.items():
                    drawn.setdefault(k, []).append(end)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(drawn), [str(k) for k in sorted(drawn)])
        axis.minorticks_off()
        # Whole tenths around all bands: from 0 to 1, the gain of a good model is a flat line.
        low, high = min(end.low for ends in drawn.values() for end in ends), max(
            end.high for ends in drawn.values() for end in ends)
        axis.set(xlabel="k (samples drawn)", ylabel="accuracy, 95% interval over questions", title=title,
                 ylim=(math.floor(10 * low) / 10, math.ceil(10 * high) / 10 + 0.01))
        axis.legend(loc="best")
        save_png(figure, out)


def draw_entropy(questions: Sequence[GradedQuestion], out: Path, title: str) -> None:
    """Accuracy of samples and of majorities against the semantic entropy: whether the model knows what it does not
    know."""
    bins = entropy_bins(questions)
    with plot_style():
        figure, (axis,) = new_figure(1, 1, (8.0, 4.8))
        for values, shift, colour, label in (([each.accuracy for each in bins], -0.02, COLOURS[0], "samples (avg@n)"),
                                             ([each.majority for each in bins], 0.02, COLOURS[1], "majority (maj@n)")):
            centres = [(each.low + each.high) / 2 + shift for each in bins]
            axis.errorbar(centres, [value.value for value in values], [[value.value - value.low for value in values],
                                                                       [value.high - value.value for value in values]],
                          color=colour, marker="o", markersize=5, capsize=3, elinewidth=1.0, label=label)
        for each in bins:
            axis.annotate(
                f"{each.num_questions} question{'s' if each.num_questions > 1 else ''}",
                ((each.low + each.high) / 2, 1.045), ha="center", va="bottom", fontsize=8.5, color=_GREY,
                annotation_clip=False)
        axis.set_xticks([edge / NUM_ENTROPY_BINS for edge in range(NUM_ENTROPY_BINS + 1)])
        axis.set(
            xlabel="semantic entropy H / ln n (0: all samples agree, 1: all differ)",
            ylabel="accuracy, 95% interval over questions", xlim=(-0.01, 1.01), ylim=(-0.02, 1.04))
        axis.set_title(title, pad=22)
        axis.legend(loc="best")
        save_png(figure, out)


def draw_lengths(questions: Sequence[GradedQuestion], out: Path, title: str) -> None:
    """Stacked histogram of the completions' lengths by verdict."""
    histogram = length_histogram(questions)
    total = sum(map(sum, histogram.counts.values()))
    with plot_style():
        figure, (axis,) = new_figure(1, 1, (8.0, 4.8))
        widths = [high - low for low, high in pairwise(histogram.edges)]
        below = [0] * len(widths)
        for verdict, counts in histogram.counts.items():
            if any(counts):
                axis.bar(
                    histogram.edges[:-1], counts, width=widths, bottom=below, align="edge",
                    color=_VERDICT_COLOURS[verdict], edgecolor="white", linewidth=0.4,
                    label=f"{verdict}: {sum(counts) / total:.1%}")
                below = [low + count for low, count in zip(below, counts, strict=True)]
        axis.set(
            xlabel=f"length of the completion in {histogram.unit}", ylabel="completions", title=title,
            xlim=(0, histogram.edges[-1]))
        axis.set_axisbelow(True)
        axis.legend(loc="best")
        save_png(figure, out)
