"""The paired comparison against all signs tried one by one, against scipy, and against numbers by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.comparison import ComparisonError, compare_questions, questions_needed, sign_flip_test
from eval.records import GradedQuestion, Sample
from rl.runs.intervals import mean_with_interval
from tests.reference.evaluation import literal_sign_flip_p


def graded(name: str, verdicts: str) -> GradedQuestion:
    """One sample per letter: r right, w wrong (all wrong ones agree), x, y wrong in other ways, - no answer."""
    return GradedQuestion(
        "made", name, f"question {name}", "r", {},
        tuple(
            Sample(
                letter, None if letter == "-" else letter, float(letter == "r"),
                1000 + place if letter == "-" else ord(letter), False)
            for place, letter in enumerate(verdicts)))


def evaluation(verdicts: Sequence[str]) -> list[GradedQuestion]:
    return [graded(str(number), each) for number, each in enumerate(verdicts)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-8, 8), max_size=9))
@example([1, 1, 1, 1, 1, 1])
@example([])
def test_sign_flips_of_few_differences_are_all_tried(eighths: list[int]) -> None:
    expected = literal_sign_flip_p([Fraction(eighth, 8) for eighth in eighths])
    assert sign_flip_test([eighth / 8 for eighth in eighths]) == (float(expected), True)


def test_rounding_does_not_make_equal_sums_different() -> None:
    """0.1 + 0.2 is not 0.3 in binary; taken literally, half of the assignments that tie would be lost."""
    differences = [0.1, 0.2, 0.3, -0.7, 0.6]
    expected = literal_sign_flip_p([Fraction(round(10 * difference), 10) for difference in differences])
    assert sign_flip_test(differences)[0] == float(expected)


@pytest.mark.parametrize("size", [13, 60])
def test_sign_flips_are_the_permutation_test_of_scipy(size: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy, the oracle of this test, is not installed")
    chance = random.Random(size)
    a = [chance.randint(0, 8) / 8 for _ in range(size)]
    b = [min(1.0, max(0.0, value + chance.choice([-0.25, 0.0, 0.125, 0.25, 0.25]))) for value in a]
    theirs = stats.permutation_test(
        (b, a), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=40_000, rng=np.random.default_rng(3))
    p_value, is_exact = sign_flip_test([y - x for x, y in zip(a, b, strict=True)])
    assert 0.001 < p_value < 0.9, "a case that tells nothing"
    if is_exact:
        assert p_value == pytest.approx(theirs.pvalue, abs=1e-12)
    else:
        assert p_value == pytest.approx(theirs.pvalue, abs=5 * (p_value * (1 - p_value) / 20_000) ** 0.5)
    assert is_exact is (size == 13)


def test_drawn_signs_are_reproducible_and_never_give_p_0() -> None:
    differences = [1.0] * 40
    assert sign_flip_test(differences) == (1 / 20_001, False)
    mixed = [1.0] * 30 + [-1.0] * 18
    assert sign_flip_test(mixed, seed=1) == sign_flip_test(mixed, seed=1)
    assert sign_flip_test(mixed, seed=1) != sign_flip_test(mixed, seed=2)


def test_drawn_signs_of_the_largest_benchmark_fit_into_memory_and_agree_with_the_normal_distribution() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy, the oracle of this test, is not installed")
    differences = [1.0] * 2600 + [-1.0] * 2430
    expected = 2 * stats.norm.sf((170 - 1) / 5030 ** 0.5)  # sums differ by 2: continuity
    assert sign_flip_test(differences)[0] == pytest.approx(expected, abs=0.004)


def test_a_true_null_is_rejected_as_rarely_as_it_should_be() -> None:
    chance = np.random.default_rng(0)
    p_values = [
        sign_flip_test((chance.binomial(4, 0.5, 40) / 4 - chance.binomial(4, 0.5, 40) / 4).tolist(), seed=run)[0]
        for run in range(100)]
    assert 0 < sum(p_value < 0.05 for p_value in p_values) <= 12


def test_greedy_evaluations_by_hand() -> None:
    """Ten questions: 1 right in both, 6 gained, 1 lost, 2 wrong in both. Sums of 7 signs at least 5 from 0: 2 * (1 + 7)
    of 128."""
    result = compare_questions(evaluation("rwwwwwwrww"), evaluation("rrrrrrrwww"))
    assert (result.num_questions, result.num_samples_a, result.num_samples_b) == (10, 1, 1)
    assert (result.accuracy_a, result.accuracy_b) == (0.2, 0.7)
    assert result.difference == mean_with_interval([0.0, *[100.0] * 6, -100.0, 0.0, 0.0])
    assert result.p_value == 16 / 128 and result.is_exact
    assert [flip.id for flip in result.gained] == list("123456") and [flip.id for flip in result.lost] == ["7"]
    assert (result.gained[0].accuracy_a, result.gained[0].accuracy_b, result.gained[0].question) == (
        0.0, 1.0, "question 1")
    assert result.points_per_question == 10.0
    # Variance (6 * 50^2 + 150^2 + 3 * 50^2) / 9 = 5000 around 50 points: 7.849 * 2 = 15.7.
    assert result.num_needed == 16 and result.is_too_small and result.verdict == "too few questions"


def test_majorities_flip_and_ties_are_not_right() -> None:
    a = evaluation(["rrw", "rwx", "rww", "--r", "rw-"])
    b = evaluation(["rww", "rrw", "rwx", "---", "rrw"])
    result = compare_questions(a, b)
    assert [flip.id for flip in result.gained] == ["1", "4"]
    assert [flip.id for flip in result.lost] == ["0", "3"]


def test_a_single_verdict_counts_where_no_answer_was_read() -> None:
    a, b = evaluation(["w"]), evaluation(["w"])
    right = replace(b[0], samples=(replace(b[0].samples[0], answer=None, correct=1.0),))
    assert [flip.id for flip in compare_questions(a, [right]).gained] == ["0"]


def test_exchanging_the_evaluations_turns_the_difference_around() -> None:
    chance = random.Random(4)
    a, b = (evaluation(["".join(chance.choice("rw") for _ in range(4)) for _ in range(12)]) for _ in range(2))
    there, back = compare_questions(a, b), compare_questions(b, a)
    assert there.difference.value == -back.difference.value != 0
    assert there.difference.low == pytest.approx(-back.difference.high, abs=1e-9)
    assert there.p_value == back.p_value and there.num_needed == back.num_needed
    for flips, turned in ((there.gained, back.lost), (there.lost, back.gained)):
        assert (
            flips == tuple(replace(flip, accuracy_a=flip.accuracy_b, accuracy_b=flip.accuracy_a) for flip in turned)
            and flips)


def test_questions_are_paired_by_id_and_those_of_one_side_are_named() -> None:
    a = [graded(name, verdict) for name, verdict in (("x", "r"), ("y", "w"), ("z", "r"))]
    b = [graded(name, verdict) for name, verdict in (("z", "w"), ("new", "r"), ("y", "r"))]
    result = compare_questions(a, b)
    assert result.num_questions == 2 and result.accuracy_a == result.accuracy_b == 0.5
    assert result.only_a == ("x",) and result.only_b == ("new",)
    assert [flip.id for flip in result.gained] == ["y"] and [flip.id for flip in result.lost] == ["z"]


def test_equal_evaluations_show_nothing() -> None:
    result = compare_questions(evaluation("rrww"), evaluation("rrww"))
    assert result.difference.value == result.difference.low == result.difference.high == 0.0
    assert (
        result.p_value == 1.0
        and result.num_needed is None
        and result.verdict == "no difference shown"
        and not result.is_too_small)


def test_aime_is_too_small_for_a_few_questions_and_large_enough_for_many() -> None:
    base = ["w"] * 25 + ["r"] * 5
    few = compare_questions(evaluation(base), evaluation(["r"] * 2 + ["w"] * 23 + ["r"] * 4 + ["w"]))
    assert few.difference.value == pytest.approx(100 / 30) and few.points_per_question == pytest.approx(3.33, abs=0.01)
    assert few.p_value == 1.0 and few.is_too_small and few.num_needed is not None and few.num_needed > 500
    many = compare_questions(evaluation(base), evaluation(["r"] * 8 + ["w"] * 17 + ["r"] * 5))
    assert many.p_value == 2 / 256 and many.verdict == "B is better" and not many.is_too_small
    assert compare_questions(evaluation(["r"] * 8 + ["w"] * 17 + ["r"] * 5), evaluation(base)).verdict == "B is worse"


def test_needed_questions_give_the_promised_power() -> None:
    """Greedy differences of 100, 0, -100 with probabilities 0.2, 0.7, 0.1: so many questions show it about 4 times out
    of 5."""
    needed = questions_needed([100.0] * 20 + [0.0] * 70 + [-100.0] * 10)
    assert needed == 230  # variance (0.3 - 0.01) * 100 / 99 around 0.1: 7.849 * 29.293 = 229.9
    chance = np.random.default_rng(2)
    shown = sum(
        sign_flip_test(chance.choice([100.0, 0.0, -100.0], needed, p=[0.2, 0.7, 0.1]).tolist(), seed=run)[0] < 0.05
        for run in range(60))
    assert 38 <= shown <= 57


def test_fewer_than_six_changed_questions_are_never_called_enough() -> None:
    assert sign_flip_test([100.0] * 5)[0] > 0.05 > sign_flip_test([100.0] * 6)[0]
    assert questions_needed([100.0] * 5) == 6
    assert questions_needed([100.0]) is None and questions_needed([1.0, -1.0]) is None and questions_needed([]) is None


def test_what_cannot_be_compared_is_refused() -> None:
    a = evaluation("rw")
    with pytest.raises(ComparisonError, match=r"made: no question is in both: A has 2 \(0, 1\), B has 1 \(other\)"):
        compare_questions(a, [graded("other", "r")])
    with pytest.raises(ComparisonError, match="'0' stands twice in B"):
        compare_questions(a, [*evaluation("r"), *evaluation("r")])
    with pytest.raises(
        ComparisonError, match=r"question '1' is 'question 1' with .*'r' in A, and 'another question' with .*'r' in B"
    ):
        compare_questions(a, [a[0], replace(a[1], question="another question")])
    with pytest.raises(ComparisonError, match=r"question '1' is .* and 'question 1' with the answer '7' in B"):
        compare_questions(a, [a[0], replace(a[1], gold="7")])


def test_a_rest_of_rounding_needs_no_questions() -> None:
    a, b = ([value / 7 for value in row] for row in ([1, 4, 5, 5, 2, 0], [1, 2, 4, 0, 5, 5]))
    assert questions_needed([second - first for first, second in zip(a, b, strict=True)]) is None
    assert questions_needed([0.1, 0.2, 0.3]) is not None
