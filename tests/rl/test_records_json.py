"""A scored group survives the way through JSON exactly: the same numbers, types and texts."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.records import FinishReason, Group, Prompt, Question, Rollout, ScoredGroup
from rl.records_json import scored_group_from_json, scored_group_to_json
from tests.reference.scored_groups import scored_group

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5)


@st.composite
def scored_groups(draw: st.DrawFn) -> ScoredGroup:
    size = draw(st.integers(2, 3))
    reasons: list[FinishReason] = ["stop", "length"]

    def rollout() -> Rollout:
        tokens = draw(st.lists(st.integers(0, 200_000), min_size=1, max_size=4))
        return Rollout(tuple(tokens), tuple(draw(finite) for _ in tokens), draw(texts), draw(st.sampled_from(reasons)),
                       draw(st.integers(0, 10**6)), draw(st.integers(0, 2**63 - 1)))

    question = Question(
        draw(texts), draw(texts), draw(st.none() | texts), draw(st.dictionaries(texts, json_values, max_size=2)),
        draw(st.booleans()))
    prompt = Prompt(
        question, draw(texts), tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))), draw(texts))

    def numbers() -> tuple[float, ...]:
        return tuple(draw(finite) for _ in range(size))

    return ScoredGroup(
        Group(prompt, tuple(rollout() for _ in range(size))),
        numbers(),
        draw(st.fixed_dictionaries({"a": st.just(numbers())})),
        tuple(draw(st.none() | texts) for _ in range(size)),
        tuple(range(size)),
        draw(finite),
        draw(st.dictionaries(texts, finite, max_size=2)))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(scored_groups())
def test_there_and_back_is_the_same_group(group: ScoredGroup) -> None:
    again = scored_group_from_json(json.loads(json.dumps(scored_group_to_json(group))))
    assert again == group and repr(again) == repr(group)


@pytest.mark.parametrize("value", [0.1 + 0.2, 1 / 3, 5e-324, -1.7976931348623157e308, math.nextafter(1, 2), -0.0])
def test_numbers_come_back_bit_for_bit(value: float) -> None:
    group = scored_group("q", ["1", "2"])
    changed = ScoredGroup(
        group.group, (value, 0.0), {"r": (value, 0.0)}, group.answers, group.labels, value, {"m": value})
    again = scored_group_from_json(json.loads(json.dumps(scored_group_to_json(changed))))
    assert [x.hex() for x in (again.rewards[0], again.scores["r"][0], again.entropy, again.metrics["m"])] == [
        value.hex()
    ] * 4


def test_the_group_written_is_not_changed() -> None:
    group = scored_group("q", ["1", None, "1"])
    value = scored_group_to_json(group)
    value["metrics"]["new"] = 1.0
    value["group"]["prompt"]["question"]["columns"]["new"] = 1
    assert group == scored_group("q", ["1", None, "1"])
