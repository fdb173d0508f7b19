"""Collecting a batch: what each selection mode does with refused groups, how refilling fills, and what is left for the
next step.

The reward is a plug-in that decides by a column of the question's row whether its group will be kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.collect import Collected, Collector
from rl.generate.protocol import request_seed
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.questions.inputs import Inputs, read_inputs
from rl.questions.order import QuestionOrder
from rl.records import ScoredGroup
from tests.reference.tiny_run import tiny_config, tiny_policy

torch.set_num_threads(1)
REWARD = """
from rewards.contract import GroupScore

def by_kind(*, question, completions, answer, kind, **_):
    size = len(completions)
    labels = {"kept": [i // 2 for i in range(size)], "equal": [i // 2 for i in range(size)], "low": [0] * size,
              "high": list(range(size))}
    scores = [0.0] * size if kind == "equal" else [float(i == 0) for i in range(size)]
    return GroupScore(scores, labels=labels[kind], answers=[str(label) for label in labels[kind]])
"""


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


class Setting:
    """A collector over questions of the given kinds in this order, four to a step."""

    def __init__(
        self, folder: Path, policy: Policy, kinds: Sequence[str], *overrides: str, rank: int = 0, num_ranks: int = 1
    ) -> None:
        (folder / "reward.py").write_text(REWARD)
        rows = [{"id": f"q{i}", "question": f"{i}+{i}=?", "kind": kind} for i, kind in enumerate(kinds)]
        (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.config = tiny_config(
            f"data.path={folder / 'questions.jsonl'}",
            f"rewards.0.use={folder / 'reward.py'}:by_kind",
            "data.limit=null",
            "selection.low=0.1",
            "selection.high=0.9",
            "sampling.max_completion_tokens=2",
            "data.shuffle=false",
            *overrides)
        self.inputs: Inputs = read_inputs(self.config)
        self.generator = TransformersGenerator(policy, merge=False, max_sequences=64)
        self.collector = Collector(
            self.config, replace(self.inputs, stop_strings=()), self.generator, rank=rank, num_ranks=num_ranks)


def ids(groups: Sequence[ScoredGroup]) -> list[int]:
    return [int(group.group.question.id[1:]) for group in groups]


def refused(collected: Collected) -> dict[int, str]:
    return {int(group.group.question.id[1:]): reason for group, reason in collected.selection.refused}


MIXED = ["kept", "low", "kept", "equal", "high", "kept", "kept", "kept"]


@pytest.mark.parametrize("mode", ["drop", "zero"])
def test_without_refilling_the_batch_holds_the_kept_groups_alone(tmp_path: Path, policy: Policy, mode: str) -> None:
    collector = Setting(tmp_path, policy, MIXED, f"selection.mode={mode}").collector
    first, second = collector.collect(0), collector.collect(1)
    assert ids(first.batch) == [0, 2] and refused(first) == {1: "too_low", 3: "equal_rewards"}
    assert ids(second.batch) == [5, 6, 7] and refused(second) == {4: "too_high"}
    assert sorted(ids(first.sampled)) == [0, 1, 2, 3]
    assert first.num_refills == second.num_refills == 0 and collector.surplus == ()


def test_sampled_groups_keep_the_order_of_the_draw(tmp_path: Path, policy: Policy) -> None:
    assert ids(Setting(tmp_path, policy, MIXED, "selection.mode=zero").collector.collect(0).sampled) == [0, 1, 2, 3]


def test_a_question_drawn_twice_in_a_step_is_not_sampled_with_the_same_seeds(tmp_path: Path, policy: Policy) -> None:
    """Two questions for a step of four: each comes twice, and the second group of each is another sample."""
    groups = Setting(tmp_path, policy, ["kept", "kept"]).collector.collect(0).sampled
    assert ids(groups) == [0, 1, 0, 1]
    seeds = [rollout.seed for group in groups for rollout in group.group.rollouts]
    assert len(set(seeds)) == len(seeds)


def test_refilling_samples_on_until_the_batch_is_full(tmp_path: Path, policy: Policy) -> None:
    collected = Setting(tmp_path, policy, [*MIXED, *["kept"] * 8], "selection.mode=refill").collector.collect(0)
    assert ids(collected.batch) == [0, 2, 5, 6]
    assert collected.num_refills >= 1 and len(collected.batch) == 4


def test_a_full_batch_is_not_refilled(tmp_path: Path, policy: Policy) -> None:
    collected = Setting(tmp_path, policy, ["kept"] * 8, "selection.mode=refill").collector.collect(0)
    assert ids(collected.batch) == ids(collected.sampled) == [0, 1, 2, 3] and collected.num_refills == 0


def test_the_surplus_of_refilling_trains_first_in_the_next_step(tmp_path: Path, policy: Policy) -> None:
    """Of the first four one is kept; at that rate three missing ones ask for a whole batch, of which all four are kept:
    one is left."""
    setting = Setting(tmp_path, policy, ["low", "low", "low", *["kept"] * 20], "selection.mode=refill")
    first = setting.collector.collect(0)
    assert ids(first.batch) == [3, 4, 5, 6] and ids(setting.collector.surplus) == [7]
    assert sorted(ids(first.sampled)) == list(range(8))
    setting.generator.policy_version = 1
    second = setting.collector.collect(1)
    assert ids(second.batch) == [7, 8, 9, 10] and ids(second.sampled) == [8, 9, 10] and setting.collector.surplus == ()
    assert [group.group.rollouts[0].policy_version for group in second.batch] == [0, 1, 1, 1]


def test_a_surplus_that_fills_the_batch_samples_nothing(tmp_path: Path, policy: Policy) -> None:
    setting = Setting(tmp_path, policy, ["kept"] * 8, "selection.mode=refill")
    kept = setting.collector.collect(0).batch
    setting.collector.surplus = (*kept, kept[0])
    collected = setting.collector.collect(1)
    assert collected.batch == kept and collected.sampled == () and setting.collector.surplus == (kept[0],)
    assert collected.times.generate_s == 0


@pytest.mark.parametrize("max_refills", [0, 1, 3])
def test_refilling_gives_up_after_max_refills_rounds(tmp_path: Path, policy: Policy, max_refills: int) -> None:
    setting = Setting(tmp_path, policy, ["low"] * 40, "selection.mode=refill", f"selection.max_refills={max_refills}")
    collected = setting.collector.collect(0)
    assert collected.batch == () and collected.num_refills == max_refills
    assert ids(collected.sampled) == list(range(4 * (1 + max_refills)))


def test_max_refills_is_not_read_without_refilling(tmp_path: Path, policy: Policy) -> None:
    collected = Setting(
        tmp_path, policy, ["low"] * 40, "selection.mode=drop", "selection.max_refills=3"
    ).collector.collect(0)
    assert len(collected.sampled) == 4


def test_no_round_samples_more_than_a_whole_batch(tmp_path: Path, policy: Policy) -> None:
    kinds = ["kept", "low", "low", "low", *["low"] * 8, *["kept"] * 20]
    collected = Setting(tmp_path, policy, kinds, "selection.mode=refill").collector.collect(0)
    assert len(collected.sampled) <= 4 * (1 + collected.num_refills)
    assert ids(collected.batch) == [0, 12, 13, 14]


def test_questions_come_in_the_shuffled_order_of_the_seed(tmp_path: Path, policy: Policy) -> None:
    collector = Setting(tmp_path, policy, ["kept"] * 10, "data.shuffle=true", "seed=3").collector
    expected = QuestionOrder(10, seed=3, shuffle=True)
    for step in range(3):
        assert ids(collector.collect(step).batch) == expected.next(4)


def test_request_seeds_name_the_step_the_round_and_the_sample(tmp_path: Path, policy: Policy) -> None:
    collected = Setting(
        tmp_path, policy, ["low"] * 4 + ["kept"] * 4, "selection.mode=refill", "seed=5"
    ).collector.collect(9)
    for group in collected.sampled:
        number = group.group.question.id
        round_number = 0 if int(number[1:]) < 4 else 1
        assert [r.seed for r in group.group.rollouts] == [
            request_seed(5, f"train-{round_number}", 9, number, i) for i in range(4)]


def test_a_collector_resumed_from_order_and_surplus_goes_on_the_same(tmp_path: Path, policy: Policy) -> None:
    kinds = ["low", "low", "low", *["kept"] * 20]
    one, two = (Setting(tmp_path, policy, kinds, "selection.mode=refill", "data.shuffle=true") for _ in range(2))
    one.collector.collect(0)
    two.collector.order.load_state(one.collector.order.state())
    two.collector.surplus = one.collector.surplus
    first, second = one.collector.collect(1), two.collector.collect(1)
    assert first.batch == second.batch and first.selection == second.selection


def test_the_prompt_rendered_for_a_question_is_the_one_sampled(tmp_path: Path, policy: Policy) -> None:
    setting = Setting(tmp_path, policy, ["kept"] * 4)
    collected = setting.collector.collect(0)
    assert [group.group.prompt for group in collected.batch] == list(setting.inputs.prompts)
    assert all(len(group.rewards) == len(group.group.rollouts) == 4 for group in collected.batch)
