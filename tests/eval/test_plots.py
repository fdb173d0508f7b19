"""The numbers that are drawn, by hand; and that each picture shows them: equal numbers, equal bytes, other numbers,
other bytes."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eval.plot_data import entropy_bins, length_histogram, sample_curves, verdict_of
from eval.plots import draw_all, draw_curves, draw_entropy, draw_lengths
from eval.records import GradedQuestion, Sample
from rl.runs.intervals import mean_with_interval

ROOT = Path(__file__).parents[2]


def graded(name: str, verdicts: str, tokens: int | None = 10) -> GradedQuestion:
    """One sample per letter: r right, t truncated without an answer, - no answer, other letters wrong; lengths tokens,
    2 tokens, ..."""
    return GradedQuestion(
        "made", name, f"question {name}", "r", {},
        tuple(
            Sample(
                letter * (place + 1), None if letter in "-t" else letter, float(letter == "r"),
                1000 + place if letter in "-t" else ord(letter), letter == "t",
                None if tokens is None else tokens * (place + 1))
            for place, letter in enumerate(verdicts)))


QUESTIONS = [
    graded("1", "rrrr"), graded("2", "rrww"), graded("3", "rwxy"), graded("4", "wwww"), graded("5", "rt-w", 20)]


def size_of(png: Path) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and data.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_curves_hold_the_scores_at_powers_of_two() -> None:
    curves = sample_curves(QUESTIONS)
    assert list(curves) == ["pass@k", "maj@k"] and list(curves["pass@k"]) == [1, 2, 4]
    assert curves["pass@k"][4] == mean_with_interval([1.0, 1.0, 1.0, 0.0, 1.0])
    assert curves["pass@k"][2] == mean_with_interval([1.0, 5 / 6, 0.5, 0.0, 0.5])
    # Full draws of four: a tie of two, a tie of four, a tie of r and w beside two that answered nothing.
    assert curves["maj@k"][4] == mean_with_interval([1.0, 0.5, 0.25, 0.0, 0.5])


def test_curves_end_at_the_fewest_samples_and_hold_best_where_there_is_a_value() -> None:
    valued = [replace(question, samples=tuple(replace(sample, ranks_by=sample.correct) for sample in question.samples))
              for question in [*QUESTIONS, graded("6", "rww")]]
    curves = sample_curves(valued)
    assert list(curves["best@k"]) == [1, 2, 3] and curves["best@k"] == curves["pass@k"]


def test_entropy_bins_hold_each_question_once_with_its_accuracies() -> None:
    bins = entropy_bins(QUESTIONS)
    # H / ln 4: 0 of rrrr and wwww, 0.5 of rrww, 1 of rwxy and of rt-w, where nobody agrees with anybody.
    assert [(each.low, each.high, each.num_questions) for each in bins] == [(0.0, 0.2, 2), (0.4, 0.6, 1), (0.8, 1.0, 2)]
    assert [each.accuracy for each in bins] == [
        mean_with_interval([1.0, 0.0]), mean_with_interval([0.5]), mean_with_interval([0.25, 0.25])]
    assert [each.majority for each in bins] == [
        mean_with_interval([1.0, 0.0]), mean_with_interval([0.5]), mean_with_interval([0.25, 0.5])]


def test_length_histogram_counts_every_completion_under_its_verdict() -> None:
    histogram = length_histogram(QUESTIONS)
    assert (
        histogram.unit == "tokens"
        and histogram.edges[0] == 0.0
        and histogram.edges[-1] == 80.0
        and len(histogram.edges) == 41)
    assert {verdict: sum(counts) for verdict, counts in histogram.counts.items()} == {
        "right": 8, "wrong": 10, "truncated": 1, "no answer": 1}
    # Bins of 2 tokens: 20 begins bin 10; the truncated one has 40 tokens, the one without an answer 60.
    assert histogram.counts["truncated"][20] == 1 and histogram.counts["no answer"][30] == 1
    # r at 10, 20, 30, 40 tokens of the first, 10 and 20 of the second, 10 of the third, 20 of the fifth.
    assert [histogram.counts["right"][place] for place in (5, 10, 15, 20)] == [3, 3, 1, 1]
    assert histogram.counts["wrong"][39] == 1 and math.isclose(histogram.edges[39], 78.0)


def test_lengths_are_characters_where_somebody_else_sampled() -> None:
    histogram = length_histogram([*QUESTIONS, graded("6", "rw", None)])
    assert histogram.unit == "characters" and histogram.edges[-1] == 4.0
    assert sum(map(sum, histogram.counts.values())) == 22


@pytest.mark.parametrize(
    ("correct", "answer", "truncated", "expected"),
    [
        (1.0, "a", True, "right"), (0.5, None, False, "right"), (0.0, "a", True, "truncated"),
        (0.0, None, True, "truncated"), (0.0, None, False, "no answer"), (0.25, "a", False, "wrong"),
    ],
)
def test_each_completion_has_one_verdict(correct: float, answer: str | None, truncated: bool, expected: str) -> None:
    assert verdict_of(Sample("text", answer, correct, 0, truncated)) == expected


def test_pictures_are_named_by_benchmark_and_no_file_is_left_beside_them(tmp_path: Path) -> None:
    folder = tmp_path / "plots"
    written = draw_all(
        {"math500": QUESTIONS, "my file/plain": [graded("1", "r"), graded("2", "w")], "none": []}, folder)
    assert [path.name for path in written] == [
        "math500_pass_maj.png", "math500_entropy.png", "math500_lengths.png", "my_file_plain_lengths.png"]
    assert sorted(folder.iterdir()) == sorted(written)
    assert {size_of(path) for path in written} == {(960, 576)}


def test_equal_numbers_give_equal_bytes_and_other_numbers_other_ones(tmp_path: Path) -> None:
    first, same = (draw_all({"made": QUESTIONS}, tmp_path / name) for name in ("first", "same"))
    other = draw_all({"made": [*QUESTIONS[1:], graded("6", "rrrw", 50)]}, tmp_path / "other")
    for one, again, different in zip(first, same, other, strict=True):
        assert one.read_bytes() == again.read_bytes() != different.read_bytes()


def test_several_evaluations_share_a_picture_that_depends_on_each(tmp_path: Path) -> None:
    changed = [graded("1", "rrrr"), graded("2", "rrrr")]
    draw_curves({"base": QUESTIONS, "EMPO": changed}, tmp_path / "two.png", "made")
    draw_curves({"base": QUESTIONS, "EMPO": QUESTIONS}, tmp_path / "other.png", "made")
    draw_curves({"": QUESTIONS}, tmp_path / "one.png", "made")
    assert len({(tmp_path / name).read_bytes() for name in ("two.png", "other.png", "one.png")}) == 3
    assert size_of(tmp_path / "two.png") == (960, 576)


@pytest.mark.parametrize("verdicts", [["w"], ["r"], ["----", "tttt"], ["rrrr", "rrrr"], ["wx"]])
def test_extreme_evaluations_can_be_drawn(tmp_path: Path, verdicts: list[str]) -> None:
    questions = [graded(str(place), each) for place, each in enumerate(verdicts)]
    for place, draw in enumerate(
        (
            lambda out: draw_curves({"": questions}, out, "t"), lambda out: draw_entropy(questions, out, "t"),
            lambda out: draw_lengths(questions, out, "t"),
        )
    ):
        draw(tmp_path / f"{place}.png")
        assert size_of(tmp_path / f"{place}.png") == (960, 576)


def test_importing_the_pictures_loads_neither_matplotlib_nor_torch() -> None:
    code = "import sys; import eval.plots; print(*({'matplotlib', 'torch'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
