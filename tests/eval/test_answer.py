"""What k completions agree on."""

from __future__ import annotations

import math

import pytest

from eval.answer import agree, render


def boxed(*answers: str) -> list[str]:
    return [f"So {'very ' * place}surely it is \\boxed{{{answer}}}." for place, answer in enumerate(answers)]


def test_the_largest_cluster_wins_and_equivalent_answers_share_it() -> None:
    found = agree([*boxed("3", "1/2", "0.5", r"\frac{1}{2}"), "I do not know."])
    assert found.answer == "1/2" and found.share == 3 / 5 and found.num_unanswered == 1
    assert found.others == (("3", 1 / 5),) and found.ties == ()
    assert found.entropy == pytest.approx(-(0.6 * math.log(0.6) + 2 * 0.2 * math.log(0.2)))
    assert found.normalised_entropy == pytest.approx(found.entropy / math.log(5))


def test_the_support_is_the_shortest_completion_of_the_majority_alone() -> None:
    found = agree(["\\boxed{7}", *boxed("5", "5")])
    assert found.answer == "5" and found.support == "So surely it is \\boxed{5}."


def test_ties_are_told() -> None:
    found = agree(boxed("2", "9"))
    assert (found.answer, found.ties, found.share) == ("2", ("9",), 0.5)
    assert "tied with   9" in render(found, 0)


def test_no_answer_is_none_and_never_a_number_in_passing() -> None:
    found = agree(["There were 12 of them", "and 12 again"])
    assert found.answer is None and found.share == 0.0 and found.num_unanswered == 2
    assert "none: no completion states one" in render(found, 1) and "1 cut at --max-tokens" in render(found, 1)
    assert agree(["There were 12 of them", "and 12 again"], last_number=True).answer == "12"
