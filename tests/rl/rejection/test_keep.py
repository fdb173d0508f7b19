"""rl/rejection/keep.py: each completion is kept, or dropped for the first reason that applies."""

from __future__ import annotations

from typing import Any

import pytest

from rl.rejection.config import KeepSection
from rl.rejection.keep import choose, shingles_of, similarity
from tests.reference.reject import completion, sampled

ALL = KeepSection(order="shortest", near_duplicates=None, per_question=None)


def keep(**settings: Any) -> KeepSection:
    return KeepSection.model_validate({"order": "shortest"} | settings)


def test_the_reward_decides_and_a_sum_of_weights_may_be_rounded() -> None:
    question = sampled([completion("aa", 1.0), completion("b", 0.5), completion("ccc", 0.1 + 0.2 + 0.7 - 2e-16)])
    assert choose(question, ALL, 0).reasons == (None, "reward", None)
    assert choose(question, keep(reward_at_least=0.5, near_duplicates=None), 0).reasons == (None, None, None)
    assert choose(question, keep(reward_at_least=1.01), 0).kept == ()


def test_shortest_first_by_tokens_then_by_sample() -> None:
    question = sampled(
        [
            completion("a", tokens=9), completion("bbbb", tokens=3), completion("ccc", tokens=9),
            completion("d", tokens=5)])
    assert choose(question, ALL, 0).kept == (1, 3, 0, 2)
    two = choose(question, keep(per_question=2), 0)
    assert two.kept == (1, 3) and two.reasons == ("over_limit", None, "over_limit", None)


def test_random_order_is_the_seeds_and_the_questions_and_every_completion_can_come_first() -> None:
    completions = [completion(letter, tokens=5) for letter in "abcdef"]
    random = keep(order="random", per_question=1)
    assert choose(sampled(completions), random, 7) == choose(sampled(completions), random, 7)
    assert {choose(sampled(completions), random, seed).kept[0] for seed in range(60)} == set(range(6))
    assert len({choose(sampled(completions, name=f"q{i}"), random, 0).kept[0] for i in range(60)}) == 6


def test_truncated_and_empty_completions_are_never_kept_whatever_their_reward() -> None:
    question = sampled([completion("a", truncated=True), completion(" \n", tokens=2), completion("b")])
    assert choose(question, ALL, 0).reasons == ("truncated", "empty", None)


def test_bounds_on_the_entropy_are_exclusive_and_refuse_the_whole_group() -> None:
    bounded = keep(low=0.25, high=0.75)
    found = [
        choose(sampled([completion("a")], entropy=entropy), bounded, 0).reasons[0]
        for entropy in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert found == ["entropy_low", "entropy_low", None, "entropy_high", "entropy_high"]


def test_what_a_reward_could_not_judge_is_not_kept() -> None:
    assert choose(sampled([completion("a"), completion("b", 0.0)], judged=False), ALL, 0).reasons == (
        "unjudged", "unjudged")


def test_similarity_by_hand() -> None:
    # 19 + 28 = 47 is five words, three sequences of three; the other text shares the two before its 48, and has one of
    # its own.
    a, b = shingles_of("19+28=47"), shingles_of("19 + 28 =\n48")
    assert a == {("19", "+", "28"), ("+", "28", "="), ("28", "=", "47")}
    assert similarity(a, b) == pytest.approx(2 / 4)
    assert similarity(a, a) == 1.0 and similarity(a, shingles_of("something else")) == 0.0
    assert shingles_of("two words") == {("two", "words")} and similarity(shingles_of("x"), shingles_of("x")) == 1.0


def test_near_duplicates_of_a_kept_one_are_dropped_and_of_a_dropped_one_are_not() -> None:
    first, like, other = "19+28=47", "19 + 28 = 47", "19+28=47, so 47"
    question = sampled([completion(like, tokens=8), completion(first, tokens=7), completion(other, tokens=9)])
    assert choose(question, keep(near_duplicates=1.0), 0).reasons == ("near_duplicate", None, None)
    # `first` has three of the six sequences of `other`.
    assert choose(question, keep(near_duplicates=0.5), 0).reasons == ("near_duplicate", None, "near_duplicate")
    assert choose(question, keep(near_duplicates=0.51), 0).reasons == ("near_duplicate", None, None)
    wrong = sampled([completion(first, 0.0, tokens=1), completion(like, tokens=8)])
    assert choose(wrong, keep(near_duplicates=0.5), 0).reasons == ("reward", None)


def test_a_near_duplicate_takes_no_place() -> None:
    question = sampled([completion("1 2 3", tokens=1), completion("1  2  3", tokens=2), completion("4 5 6", tokens=3)])
    assert choose(question, keep(per_question=2), 0).kept == (0, 2)
