"""Hand-made groups on both sides of each line between the cases, and advice that configurations understand."""

from __future__ import annotations

import re

import pytest

from eval.forecast import render
from eval.readiness import ANSWERED, CASES, CUT, FAR_MORE, FEW_LABELS, Case, Figures, case_of, measure, notes_on
from eval.records import GradedQuestion, Sample
from rl.configuration.loading import load
from rl.paths import project_root


def question(answers: str, cut: str = "") -> GradedQuestion:
    """A letter is a completion's answer, `-` is none, `r` the right one; those at the places of an `x` were cut."""
    samples = tuple(
        Sample(letter, None if letter == "-" else letter, float(letter == "r"),
               1000 + place if letter == "-" else ord(letter), cut[place:place + 1] == "x")
        for place, letter in enumerate(answers))
    return GradedQuestion("made", answers, answers, "r", {}, samples)


def figures(*groups: str, times: int = 1, size: int = 4, cut: str = "", labelled: bool = True) -> Figures:
    made = [question(answers, cut) for answers in groups * times]
    return measure(made if labelled else [], [] if labelled else made, size, 0.2, 0.9)


RIGHT, WRONG, ALL_WRONG = "rrab", "aarb", "aaab"  # the majority right; wrong, with one right; wrong


@pytest.mark.parametrize(("groups", "case"), [
    ((RIGHT,), "latent"),
    (("rrab", "aarb"), "latent"),  # maj 0.5, avg 0.375
    (("rrab",) * 49 + ("aarb",) * 51, "often_wrong"),
    (("rrab",) * 20 + (ALL_WRONG,) * 80, "often_wrong"),  # 0.2 and 0.1
    (("rrab",) * 19 + (ALL_WRONG,) * 81, "nearly_always_wrong"),
    (("rrrr",) * 6 + ("rrab",) * 4, "latent"),  # 1.0 and 0.8
    (("rrrr",) * 9 + ("rrab",) * 1, "settled"),  # 1.0 and 0.95
    (("rrrr",) * 3 + (ALL_WRONG,) * 7, "settled"),  # 0.3 and 0.3
    (("rr--",), "latent"),  # half of them answer
    (("rr--",) * 9 + ("r---",), "no_format"),
    (("----",), "no_format"),
])
def test_each_case_begins_where_its_bound_says(groups: tuple[str, ...], case: Case) -> None:
    found = figures(*groups)
    assert case_of(found) == case
    assert CASES[case].title in render(found)


def test_the_bounds_are_those_of_the_groups_above() -> None:
    """A bound that is moved moves a case there."""
    edge = figures(*("rrab",) * 20, *(ALL_WRONG,) * 80)
    assert edge.group_maj is not None and edge.avg is not None
    assert (edge.group_maj.value, edge.avg.value) == pytest.approx((0.2, 0.1))
    assert edge.group_maj.value - edge.avg.value == pytest.approx(FAR_MORE)
    assert figures("rr--").answered == ANSWERED


def test_the_majority_of_a_runs_group_decides_not_that_of_all_samples() -> None:
    """Of eight samples three agree on the right answer; two samples agree on it in 3 draws of 28."""
    made = [question("rrrabcde")]
    of_all, of_two = measure(made, [], 8, 0.2, 0.9), measure(made, [], 2, 0.2, 0.9)
    assert of_all.maj == of_two.maj and of_all.maj is not None and of_all.maj.value == 1.0
    assert of_two.group_maj is not None and of_two.group_maj.value == pytest.approx(3 / 8)
    assert (case_of(of_all), case_of(of_two)) == ("latent", "settled")


def test_without_labels_only_answers_and_entropy_are_told() -> None:
    found = figures("rrab", "aabb", labelled=False)
    assert case_of(found) == "no_labels" and found.avg is found.maj is found.group_maj is found.passed is None
    assert (found.answered, found.num_labelled, notes_on(found)) == (1.0, 0, [])
    shown = render(found)
    assert shown.count("not known: no question has an answer") == 3 and "not whether what they agree on is right" in (
        shown.replace("\n", " "))
    assert case_of(figures("---a", labelled=False)) == "no_format"  # which needs no labels to be seen


def test_labelled_questions_give_the_accuracy_and_all_questions_the_rest() -> None:
    found = measure([question("rrab")], [question("aaaa"), question("a---")], 4, 0.2, 0.9)
    assert (found.num_questions, found.num_labelled, found.answered) == (3, 1, 9 / 12)
    assert found.avg is not None and found.avg.value == 0.5
    assert found.normalised_entropy == pytest.approx((0.75 + 0 + 1) / 3)
    assert (found.groups.too_low, found.groups.trained, found.groups.too_high) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_each_question_gives_as_many_groups_as_its_samples_make() -> None:
    """Eight samples are two groups of four; three are left over of eleven."""
    groups = measure([question("rrrraabc")], [question("aabbaabbabc")], 4, 0.2, 0.9).groups
    assert groups.splits == (((2, 2), 0.5), ((4,), 0.25), ((2, 1, 1), 0.25))
    assert (groups.too_low, groups.trained, groups.too_high) == (0.25, 0.75, 0.0)


def test_what_makes_a_case_less_sure_is_noted() -> None:
    sure = figures(RIGHT, times=FEW_LABELS)
    assert notes_on(sure) == []
    (few,) = notes_on(figures(RIGHT, times=FEW_LABELS - 1))
    assert few.startswith(f"{FEW_LABELS - 1} question(s) with an answer are few")
    (near,) = notes_on(figures("rrab", "aarb", times=20))
    assert "maj@4" in near and "wrong on more than half of the questions" in near
    assert figures("rr--", cut="--xx").cut == 0.5 > CUT
    assert notes_on(figures("rr--", cut="--xx", times=FEW_LABELS))[0].startswith("50% of the completions were cut at")
    assert notes_on(figures("rr--", cut="xx--", times=FEW_LABELS)) == []  # cut behind their answers


@pytest.mark.parametrize("case", CASES)
def test_what_is_advised_is_there(case: Case) -> None:
    """Configurations are files, and settings are theirs."""
    advice = CASES[case]
    for step in advice.steps:
        assert all((project_root() / name).is_file() for name in re.findall(r"\b(?:configs|docs)/\S+\.\w+", step))
    words = [word for step in advice.steps for word in re.findall(r"\b[a-z]+(?:[._][a-z_]+)*=[\w.-]+", step)]
    assert case != "latent" or len(words) >= 3
    name = "label_free" if case == "often_wrong" else "empo_math"
    assert case not in ("latent", "often_wrong") or any(f"configs/{name}.yaml" in step for step in advice.steps)
    config = load(project_root() / "configs" / f"{name}.yaml", words)
    assert case != "often_wrong" or (config.votes is not None and str(config.evaluation.path) == "FILE")
