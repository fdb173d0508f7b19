"""Weighted sums of reward functions over groups, in both styles, and every misuse."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewards.contract import RewardError
from rewards.scoring import GroupInput, GroupResult, RewardSpec, RewardSum

MODULE = """
import asyncio
import numpy as np
from rewards.contract import GroupScore

def length(*, completions, scale=1.0, **columns):
    return [scale * len(c) for c in completions]

def as_array(*, completions, **columns):
    return np.arange(len(completions), dtype=np.float32)

async def slow(*, completions, **columns):
    await asyncio.sleep(0.3)
    return [1.0] * len(completions)

def level(*, completions, level, **columns):
    return [float(level)] * len(completions)

def no_columns(*, question, completions, answer):
    return [0.0] * len(completions)

def confidence(*, completions, rollouts, **columns):
    return [sum(r.logprobs) for r in rollouts]

def own_clusters(*, completions, **columns):
    return GroupScore([0.0] * len(completions), {"seen": 2.0}, [7] * len(completions), ["a"] * len(completions))

def raises(*, completions, **columns):
    table = {}
    return table["missing"]

def returns(*, completions, value, **columns):
    special = {"nan": [float("nan"), 1.0], "inf": [1.0, float("inf")], "none_item": [None, 1.0],
               "text_item": ["1", 1.0]}
    return special.get(value, value) if isinstance(value, str) else value

def fixed(*, completions, values, **columns):
    return GroupScore(values, labels=[0] * len(completions), answers=["a"] * len(completions))

def unjudged(*, completions, answers=None, **columns):
    return GroupScore([None] * len(completions), {"failed_share": 1.0}, answers=answers, skipped=True)

def bad_labels(*, completions, **columns):
    return GroupScore([0.0] * len(completions), labels=[1])

def bad_metric(*, completions, **columns):
    return GroupScore([0.0] * len(completions), {"loss": float("nan")})

def trl_level(prompts, completions, completion_ids, level, log_metric, **kwargs):
    assert len(prompts) == len(completions) == len(level) == len(kwargs["answer"]) == len(completion_ids)
    log_metric("mean_level", sum(level) / len(level))
    return [float(l) + len(ids) / 10 for l, ids in zip(level, completion_ids)]

def trl_some(completions, **kwargs):
    return [None if "skip" in c else 1.0 for c in completions]

async def trl_async(prompts, completions, **kwargs):
    await asyncio.sleep(0)
    return [float(p == "P2") for p in prompts]

def trl_short(completions, **kwargs):
    return [1.0]

def trl_state(completions, trainer_state, **kwargs):
    return [1.0] * len(completions)

def trl_nan(completions, **kwargs):
    return [0.0] * (len(completions) - 1) + [float("nan")]
"""


@dataclass(frozen=True)
class Sampled:
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...] | None = None
    self_certainties: tuple[float, ...] | None = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def group(
    i: int = 1, completions: tuple[str, ...] = (r"\boxed{4}", r"so \boxed{5}"), answer: str | None = "4"
) -> GroupInput:
    rollouts = [Sampled((1,) * (j + 1), (-0.5,) * (j + 1)) for j in range(len(completions))]
    return GroupInput(f"q{i}", f"question {i}", completions, answer, {"level": i}, f"P{i}", rollouts)


def score(folder: Path, *specs: RewardSpec, groups: list[GroupInput] | None = None) -> list[GroupResult]:
    return RewardSum(specs, search_from=folder).score([group()] if groups is None else groups)


def test_rewards_are_summed_with_their_weights(folder: Path) -> None:
    [result] = score(
        folder, RewardSpec("rewards.accuracy:accuracy", weight=2.0), RewardSpec("mine.py:length", -0.1, "long"),
        RewardSpec("mine.py:length", 1.0, "scaled", arguments={"scale": 0.5}))
    assert result.scores == {"accuracy": (1.0, 0.0), "long": (9.0, 12.0), "scaled": (4.5, 6.0)}
    assert result.rewards == pytest.approx((2.0 - 0.9 + 4.5, -1.2 + 6.0))
    assert result.metrics["accuracy/timed_out_share"] == 0.0


def test_answers_and_clusters_are_there_with_any_reward(folder: Path) -> None:
    [result] = score(folder, RewardSpec("mine.py:length"),
                     groups=[group(completions=(r"\boxed{1/2}", r"\boxed{0.5}", "none", r"\boxed{3}"))])
    assert result.answers == ("1/2", "0.5", None, "3")
    assert result.labels == (0, 0, 1, 2)
    assert result.entropy == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert result.metrics["group/num_clusters"] == 3.0
    assert result.metrics["group/unparsable_share"] == 0.25


def test_answers_and_labels_come_from_the_first_reward_that_gives_both(folder: Path) -> None:
    [result] = score(folder, RewardSpec("rewards.accuracy:accuracy"), RewardSpec("mine.py:own_clusters"),
                     RewardSpec("rewards.majority:majority_vote"))
    assert (result.answers, result.labels, result.entropy) == (("a", "a"), (7, 7), 0.0)
    assert result.metrics["own_clusters/seen"] == 2.0


def test_columns_and_rollouts_reach_the_functions_that_name_them(folder: Path) -> None:
    results = score(folder, RewardSpec("mine.py:level"), RewardSpec("mine.py:confidence"), groups=[group(1), group(2)])
    assert [result.rewards for result in results] == [(0.5, 0.0), (1.5, 1.0)]


def test_numpy_values_are_accepted_and_become_floats(folder: Path) -> None:
    [result] = score(folder, RewardSpec("mine.py:as_array"))
    assert result.rewards == (0.0, 1.0)
    assert all(type(value) is float for value in result.scores["as_array"])


def test_async_rewards_run_concurrently_also_inside_a_running_loop(folder: Path) -> None:
    import time

    groups = [group(i) for i in range(10)]
    start = time.monotonic()
    assert all(result.rewards == (1.0, 1.0) for result in score(folder, RewardSpec("mine.py:slow"), groups=groups))
    assert time.monotonic() - start < 2.0

    async def inside() -> list[GroupResult]:
        return score(folder, RewardSpec("mine.py:slow"))

    assert asyncio.run(inside())[0].rewards == (1.0, 1.0)


def test_trl_functions_get_the_flat_batch_with_columns_as_lists(folder: Path) -> None:
    results = score(folder, RewardSpec("mine.py:trl_level", style="trl"), groups=[group(1), group(2)])
    assert [result.rewards for result in results] == [pytest.approx((1.1, 1.2)), pytest.approx((2.1, 2.2))]
    assert results[0].metrics["trl_level/mean_level"] == 1.5
    results = score(folder, RewardSpec("mine.py:trl_async", style="trl"), groups=[group(1), group(2)])
    assert [result.rewards for result in results] == [(0.0, 0.0), (1.0, 1.0)]


def test_a_trl_function_without_a_score_counts_nothing_for_that_completion(folder: Path) -> None:
    one = group(completions=(r"\boxed{4} skip", r"\boxed{4}", r"\boxed{5} skip"))
    [result] = score(folder, RewardSpec("rewards.accuracy:accuracy"), RewardSpec("mine.py:trl_some", 0.5, style="trl"),
                     groups=[one])
    assert result.rewards == (1.0, 1.5, 0.0)
    assert [*result.scores.values()][1] == (1.0, 1.0, 1.0)  # by itself it prefers none, and 0 would be a verdict
    assert result.metrics["group/unscored_share"] == 0.0


def test_completions_that_no_reward_scores_get_the_mean_of_the_others(folder: Path) -> None:
    one = group(completions=("skip", "a", "b"))
    [result] = score(folder, RewardSpec("mine.py:trl_some", style="trl"), groups=[one])
    assert result.rewards == (1.0, 1.0, 1.0)
    assert result.metrics["group/unscored_share"] == pytest.approx(1 / 3)


def test_a_group_reward_without_a_score_counts_the_mean_of_its_others(folder: Path) -> None:
    one = group(completions=(r"\boxed{4}", r"\boxed{5}", "c", "d"))
    partial = RewardSpec("mine.py:fixed", arguments={"values": [None, 0.25, 0.75, None]})
    [alone] = score(folder, partial, groups=[one])
    assert alone.rewards == (0.5, 0.25, 0.75, 0.5)
    assert alone.scores["fixed"] == (0.5, 0.25, 0.75, 0.5)
    assert alone.metrics["group/unscored_share"] == 0.5
    [summed] = score(folder, partial, RewardSpec("rewards.accuracy:accuracy", 2.0), groups=[one])
    assert summed.rewards == (2.5, 0.25, 0.75, 0.5), "a missing score takes no side"
    assert summed.metrics["group/unscored_share"] == 0.0 and not summed.skipped


def test_a_group_reward_without_any_score_leaves_the_others_alone(folder: Path) -> None:
    nothing = RewardSpec("mine.py:fixed", arguments={"values": [None, None]})
    [result] = score(folder, nothing, RewardSpec("rewards.accuracy:accuracy"))
    assert result.rewards == (1.0, 0.0)
    [result] = score(folder, nothing)
    assert result.rewards == (0.0, 0.0) and result.metrics["group/unscored_share"] == 1.0


def test_a_group_that_could_not_be_judged_is_skipped_whatever_the_other_rewards_say(folder: Path) -> None:
    one = group(completions=(r"\boxed{4}", r"\boxed{4}", r"\boxed{5}"))
    [result] = score(folder, RewardSpec("rewards.accuracy:accuracy"), RewardSpec("mine.py:unjudged"), groups=[one])
    assert result.skipped and len(set(result.rewards)) == 1
    assert result.labels == (0, 1, 2), "no clusters by another judge's rules"
    assert result.answers == ("4", "4", "5")
    assert result.metrics["unjudged/failed_share"] == 1.0 and result.metrics["group/skipped"] == 1.0
    assert "group/num_clusters" not in result.metrics
    [result] = score(folder, RewardSpec("mine.py:unjudged", arguments={"answers": ["x", None, "y"]}), groups=[one])
    assert result.answers == ("x", None, "y") and result.rewards == (0.0, 0.0, 0.0)
    [judged] = score(folder, RewardSpec("rewards.accuracy:accuracy"), groups=[one])
    assert not judged.skipped and judged.metrics["group/skipped"] == 0.0


def test_trl_functions_shipped_with_trl_run_unchanged() -> None:
    pytest.importorskip("trl")
    from trl.rewards import get_soft_overlong_punishment

    import rewards.controls as place
    place.overlong = get_soft_overlong_punishment(4, 2)  # type: ignore[attr-defined]
    try:
        long = GroupInput("q", "?", ["a", "b", "c"], rollouts=[Sampled((1,) * n, (-1.0,) * n) for n in (1, 3, 6)])
        [result] = RewardSum([RewardSpec("rewards.controls:overlong", style="trl", name="overlong")]).score([long])
    finally:
        del place.overlong  # type: ignore[attr-defined]
    assert result.rewards == (0.0, -0.5, -1.0)


@pytest.mark.parametrize(("name", "arguments", "message"), [
    ("raises", {}, r"reward 'raises' \(mine.py:raises\), question 'q1': raised KeyError: 'missing' at .*mine.py:30"),
    ("returns", {"value": [1.0]}, r"question 'q1': returned 1 values for 2 completions"),
    ("returns", {"value": [1.0, 2.0, 3.0]}, r"returned 3 values for 2 completions"),
    ("returns", {"value": "nan"}, r"question 'q1': value 0 is nan, expected a finite number"),
    ("returns", {"value": "inf"}, r"value 1 is inf, expected a finite number"),
    ("returns", {"value": "text_item"}, r"value 0 is '1' \(str\), expected a finite number"),
    ("returns", {"value": 3.5}, r"returned float 3.5, expected a list"),
    ("returns", {"value": None}, r"returned NoneType None, expected a list"),
    ("returns", {"value": "word"}, r"returned str 'word', expected a list"),
    ("no_columns", {}, r"question 'q1': cannot be called: .*'level'.*add \*\*columns"),
    ("bad_labels", {}, r"gave 1 labels for 2 completions"),
    ("bad_metric", {}, r"metric 'loss' is nan"),
])
def test_each_misuse_names_function_question_and_value(folder: Path, name: str, arguments: dict[str, object],
                                                       message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(folder, RewardSpec(f"mine.py:{name}", arguments=arguments))


def test_what_a_function_raised_is_chained(folder: Path) -> None:
    with pytest.raises(RewardError) as caught:
        score(folder, RewardSpec("mine.py:raises"))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(("name", "message"), [
    ("trl_short", "returned 1 values for 4 completions"), ("trl_nan", r"question 'q2': value 1 is nan"),
    ("trl_state", "trainer_state, which only TRL's trainer has"),
])
def test_misuse_in_trl_style_is_named_too(folder: Path, name: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(folder, RewardSpec(f"mine.py:{name}", style="trl"), groups=[group(1), group(2)])


@pytest.mark.parametrize(("specs", "message"), [
    ([], "no reward is given"),
    ([RewardSpec("mine.py:length"), RewardSpec("mine.py:length")], "two rewards are named 'length'"),
    ([RewardSpec("mine.py:length", arguments={"scal": 2})], "has no parameter 'scal'.*did you mean 'scale'"),
    ([RewardSpec("mine.py:length", style="batch")], "style is 'batch'"),  # type: ignore[arg-type]
    ([RewardSpec("mine.py:length", weight=math.nan)], "weight is nan"),
])
def test_a_wrong_list_of_rewards_is_refused_before_anything_is_sampled(folder: Path, specs: list[RewardSpec],
                                                                       message: str) -> None:
    with pytest.raises(RewardError, match=message):
        RewardSum(specs, search_from=folder)


def test_a_question_without_answer_is_refused_only_by_rewards_that_need_one(folder: Path) -> None:
    label_free = RewardSum([RewardSpec("rewards.semantic_entropy:semantic_entropy")])
    assert not label_free.needs_answer
    label_free.check_question("q1", None)
    [result] = label_free.score([group(answer=None)])
    assert result.rewards == (0.5, 0.5)
    graded = RewardSum([RewardSpec("mine.py:length"), RewardSpec("rewards.accuracy:accuracy")], folder)
    assert graded.needs_answer
    for missing in (None, "  "):
        with pytest.raises(RewardError, match=r"'accuracy'.* needs a gold answer, and question 'q7' has none"):
            graded.check_question("q7", missing)
    with pytest.raises(RewardError, match="needs a gold answer"):
        graded.score([group(answer=None)])


def test_the_order_of_groups_changes_nothing(folder: Path) -> None:
    rewards = RewardSum(
        [RewardSpec("rewards.semantic_entropy:semantic_entropy"), RewardSpec("mine.py:level", 0.3)], folder)
    groups = [group(1), group(2, ("x", r"\boxed{1}", r"\boxed{1.0}")), group(3)]
    assert rewards.score(groups) == rewards.score(groups[::-1])[::-1]
    assert rewards.score([]) == []


def test_an_empty_group_and_unequal_rollouts_are_refused(folder: Path) -> None:
    rewards = RewardSum([RewardSpec("mine.py:length")], folder)
    with pytest.raises(RewardError, match="'q9' has no completions"):
        rewards.score([group(9, ())])
    with pytest.raises(RewardError, match="'q1' has 1 rollouts for 2"):
        rewards.score([GroupInput("q1", "?", ["a", "b"], rollouts=[Sampled((1,), (-1.0,))])])
