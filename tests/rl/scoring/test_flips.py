"""Weights by flips of a question's majority answer, against a literal reading of the whole history."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from rl.collect import Collected
from rl.config import FlipsSection
from rl.records import ScoredGroup
from rl.scoring.flips import FlipMemory
from rl.selection import select
from rl.training_groups import groups_with_advantages
from tests.reference.flips import reference_weight
from tests.reference.scored_groups import scored_group
from tests.reference.tiny_run import tiny_config

SETTINGS = FlipsSection(enabled=True, window=3)


def visit(question: str, answer: str, votes: int) -> ScoredGroup:
    """Of eight completions, `votes` agree; no two of the others do."""
    return scored_group(question, [answer] * votes + [f"x{i}" for i in range(8 - votes)])


def weight_now(memory: FlipMemory, group: ScoredGroup) -> float:
    [weight] = memory.weights([group], {id(group)})
    return weight


@pytest.mark.parametrize("seed", range(6))
def test_weights_equal_the_literal_reading_of_all_visits(seed: int) -> None:
    """Three questions of different steadiness; the memory goes through a checkpoint at each visit."""
    numbers, memory = random.Random(seed), FlipMemory(SETTINGS)
    history: dict[str, list[tuple[str, float]]] = {"steady": [], "restless": [], "settled": []}
    for number in range(40):
        question = numbers.choice(list(history))
        steady = question == "steady" or (question == "settled" and number > 15)
        group = visit(question, "1" if steady else numbers.choice("123"), numbers.randint(2, 8))
        history[question].append((group.answers[0] or "", group.largest_cluster / 8))
        answers, shares = zip(*history[question], strict=True)
        assert weight_now(memory, group) == pytest.approx(reference_weight(answers, shares, SETTINGS))
        memory.note([group])
        assert memory.weights([group], set()) == pytest.approx([reference_weight(answers, shares, SETTINGS)])
        resumed = FlipMemory(SETTINGS)
        resumed.load(json.loads(json.dumps(memory.to_json())))
        memory = resumed


def test_each_factor_and_the_floor_by_hand() -> None:
    memory = FlipMemory(SETTINGS)
    assert weight_now(memory, visit("q", "1", 8)) == 1.0
    memory.note([visit("q", "1", 8)])
    assert weight_now(memory, visit("q", "2", 4)) == pytest.approx(0.5)  # one flip of one
    assert weight_now(memory, visit("q", "2", 6)) == pytest.approx(0.5 * 0.7)  # and a large majority
    memory.note([visit("q", "1", 8)])
    assert weight_now(memory, visit("q", "1", 8)) == pytest.approx(0.85)  # never flipped, at the third visit
    harsh = FlipMemory(FlipsSection(enabled=True, unstable=1.0, contradiction=1.0))
    harsh.note([visit("q", "1", 8)])
    assert weight_now(harsh, visit("q", "2", 8)) == 0.1


def test_ties_and_unjudged_groups_leave_no_trace_and_anchors_have_weight_1() -> None:
    memory = FlipMemory(SETTINGS)
    memory.note([visit("q", "1", 8)])
    tie = scored_group("q", ["2", "2", "3", "3"])
    unjudged = replace(visit("q", "2", 8), skipped=True)
    memory.note([tie, unjudged])
    assert memory.to_json() == {"q": [["1"], [1.0], 1, False]}
    assert weight_now(memory, tie) == 1.0
    group = visit("q", "2", 8)
    question = replace(group.group.question, is_anchor=True)
    anchor = replace(group, group=replace(group.group, prompt=replace(group.group.prompt, question=question)))
    assert weight_now(memory, anchor) == 1.0 != weight_now(memory, group)


def test_a_groups_advantages_are_scaled_and_the_others_are_not() -> None:
    memory = FlipMemory(SETTINGS)
    memory.note([visit("q1", "1", 5), visit("q2", "1", 5)])
    groups = (visit("q1", "2", 5), visit("q2", "1", 5))
    selection = select(groups, None, None)
    collected = Collected(groups, selection, selection.kept, 0)
    plain, weighted = (groups_with_advantages(tiny_config(), collected, flips) for flips in (None, memory))
    assert weighted[0].advantages == pytest.approx([0.5 * 0.7 * value for value in plain[0].advantages])
    assert weighted[1] == plain[1]
