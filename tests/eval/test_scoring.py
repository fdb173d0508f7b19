"""pass@k, maj@k and best@k against every draw looked at one by one, against numbers by hand, and what must not change
them."""

from __future__ import annotations

import json
import math
import os
import random
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.records import GradedQuestion, Sample
from eval.scoring import best_at_k, curve_points, majority_at_k, majority_curve, pass_at_k, score_questions
from rl.runs.intervals import mean_with_interval
from tests.reference.evaluation import literal_best_at_k, literal_majority_at_k, literal_pass_at_k


def graded(
    name: str, answers: str, right: str, *, truncated: str = "", ranks_by: list[float] | None = None
) -> GradedQuestion:
    """One sample per letter of `answers`; equal letters are equivalent, '-' is no answer, the letters in `right` are
    right."""
    samples = tuple(
        Sample(
            letter, None if letter == "-" else letter, float(letter in right),
            1000 + place if letter == "-" else ord(letter), letter in truncated, 10 * (place + 1), place,
            None if ranks_by is None else ranks_by[place])
        for place, letter in enumerate(answers))
    return GradedQuestion("made", name, f"question {name}", right, {}, samples)


Drawn = tuple[list[int], list[bool], list[float]]


@st.composite
def groups(draw: st.DrawFn) -> Drawn:
    """Labels, answered, verdicts of 1 to 8 samples. Members of a cluster need not have the same verdict."""
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=8))
    answered = [label != 0 for label in labels]
    correct = draw(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=len(labels), max_size=len(labels)))
    return [label or 100 + place for place, label in enumerate(labels)], answered, correct


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(groups())
def test_majority_is_exactly_the_mean_over_all_draws(group: Drawn) -> None:
    labels, answered, correct = group
    ks = range(1, len(labels) + 1)
    expected = [
        float(literal_majority_at_k(labels, answered, [Fraction(verdict) for verdict in correct], k)) for k in ks]
    assert list(majority_curve(labels, answered, correct, ks)) == expected
    assert [majority_at_k(labels, answered, correct, k) for k in ks] == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-1.5, 0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=8
    )
)
def test_best_is_exactly_the_mean_over_all_draws(pairs: list[tuple[float, float]]) -> None:
    values, correct = [value for value, _ in pairs], [verdict for _, verdict in pairs]
    for k in range(1, len(pairs) + 1):
        assert best_at_k(values, correct, k) == float(
            literal_best_at_k(values, [Fraction(verdict) for verdict in correct], k))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=9))
def test_pass_is_exactly_the_share_of_draws_with_a_right_one_and_the_expected_best_verdict(right: list[bool]) -> None:
    verdicts = [float(is_right) for is_right in right]
    for k in range(1, len(right) + 1):
        assert pass_at_k(len(right), sum(right), k) == float(
            literal_pass_at_k([int(is_right) for is_right in right], k))
        assert best_at_k(verdicts, verdicts, k) == pass_at_k(len(right), sum(right), k)


@settings(max_examples=100, deadline=None)
@given(groups(), st.randoms(use_true_random=False))
def test_neither_the_order_of_samples_nor_the_names_of_clusters_matter(group: Drawn, chance: random.Random) -> None:
    order = list(range(len(group[0])))
    chance.shuffle(order)
    names = dict(zip(sorted(set(group[0])), chance.sample(range(-50, 50), len(set(group[0]))), strict=True))
    labels, answered, correct = group
    ks = range(1, len(order) + 1)
    other = majority_curve([names[labels[place]] for place in order], [answered[place] for place in order],
                           [correct[place] for place in order], ks)
    assert other == majority_curve(*group, ks)


@settings(max_examples=100, deadline=None)
@given(groups())
def test_majority_of_one_is_the_mean_verdict_with_unanswered_ones_counting_nothing(group: Drawn) -> None:
    labels, answered, correct = group
    total = sum(Fraction(verdict) for verdict, is_answered in zip(correct, answered, strict=True) if is_answered)
    assert majority_at_k(labels, answered, correct, 1) == float(Fraction(total) / len(labels))


def test_majorities_by_hand() -> None:
    def majority(answers: str, right: str, k: int) -> float:
        return majority_at_k([ord(letter) for letter in answers], [letter != "-" for letter in answers],
                             [float(letter in right) for letter in answers], k)

    # Of the three pairs of aab, aa is right, and twice ab is a tie of right and wrong: (1 + 1/2 + 1/2) / 3.
    assert majority("aab", "a", 2) == pytest.approx(2 / 3)
    assert majority("aab", "a", 3) == 1.0
    # Three tied, one of them right.
    assert majority("aabbcc", "b", 6) == pytest.approx(1 / 3)
    # Samples without an answer are no cluster, however many: the majority is the one answer wherever it is drawn.
    assert majority("---a", "a", 4) == 1.0
    assert majority("---a", "a", 2) == 0.5
    assert majority("----", "", 2) == majority("----", "", 4) == 0.0
    # A right minority wins less often the more are drawn; a right majority more often.
    assert [majority("aaabb", "b", k) for k in (1, 2, 3, 5)] == pytest.approx([0.4, 0.4, 0.3, 0.0])


def test_pass_and_best_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == 0.5
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(5, 5, 1) == 1.0
    # The best of two of (3: wrong), (2: right), (1: wrong): wrong in two pairs of three.
    assert best_at_k([3.0, 2.0, 1.0], [0.0, 1.0, 0.0], 2) == pytest.approx(1 / 3)
    assert best_at_k([2.0, 2.0, 1.0], [0.0, 1.0, 0.0], 3) == 0.5


def test_many_samples_stay_exact() -> None:
    # Of two clusters alone, the right one of 40 loses draws of 3 with 2 or 3 of the other 24.
    labels, verdicts = [0] * 40 + [1] * 24, [1.0] * 40 + [0.0] * 24
    lost = math.comb(24, 3) + math.comb(24, 2) * 40
    assert majority_at_k(labels, [True] * 64, verdicts, 3) == float(1 - Fraction(lost, math.comb(64, 3)))
    # 256 different answers, one right: whatever k is, all drawn are tied, and the right one is drawn with probability k
    # / 256.
    for k in (1, 2, 17, 256):
        assert majority_at_k(list(range(256)), [True] * 256, [1.0] + [0.0] * 255, k) == 1 / 256


def test_curves_are_drawn_at_powers_of_two_and_at_n() -> None:
    assert curve_points(1) == (1,)
    assert curve_points(8) == (1, 2, 4, 8)
    assert curve_points(12) == (1, 2, 4, 8, 12)


def test_scores_of_three_questions_by_hand() -> None:
    questions = [graded("1", "aab-", "a", truncated="-"), graded("2", "cccc", "c"), graded("3", "xy--", "z")]
    scores = score_questions(questions, [1, 2, 4])
    assert scores.num_questions == 3 and scores.num_samples == 4
    assert scores.avg == mean_with_interval([0.5, 1.0, 0.0])
    assert scores.pass_at == {
        1: scores.avg, 2: mean_with_interval([1 - 1 / 6, 1.0, 0.0]), 4: mean_with_interval([1.0, 1.0, 0.0])}
    # Pairs of aab-: aa, a- twice right; ab twice tied; b- wrong: (3 + 1) / 6.
    assert scores.maj_at[2] == mean_with_interval([float(Fraction(4, 6)), 1.0, 0.0])
    assert scores.maj_at[4] == mean_with_interval([1.0, 1.0, 0.0])
    assert scores.best_at == {}
    assert scores.truncated_share == 1 / 12 and scores.unparsable_share == 2 / 12
    assert scores.mean_completion_tokens == 25.0
    first = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert scores.semantic_entropy == pytest.approx((first + 0.0 + math.log(4)) / 3)
    assert scores.normalised_semantic_entropy == pytest.approx((first / math.log(4) + 0.0 + 1.0) / 3)


def test_best_is_scored_where_every_sample_has_a_value_and_tokens_where_all_are_known() -> None:
    with_values = graded("1", "ab", "a", ranks_by=[0.1, 0.2])
    assert score_questions([with_values], [1, 2]).best_at[2].value == 0.0
    assert score_questions([with_values, graded("2", "ab", "a")], [1]).best_at == {}
    unknown = replace(with_values, samples=tuple(replace(sample, num_tokens=None) for sample in with_values.samples))
    assert score_questions([with_values, unknown], [1]).mean_completion_tokens is None


def test_parts_of_a_point_pass_by_the_best_verdict() -> None:
    question = graded("1", "ab", "")
    question = replace(
        question, samples=(replace(question.samples[0], correct=0.25), replace(question.samples[1], correct=0.75)))
    scores = score_questions([question], [1, 2])
    assert [scores.pass_at[k].value for k in (1, 2)] == [0.5, 0.75]


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_k_that_cannot_be_drawn_is_named_with_its_question(k: int) -> None:
    with pytest.raises(
        ValueError, match=rf"k is {k}, and question 'short' of made has 4 samples; expected 1 <= k <= 4"
    ):
        score_questions([graded("short", "aabb", "a"), graded("long", "aabbccdd", "a")], [1, k])
    for function in (lambda: pass_at_k(4, 1, k), lambda: best_at_k([1.0] * 4, [1.0] * 4, k),
                     lambda: majority_at_k([1] * 4, [True] * 4, [1.0] * 4, k)):
        with pytest.raises(ValueError, match=rf"k is {k} with 4 samples"):
            function()


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(ValueError, match="no graded question"):
        score_questions([], [1])
    with pytest.raises(ValueError, match="'empty' of made has no samples"):
        score_questions([graded("empty", "", "")], [])
    with pytest.raises(ValueError, match="5 of 4 samples"):
        pass_at_k(4, 5, 1)


@pytest.mark.parametrize("right_share", [0.3, 0.8])
def test_intervals_are_those_of_scipy(right_share: float) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy, the oracle of this test, is not installed")
    chance = random.Random(7)
    questions = [
        graded(
            str(number), "".join("a" if chance.random() < right_share else chance.choice("bc-") for _ in range(8)), "a")
        for number in range(60)]
    scores = score_questions(questions, [4])
    values = {
        "avg": [question.accuracy for question in questions],
        "pass": [pass_at_k(8, sum(sample.correct == 1 for sample in question.samples), 4) for question in questions]}
    for ours, name in ((scores.avg, "avg"), (scores.pass_at[4], "pass")):
        theirs = stats.bootstrap(
            (values[name],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1))
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert ours.value == pytest.approx(np.mean(values[name]))
        assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
        assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


@pytest.mark.skipif("OTHERHALF_DATA" not in os.environ, reason="OTHERHALF_DATA (folder with samples/) is not set")
def test_recorded_groups_score_to_their_reviewed_verdicts_and_majorities() -> None:
    """The file's own verdicts and clusters, counted by plain loops."""
    path = Path(os.environ["OTHERHALF_DATA"]) / "samples" / "math100_n8_dev.jsonl"
    questions, right, passed, majorities = [], 0, 0, Fraction(0)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        label = {place: number for number, members in enumerate(row["clusters"]) for place in members}
        verdicts = [bool(sample["correct"]) for sample in row["samples"]]
        questions.append(GradedQuestion("math100", row["id"], row["question"], row["answer"], {}, tuple(
            Sample(sample["text"], sample["answer"], float(sample["correct"]), label.get(place, 100 + place), False)
            for place, sample in enumerate(row["samples"]))))
        right, passed = right + sum(verdicts), passed + any(verdicts)
        answered = [place for place, sample in enumerate(row["samples"]) if sample["answer"] is not None]
        sizes = {
            number: sum(label[place] == number for place in answered) for number in {label[place] for place in answered}
        }
        tied = [number for number, size in sizes.items() if size == max(sizes.values())]
        for number in tied:
            members = [place for place in answered if label[place] == number]
            majorities += Fraction(sum(verdicts[place] for place in members), len(members) * len(tied))
    scores = score_questions(questions, [1, 8])
    assert len(questions) == 50
    assert scores.avg.value == scores.pass_at[1].value == pytest.approx(right / 400)
    assert scores.pass_at[8].value == pytest.approx(passed / 50)
    assert scores.maj_at[8].value == pytest.approx(float(majorities / 50))
    assert scores.avg.value <= scores.maj_at[8].value <= scores.pass_at[8].value
