"""Letters of multiple-choice questions."""

from __future__ import annotations

import time

import pytest

from rewards.choice import LETTERS, choice, letter
from rewards.contract import RewardError
from rewards.scoring import GroupInput, RewardSpec, RewardSum


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{C}",
        r"\boxed{(C)}",
        r"\boxed{c}",
        r"\boxed{\text{C}}",
        r"\boxed{\textbf{(C)}}",
        r"\boxed{\mathrm{C}}",
        r"$\boxed{C}$.",
        r"\boxed{\textbf{(C)} Carbon}",
        r"\boxed{C. Carbon}",
        r"\boxed{C) 12}",
        r"\boxed{(C) -5}",
        r"\boxed{\text{(C) }12}",
        r"\boxed{C: 12 m}",
        r"\boxed{Option C}",
        r"\boxed{Answer: C}",
        r"\boxed{The correct answer is (C)}",
        r"A or B? \boxed{C}",
        r"\boxed{A \boxed{C}}",
        "The answer is (C)",
        "The answer is (C).",
        "The final answer is $C$.",
        "Answer: C",
        "**Answer:** C",
        "**Answer: C**",
        "Answer: **(C)** 12",
        "The correct option is C.",
        "The correct answer is C. Carbon",
        "the answer is option C",
        "The answer is C because B is a gas.",
        "<answer>C</answer>",
        "故选：C",
        "Therefore, the answer is (C) (E)-4-phenylbut-3-en-2-ol.",
        r"\boxed{(C) A bird}",
        r"\boxed{C. Vitamin D}",
        r"\boxed{(C) $x^2 + 1$}",
        r"\boxed{(C)\ 12}",
        r"\boxed{C}, \boxed{C}",
    ],
)
def test_an_answer_that_names_the_option_is_right(text: str) -> None:
    result = choice(completions=[text], answer="C")
    assert (list(result.scores), result.answers) == ([1.0], ["C"])


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{Carbon}",
        r"\boxed{B, C}",
        r"\boxed{C, D}",
        r"\boxed{C} and \boxed{D}",
        r"\boxed{B or C}",
        r"\boxed{C or D}",
        r"\boxed{CD}",
        r"\boxed{C/D}",
        r"\boxed{(C) or (D)}",
        "The answer is (C) or (D).",
        r"\boxed{(C)(D)}",
        r"\boxed{C. Carbon or D. Iron}",
        r"\boxed{A. 1 B. 2 C. 3 D. 4}",
        r"\boxed{(C) 3 (D) 4}",
        r"\boxed{ABCD}",
        r"\boxed{A B C D}",
        r"\boxed{\{C, D\}}",
        r"\boxed{C, and D}",
        r"\boxed{not C}",
        r"\boxed{Not A, so C}",
        r"\boxed{D, not C}",
        r"\boxed{$C$ (but maybe D)}",
        r"\boxed{Neither, maybe C}",
        r"\boxed{C + 0}",
        r"\boxed{C^2}",
        r"\boxed{2C - C}",
        r"\boxed{\frac{C}{1}}",
        r"\boxed{x = C}",
        r"\boxed{^\circ C}",
        r"\boxed{(C)^2}",
        r"\boxed{3}",
        r"\boxed{K}",
        r"\boxed{}",
        r"\boxed{C",
        "So C is correct.",
        "C",
        "",
        "Answer: Carbon",
        r"\boxed{A bird}",
    ],
)
def test_what_names_no_option_or_several_is_no_answer(text: str) -> None:
    result = choice(completions=[text], answer="C")
    assert (list(result.scores), result.answers) == ([0.0], [None])


def test_another_option_is_wrong_and_the_last_box_counts() -> None:
    result = choice(
        completions=[r"\boxed{C} no, \boxed{D}", r"\boxed{D} no, \boxed{C}", "The answer is B."], answer="(C)")
    assert (list(result.scores), result.answers) == ([0.0, 1.0, 0.0], ["D", "C", "B"])


@pytest.mark.parametrize("gold", LETTERS)
def test_each_letter_equals_itself_alone(gold: str) -> None:
    """I and E are numbers to a reader of mathematics."""
    result = choice(completions=[rf"\boxed{{{other}}}" for other in LETTERS], answer=gold)
    assert list(result.scores) == [float(other == gold) for other in LETTERS]
    assert choice(completions=[r"\boxed{2.718281828459045}", r"\boxed{\sqrt{-1}}"], answer=gold).scores == [0.0, 0.0]


def test_each_letter_is_a_cluster_of_its_own() -> None:
    """maj@k takes the largest cluster: none of the letters may be a number, a unit or a name that equals another."""
    completions = [rf"\boxed{{{other}}}" for other in LETTERS for _ in range(2)]
    group = GroupInput("q", "Which?", completions, "A", {})
    labels = RewardSum([RewardSpec("rewards.choice:choice")]).score([group])[0].labels
    assert list(labels) == [index for index in range(len(LETTERS)) for _ in range(2)]


def test_metrics_tell_an_answer_without_a_letter_from_no_answer() -> None:
    result = choice(completions=[r"\boxed{Carbon}", "no idea", r"\boxed{C}", "Answer: C"], answer="C")
    assert result.metrics["no_letter_share"] == 0.25
    assert [result.metrics[f"extracted_by/{rule}"] for rule in ("boxed", "phrase", "none")] == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("gold", ["Carbon", "12", "", "C or D", "K"])
def test_a_gold_answer_that_is_no_letter_is_refused(gold: str) -> None:
    with pytest.raises(
        RewardError, match=r"expected the letter of an option, A to J. Remedy: rewards.accuracy:accuracy"
    ):
        choice(completions=[r"\boxed{C}"], answer=gold)


def test_hostile_texts_get_a_verdict_and_groups_of_a_batch_their_own() -> None:
    hostile = [
        "",
        "\x00",
        "\\boxed{" * 1000,
        "9" * 10_000,
        "\u202e}{",
        "<think></think><answer></answer>",
        r"\boxed{B}"]
    groups = [GroupInput(gold, "Which?", hostile, gold, {"options": ["1", "2"]}) for gold in "AB"]
    rewards = [result.rewards for result in RewardSum([RewardSpec("rewards.choice:choice")]).score(groups)]
    assert rewards == [(0.0,) * 7, (0.0,) * 6 + (1.0,)]


def test_long_answers_take_no_time() -> None:
    start = time.perf_counter()
    for text in ("(" * 100_000, "the final " * 20_000, "C. " + "(A) " * 400, "\\text" * 20_000, "C." + " " * 100_000):
        assert letter(text) in (None, "C")
    assert time.perf_counter() - start < 1
