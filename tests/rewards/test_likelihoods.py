"""Confidence, overlong penalty and reference likelihood on numbers made by hand; the policy itself is in
tests/rl/policy/test_logprob_calculator.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from rewards.confidence import self_certainty, token_entropy
from rewards.overlong import overlong_penalty
from rewards.reference_likelihood import reasoning_and_opening, reference_likelihood


@dataclass(frozen=True)
class Sampled:
    token_ids: Sequence[int]
    logprobs: Sequence[float] = ()
    entropies: Sequence[float] | None = None
    self_certainties: Sequence[float] | None = None


class TablePolicy:
    """Answers from a table {beginning: probabilities}, and keeps what it was asked."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table, self.asked = table, list[tuple[str, str]]()

    def logprobs(self, continuations: Sequence[tuple[str, str]]) -> list[list[float]]:
        self.asked += continuations
        return [[math.log(p) for p in self.table[beginning]] for beginning, _ in continuations]


def test_confidence_is_the_mean_over_tokens() -> None:
    rollouts = [
        Sampled([1, 2], entropies=(0.5, 1.5), self_certainties=(2.0, 4.0)),
        Sampled([1], entropies=(0.0,), self_certainties=(9.0,))]
    assert self_certainty(rollouts=rollouts).scores == [3.0, 9.0]
    assert token_entropy(rollouts=rollouts).scores == [-1.0, 0.0]
    for reward in (self_certainty, token_entropy):
        with pytest.raises(ValueError, match="carry no"):
            reward(rollouts=[Sampled([1])])


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (130, -1.0)]
)
def test_the_overlong_penalty_falls_linearly_over_the_cache(length: int, expected: float) -> None:
    for cache in (20, None):
        score = overlong_penalty(rollouts=[Sampled([0] * length)], max_completion_tokens=100, cache_tokens=cache)
        assert score.scores == pytest.approx([expected])
        assert score.metrics["penalised_share"] == float(length > 80)


@pytest.mark.parametrize("cache", [0, 101, -1])
def test_a_cache_outside_of_the_limit_is_refused(cache: int) -> None:
    with pytest.raises(ValueError, match="cache_tokens is"):
        overlong_penalty(rollouts=[Sampled([0])], max_completion_tokens=100, cache_tokens=cache)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"3+4=7 so \boxed{7}.", ("3+4=7 so ", r"\boxed{")),
        (r"\boxed{1} no, \boxed{ 7 }", (r"\boxed{1} no, ", r"\boxed{ ")),
        (r"\boxed 7", ("", r"\boxed ")),
        ("3+4\n#### 7", ("3+4\n", "#### ")),
        ("<answer>7</answer>", ("", "<answer>")),
        ("7 it is. The answer is 7. Is it 7?", ("7 it is. The ", "answer is ")),
        ("答案是 7。", ("", "答案是 ")),
        ("seven", None),
        (r"\boxed{7", None),
        ("", None),
    ],
)
def test_the_answers_container_is_found_where_extraction_found_it(
    completion: str, expected: tuple[str, str] | None
) -> None:
    assert reasoning_and_opening(completion) == expected


def test_a_last_number_stands_in_no_container() -> None:
    assert reasoning_and_opening("3+4 makes 7 apples", last_number=True) == ("3+4 makes ", "")


def test_rlpr_by_hand() -> None:
    policy = TablePolicy(
        {r"3+4=7 \boxed{": [0.9, 0.7], r"\boxed{": [0.2, 0.4], "so #### ": [0.1, 0.1], "#### ": [0.5, 0.5]}
    )
    completions = [r"3+4=7 \boxed{7}", r"\boxed{1}", "so #### 2", "none"]
    score = reference_likelihood(completions=completions, answer="42", policy=policy)
    assert score.scores == pytest.approx([0.8 - 0.3, 0.0, 0.0, 0.0])  # 0.1 - 0.5 is clipped at 0
    assert {text for _, text in policy.asked} == {"42"}, "the gold answer stands in the place of every answer"
    assert score.metrics == pytest.approx({"unanswered_share": 0.25, "without_reasoning": (0.3 + 0.3 + 0.5) / 3})
    plain = reference_likelihood(completions=completions, answer="42", policy=policy, debias=False)
    assert plain.scores == pytest.approx([0.8, 0.3, 0.1, 0.0])


def test_verifree_by_hand() -> None:
    policy = TablePolicy({r"3+4=7 \boxed{": [0.9, 0.7], r"\boxed{": [0.2, 0.4]})
    completions = [r"3+4=7 \boxed{7}", r"\boxed{1}", "none"]

    def scores(**settings: object) -> Sequence[float | None]:
        return reference_likelihood(completions=completions, answer="42", policy=policy, **settings).scores  # type: ignore[arg-type]

    assert scores(form="sequence_probability") == pytest.approx([0.63, 0.08, 0.0])
    assert scores(form="sequence_probability", debias=True) == pytest.approx([0.55, 0.0, 0.0])
    assert scores(form="log_likelihood") == pytest.approx([math.log(0.63), math.log(0.08), math.log(0.08)])


def test_a_gold_solution_is_reduced_to_its_answer() -> None:
    policy = TablePolicy({r"\boxed{": [0.5]})
    reference_likelihood(completions=[r"\boxed{1}"], answer="It is 40+2.\n#### 42", policy=policy)
    assert {text for _, text in policy.asked} == {"42"}


def test_a_group_without_any_answer_asks_nothing() -> None:
    for form in ("mean_probability", "log_likelihood"):
        policy = TablePolicy({})
        score = reference_likelihood(completions=["none", ""], answer="42", policy=policy, form=form)
        assert score.scores == [0.0, 0.0] and policy.asked == []


@pytest.mark.parametrize("settings", [{"form": "probability"}, {"form": "log_likelihood", "debias": True}])
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        reference_likelihood(completions=["x"], answer="1", policy=TablePolicy({}), **settings)  # type: ignore[arg-type]
