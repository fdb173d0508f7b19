"""The built-in rewards: one contract for all, and the values of each."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from rewards.contract import GroupScore
from rewards.loading import load
from rewards.scoring import GroupInput, RewardSpec, RewardSum
from rl.advantages import compute_advantages
from tests.reference.novelty import reference_novelty
from tests.reference.soft_votes import reference_soft_votes

BUILT_IN = [
    "rewards.accuracy:accuracy",
    "rewards.format:format_boxed",
    "rewards.format:format_think",
    "rewards.majority:majority_vote",
    "rewards.majority:soft_votes",
    "rewards.majority:voted",
    "rewards.majority:share_of_votes",
    "rewards.majority:majority_with_novelty",
    "rewards.semantic_entropy:semantic_entropy",
    "rewards.controls:random_reward",
    "rewards.controls:inverted_accuracy",
    "rewards.confidence:self_certainty",
    "rewards.confidence:token_entropy",
    "rewards.reference_likelihood:reference_likelihood",
    "rewards.language:language_consistency",
    "rewards.overlong:overlong_penalty",
]
NEEDS_ANSWER = (
    "rewards.accuracy:accuracy", "rewards.controls:inverted_accuracy",
    "rewards.reference_likelihood:reference_likelihood")
COMPLETIONS = [r"\boxed{4}", r"so \boxed{4.0}", r"\boxed{5}", "no idea"]


@dataclass(frozen=True)
class CharacterRollout:
    """A completion as tokens of one character, whose statistics follow from the character."""

    text: str

    @property
    def token_ids(self) -> list[int]:
        return [*map(ord, self.text), 0]

    @property
    def logprobs(self) -> list[float]:
        return [-1.0] * len(self.token_ids)

    @property
    def entropies(self) -> list[float]:
        return [(token % 7) / 7 for token in self.token_ids]

    @property
    def self_certainties(self) -> list[float]:
        return [token % 5 for token in self.token_ids]


class CharacterPolicy:
    """Each character has probability 0.9 after the word "so", which stands for reasoning, and 0.5 without it."""

    def logprobs(self, continuations: Sequence[tuple[str, str]]) -> list[list[float]]:
        return [[math.log(0.9 if "so" in before else 0.5) for _ in text] for before, text in continuations]


def call(
    use: str, completions: Sequence[str] = COMPLETIONS, answer: str | None = "4", **arguments: object
) -> GroupScore:
    needed: dict[str, object] = {
        "rollouts": [CharacterRollout(text) for text in completions], "policy": CharacterPolicy(),
        "max_completion_tokens": 1000, "votes": list(COMPLETIONS)}
    keywords = (
        {"question": "2 + 2?", "completions": list(completions), "answer": answer, "level": "easy"} | needed | arguments
    )
    result = load(use)(**keywords)
    return result if isinstance(result, GroupScore) else GroupScore(result)


@pytest.mark.parametrize("use", BUILT_IN)
def test_every_reward_keeps_the_contract(use: str) -> None:
    hostile = [
        *COMPLETIONS,
        "",
        "\x00",
        "\\boxed{" * 1000,
        "9" * 10_000,
        "\u202e}{",
        "<think></think><answer></answer>"]
    completions = list(hostile)
    first, second = call(use, completions), call(use, completions)
    assert completions == hostile, "inputs are unchanged"
    assert len(first.scores) == len(hostile)
    assert all(isinstance(score, float) and math.isfinite(score) for score in first.scores)
    assert first == second, "the same input gives the same values"
    assert len(set(first.scores)) > 1 or use.endswith(("format_think", "language_consistency"))
    group = GroupInput(
        "q1", "2 + 2?", hostile, "4", {"level": "easy", "votes": COMPLETIONS},
        rollouts=[CharacterRollout(text) for text in hostile],
        policy=CharacterPolicy())
    result = RewardSum([RewardSpec(use)], run_arguments={"max_completion_tokens": 1000}).score([group])[0]
    assert result.rewards == tuple(first.scores)
    assert len(call(use, hostile[:1]).scores) == 1, "a group of one"
    assert len(result.labels) == len(result.answers) == len(hostile)


@pytest.mark.parametrize("use", BUILT_IN)
def test_rewards_that_need_an_answer_say_so(use: str) -> None:
    needs = getattr(load(use), "needs_answer", False)
    assert needs == (use in NEEDS_ANSWER)
    if not needs:
        call(use, answer=None)


def test_accuracy_is_equivalence_with_the_gold_answer() -> None:
    score = call("rewards.accuracy:accuracy")
    assert score.scores == [1.0, 1.0, 0.0, 0.0]
    assert score.answers == ["4", "4.0", "5", None]
    assert call("rewards.controls:inverted_accuracy").scores == [0.0, 0.0, 1.0, 1.0]
    assert call("rewards.accuracy:accuracy", ["it is 4"], last_number=True).scores == [1.0]


def test_semantic_entropy_is_the_share_of_the_group_that_agrees() -> None:
    use = "rewards.semantic_entropy:semantic_entropy"
    assert call(use).scores == [0.5, 0.5, 0.25, 0.0]
    assert call(use, form="power", power=2.0).scores == [0.25, 0.25, 0.0625, 0.0]
    assert call(use, form="log").scores == pytest.approx([math.log(0.5), math.log(0.5), math.log(0.25), math.log(0.25)])
    assert call(use, unanswered=-1.0).scores == [0.5, 0.5, 0.25, -1.0]
    assert call(use).labels == (0, 0, 1, 2)
    assert call(use).metrics["entropy"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert call(use, answer=None) == call(use, answer="5"), "no answer is read"


@pytest.mark.parametrize(("form", "power"), [("shares", 1.0), ("power", 0.0), ("power", math.nan)])
def test_semantic_entropy_refuses_impossible_settings(form: str, power: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        call("rewards.semantic_entropy:semantic_entropy", form=form, power=power)


def test_majority_vote_pays_the_one_largest_cluster_and_ties_nothing() -> None:
    use = "rewards.majority:majority_vote"
    assert call(use).scores == [1.0, 1.0, 0.0, 0.0]
    tie = call(use, [r"\boxed{4}", r"\boxed{5}", "none", "none"])
    assert tie.scores == [0.0] * 4
    assert tie.metrics["tie"] == 1.0
    assert call(use, ["none", "none"]).scores == [0.0, 0.0]


@pytest.mark.parametrize("sharpness", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("answers", [
    ["1", "1", "2", "3"], ["1", "1", "2", "2"], ["1", None, None, "2"], [None] * 4, ["7"] * 4])
def test_soft_votes_without_a_deviation_are_the_sum_over_all_pseudo_labels(
    answers: list[str | None], sharpness: float
) -> None:
    texts = ["no idea" if answer is None else f"\\boxed{{{answer}}}" for answer in answers]
    found = call("rewards.majority:soft_votes", texts, sharpness=sharpness)
    [advantages] = compute_advantages([[score or 0.0 for score in found.scores]], "dr_grpo")
    assert advantages == pytest.approx(reference_soft_votes(answers, sharpness))


def test_soft_votes_lie_between_the_majority_vote_and_the_same_for_every_answer() -> None:
    texts = [r"\boxed{1}"] * 5 + [r"\boxed{2}"] * 3
    assert call("rewards.majority:soft_votes", texts, sharpness=1e-3).scores == pytest.approx([1.0] * 5 + [0.0] * 3)
    assert call("rewards.majority:soft_votes", texts, sharpness=1e3).scores == pytest.approx([0.5] * 8)
    with pytest.raises(ValueError, match="sharpness is 0"):
        call("rewards.majority:soft_votes", sharpness=0)


@pytest.mark.parametrize(("digits", "majority"), [
    ("1112-", "1"), ("11122", "1"), ("1122", None), ("----", None), ("1", "1"), ("111", "1"), ("12345", None),
    ("1-22", "2")])
def test_novelty_orders_each_side_and_never_crosses_from_one_to_the_other(digits: str, majority: str | None) -> None:
    texts = ["no idea" if digit == "-" else f"{'first ' * i}then {i * i} so \\boxed{{{digit}}}"
             for i, digit in enumerate(digits)]
    answers = [None if digit == "-" else digit for digit in digits]
    found = call("rewards.majority:majority_with_novelty", texts).scores
    assert found == pytest.approx(reference_novelty(texts, answers, majority))
    for answer, score in zip(answers, found, strict=True):
        assert score is not None and (0.5 <= score <= 1 if answer == majority and answer else -1 <= score <= -0.5)


def test_equal_texts_are_equally_new() -> None:
    found = call("rewards.majority:majority_with_novelty", [r"\boxed{1}"] * 3 + [r"\boxed{2}"] * 2).scores
    assert found == [0.75] * 3 + [-0.75] * 2


def literal_voted(completions: Sequence[str], votes: Sequence[str], min_share: float) -> list[float]:
    """Answers are single digits in boxes here, or missing."""
    def answer(text: str) -> str | None:
        return text[text.index("{") + 1] if "{" in text else None

    tally = {digit: sum(answer(vote) == digit for vote in votes) for digit in "123"}
    best = [digit for digit, count in tally.items() if count == max(tally.values()) > 0]
    label = best[0] if len(best) == 1 and tally[best[0]] / len(votes) >= min_share else "no label"
    return [1.0 if answer(text) == label else 0.0 for text in completions]


@pytest.mark.parametrize("min_share", [0.0, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("votes", ["112", "1122", "---", "3--", "2", "333311", "11--"])
def test_the_label_is_the_majority_of_the_votes_and_not_of_the_group(votes: str, min_share: float) -> None:
    def texts(digits: str) -> list[str]:
        return ["no idea" if digit == "-" else f"so \\boxed{{{digit}}}" for digit in digits]

    completions = texts("11123-")
    score = call("rewards.majority:voted", completions, votes=texts(votes), min_share=min_share)
    assert score.scores == literal_voted(completions, texts(votes), min_share)
    assert score.labels == (0, 0, 0, 1, 2, 3) and score.answers == ["1", "1", "1", "2", "3", None]
    assert score.metrics["vote_tie"] == float(votes == "1122")


@pytest.mark.parametrize(("votes", "expected"), [
    ("112-", [0.5, 0.5, 0.5, 0.25, 0.0, 0.0]), ("---", [0.0] * 6), ("4", [0.0] * 6), ("333311", [1 / 3] * 3 + [
        0.0, 2 / 3, 0.0])])
def test_an_answer_gets_its_share_of_the_votes(votes: str, expected: list[float]) -> None:
    def texts(digits: str) -> list[str]:
        return ["no idea" if digit == "-" else f"so \\boxed{{{digit}}}" for digit in digits]

    score = call("rewards.majority:share_of_votes", texts("11123-"), votes=texts(votes))
    assert score.scores == pytest.approx(expected)
    assert score.labels == (0, 0, 0, 1, 2, 3) and score.answers == ["1", "1", "1", "2", "3", None]
    assert score.metrics["vote_share"] == pytest.approx({"112-": 0.5, "---": 0, "4": 1, "333311": 2 / 3}[votes])


def test_the_share_of_ones_own_votes_is_the_reward_of_semantic_entropy() -> None:
    texts = [r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{2}", "no idea"]
    assert call("rewards.majority:share_of_votes", texts, votes=texts).scores == call(
        "rewards.semantic_entropy:semantic_entropy", texts).scores


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="min_share is 25, expected a share of the votes"):
        call("rewards.majority:voted", votes=["1"], min_share=25)


def test_a_vote_in_another_form_is_the_same_answer() -> None:
    assert call("rewards.majority:voted", [r"\boxed{1/2}", r"\boxed{2}"], votes=[r"\boxed{0.5}"]).scores == [1.0, 0.0]


@pytest.mark.parametrize(("text", "kept"), [
    ("<think>\nhm\n</think>\n<answer>4</answer>\n", 1.0), ("<think>a</think><answer>b</answer>", 1.0),
    ("<answer>b</answer><think>a</think>", 0.0), ("<think>a</think><answer>b</answer> more", 0.0),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0), ("<think>a<answer>b</answer></think>", 0.0),
    ("<think>a</think> so <answer>b</answer>", 0.0), ("<think></think><answer>b</answer>", 0.0), ("4", 0.0),
])
def test_format_think_wants_each_tag_once_and_in_order(text: str, kept: float) -> None:
    assert call("rewards.format:format_think", [text]).scores == [kept]


def test_format_boxed_wants_a_closed_box_with_something_in_it() -> None:
    assert call("rewards.format:format_boxed", [r"\boxed{x}", r"\boxed{}", r"\boxed{1", "1"]).scores == [
        1.0, 0.0, 0.0, 0.0]


def test_random_reward_is_fair_repeatable_and_depends_on_its_seed() -> None:
    use = "rewards.controls:random_reward"
    completions = [f"completion {i}" for i in range(4000)]
    scores = call(use, completions).scores
    assert abs(scores.count(1.0) / len(scores) - 0.5) < 0.04
    assert scores == call(use, completions, answer=None).scores
    differing = sum(a != b for a, b in zip(scores, call(use, completions, seed=1).scores, strict=True))
    assert 1800 < differing < 2200
    assert set(call(use, ["same"] * 20).scores) == {0.0, 1.0}


def test_importing_the_rewards_loads_no_torch_and_no_algebra() -> None:
    modules = ", ".join(sorted({use.partition(":")[0] for use in BUILT_IN} | {"rewards.scoring"}))
    code = f"import sys, {modules}; print([m for m in ('torch', 'sympy', 'math_verify', 'rl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
