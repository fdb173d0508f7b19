"""Labelled questions mixed in: how many a step has, what judges them, and what does not apply to them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rl.collect import Collected, Collector, CollectorState
from rl.config import RunConfig
from rl.errors import ConfigError
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.questions.inputs import read_inputs
from rl.records import ScoredGroup
from rl.selection import lacks_consensus, refusal, select
from rl.step_metrics import judged_groups, step_metrics
from rl.training_groups import groups_with_advantages
from tests.reference.advantages import reference_decoupled
from tests.reference.scored_groups import scored_group
from tests.reference.tiny_run import tiny_config, tiny_policy

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


def config_of(folder: Path, *overrides: str, labelled: int = 3) -> RunConfig:
    """20 questions without labels and a few with; four questions a step, two of them anchors."""
    questions = [{"id": f"q{i}", "question": f"{i}+{i}=?"} for i in range(20)]
    anchors = [{"id": f"q{i}", "question": f"{i}-{i}=?", "answer": "0"} for i in range(labelled)]
    for name, rows in (("questions", questions), ("anchors", anchors)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_config(
        f"data.path={folder / 'questions.jsonl'}", "data.columns.answer=null", "data.limit=null",
        "rewards.0.use=rewards.semantic_entropy:semantic_entropy", f"anchors={folder / 'anchors.jsonl'}",
        "anchors.mixed_in=2", "sampling.max_completion_tokens=8", *overrides)


def collector_of(config: RunConfig, policy: Policy, rank: int = 0, num_ranks: int = 1) -> Collector:
    return Collector(config, read_inputs(config), TransformersGenerator(policy, merge=False, max_sequences=64),
                     rank=rank, num_ranks=num_ranks)


def ids(groups: tuple[ScoredGroup, ...]) -> list[str]:
    return [group.group.question.id for group in groups]


def anchor(group: ScoredGroup, *rewards: float) -> ScoredGroup:
    question = replace(group.group.question, is_anchor=True)
    prompt = replace(group.group.prompt, question=question)
    return replace(group, group=replace(group.group, prompt=prompt), rewards=rewards, scores={"accuracy": rewards})


def test_each_step_has_its_anchors_in_turn_and_each_group_its_own_reward(tmp_path: Path, policy: Policy) -> None:
    collector = collector_of(config_of(tmp_path), policy)
    seen = []
    for step in range(3):
        collected = collector.collect(step)
        assert [group.is_anchor for group in collected.sampled] == [True, False, True, False]
        assert [tuple(group.scores) for group in collected.sampled] == [("accuracy",), ("semantic_entropy",)] * 2
        assert all(group.group.question.answer == ("0" if group.is_anchor else None) for group in collected.sampled)
        seen += [name for name in ids(collected.sampled) if name.startswith("anchor:")]
    assert sorted(seen) == sorted(["anchor:q0", "anchor:q1", "anchor:q2"] * 2), "two whole passes over three anchors"


def test_refilling_samples_no_further_anchors(tmp_path: Path, policy: Policy) -> None:
    collected = collector_of(config_of(tmp_path, "selection.mode=refill", "selection.max_refills=2"), policy).collect(0)
    assert sum(group.is_anchor for group in collected.sampled) == 2 and collected.num_refills > 0


def test_the_order_of_the_anchors_is_part_of_the_state(tmp_path: Path, policy: Policy) -> None:
    config = config_of(tmp_path)
    first, second = collector_of(config, policy), collector_of(config, policy)
    first.collect(0)
    first.move_on()
    second.load_state(CollectorState.from_json(json.loads(json.dumps(first.state().to_json()))))
    assert ids(first.collect(1).sampled) == ids(second.collect(1).sampled)
    assert "anchors" not in collector_of(tiny_config(), policy).state().to_json()


def test_bounds_and_votes_do_not_apply_to_anchors() -> None:
    unanimous, scattered = scored_group("a", ["1"] * 4), scored_group("b", ["1", "2", "3", "4"])
    for group in (unanimous, scattered):
        assert refusal(anchor(group, 1.0, 0.0, 0.0, 0.0), 0.1, 0.9) is None
        assert refusal(anchor(group, 1.0, 1.0, 1.0, 1.0), 0.1, 0.9, min_votes=4) == "equal_rewards"
        assert not lacks_consensus(anchor(group, 1.0, 0.0, 0.0, 0.0), 4)


def test_rewards_normalised_one_by_one_are_one_for_an_anchor() -> None:
    free = replace(scored_group("a", ["1", "1", "2"]), scores={"a": (1.0, 1.0, 0.0), "b": (3.0, 1.0, 2.0)})
    labelled = anchor(scored_group("b", ["1", "2", "2"]), 1.0, 0.0, 0.0)
    config = tiny_config("advantage.normalise=each", "rewards=[{use: rewards.majority:majority_vote}, "
                         "{use: rewards.format:format_boxed, weight: 0.5}]")
    selection = select((free, labelled), None, None)
    batch = groups_with_advantages(config, Collected((free, labelled), selection, selection.kept, 0))
    # As if the anchor's second reward said nothing.
    expected = reference_decoupled([[*free.scores.values()], [[1.0, 0.0, 0.0], [0.0] * 3]], [1.0, 0.5], 1, 1e-4)
    assert [item.advantages[0] for item in batch] == pytest.approx([expected[0][0], 2 * expected[1][0] * 0.5])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_the_weight_of_anchors_is_a_factor_on_their_advantages_alone(tmp_path: Path, name: str) -> None:
    groups = (scored_group("a", ["1", "1", "2"]), anchor(scored_group("b", ["1", "2", "2"]), 1.0, 0.0, 0.0))
    selection = select(groups, None, None)
    collected = Collected(groups, selection, selection.kept, 0)
    whole, quarter = (
        [item.advantages for item in groups_with_advantages(config_of(tmp_path, *words), collected)]
        for words in ((f"advantage={name}",), (f"advantage={name}", "anchors.weight=0.25")))
    assert quarter[0] == whole[0] and quarter[1] == pytest.approx([value / 4 for value in whole[1]])
    assert whole[1][0] > 0


def test_the_steps_reward_is_that_of_the_others(tmp_path: Path) -> None:
    free, labelled = scored_group("a", ["1", "1", "2"]), anchor(scored_group("b", ["1", "2", "2"]), 1.0, 0.0, 0.0)
    selection = select((free, labelled), None, None)
    collected = Collected((free, labelled), selection, selection.kept, 0)
    assert judged_groups(collected) == (free,)
    metrics = step_metrics(collected, {}, {}, policy_version=0, num_surplus=0)
    assert metrics["reward"] == pytest.approx(sum(free.rewards) / 3)
    assert metrics["anchors/reward"] == pytest.approx(1 / 3) and metrics["anchors/trained"] == 1.0


def test_a_question_is_not_trained_with_and_without_its_label(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    rows = [{"question": "3+3=?", "answer": "6"}, {"question": "no other", "answer": "1"}]
    (tmp_path / "anchors.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = read_inputs(config)
    assert inputs.dropped["anchors too long"] == 0
    assert len(inputs.prompts) == 19 and inputs.dropped["that are anchors"] == 1 and len(inputs.anchors) == 2
    assert {"data.path", "anchors.path"} <= inputs.digests.keys()


def test_what_cannot_be_an_anchor_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    (tmp_path / "anchors.jsonl").write_text('{"question": "1-1=?"}\n')
    with pytest.raises(ConfigError, match=r"anchors\.path.*needs a gold answer"):
        read_inputs(config)
    (tmp_path / "anchors.jsonl").write_text("".join(
        json.dumps({"question": f"{i}+{i}=?", "answer": "0"}) + "\n" for i in range(20)))
    with pytest.raises(ConfigError, match="is an anchor too"):
        read_inputs(config)
    with pytest.raises(ConfigError, match=r"anchors\.reward: rewards\.majority:voted judges by votes"):
        read_inputs(config_of(tmp_path, "anchors.reward=rewards.majority:voted"))
    with pytest.raises(ConfigError, match=r"leaves none without a label"):
        config_of(tmp_path, "anchors.mixed_in=4")
    with pytest.raises(ConfigError, match="no questions are named"):
        tiny_config("anchors.mixed_in=2")
