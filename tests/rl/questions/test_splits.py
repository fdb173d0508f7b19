"""What entropy thresholds do with each split of G answers, and that those of the shipped configurations act."""

from __future__ import annotations

import math
import warnings
from itertools import product
from pathlib import Path

import pytest

from rl.configuration.loading import load
from rl.paths import project_root
from rl.questions.splits import acting, describe, has_equal_shares, in_words, normalised_entropy, splits, thresholds
from rl.questions.usual_ranges import warn_of_thresholds
from rl.selection import refusal
from tests.reference.scored_groups import scored_group
from tests.reference.tiny_run import tiny_config

SHIPPED = [path for path in sorted((project_root() / "configs").glob("*.yaml")) if "selection:" in path.read_text()]
SHARE = "rewards.0.use=rewards.semantic_entropy:semantic_entropy"


@pytest.mark.parametrize("num_answers", [1, 2, 5, 6])
def test_the_splits_are_those_of_all_ways_to_answer(num_answers: int) -> None:
    answered = {tuple(sorted((way.count(answer) for answer in set(way)), reverse=True))
                for way in product(range(num_answers), repeat=num_answers)}
    found = list(splits(num_answers))
    assert len(found) == len(set(found)) and set(found) == answered


def test_entropies_and_words_by_hand() -> None:
    assert normalised_entropy((7, 1)) == pytest.approx(-(7 / 8 * math.log(7 / 8) + math.log(1 / 8) / 8) / math.log(8))
    assert [in_words(split) for split in ((8,), (5, 2, 1), (1, 1, 1))] == ["all 8 agree", "5+2+1", "all 3 differ"]


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.9), (0.1, 0.95), (None, 0.8), (0.333, None)])
def test_each_split_is_refused_as_a_group_of_it_is(low: float | None, high: float | None) -> None:
    found = thresholds(8, low, high)
    for name, group_of in (("too_low", found.too_low), (None, found.trained), ("too_high", found.too_high)):
        for split in group_of:
            answers = [str(number) for number, size in enumerate(split) for _ in range(size)]
            assert refusal(scored_group("q", answers), low, high, keep_equal=True) == name
    assert {*found.too_low, *found.trained, *found.too_high} == set(splits(8))


@pytest.mark.parametrize("num_answers", range(5, 13))
def test_a_bound_between_these_refuses_exactly_one_split_more(num_answers: int) -> None:
    (lowest, above), (below, highest) = acting(num_answers)
    found = thresholds(num_answers, (lowest + above) / 2, (below + highest) / 2)
    assert [s for s in found.too_low if not has_equal_shares(s)] == [(num_answers - 1, 1)]
    assert [s for s in found.too_high if not has_equal_shares(s)] == [(2, *(1,) * (num_answers - 2))]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_bounds_refuse_groups_that_would_train(path: Path) -> None:
    config = load(path, [])
    found = thresholds(config.sampling.group_size, config.selection.low, config.selection.high)
    for bound, refused in ((config.selection.low, found.too_low), (config.selection.high, found.too_high)):
        assert bound is None or not all(map(has_equal_shares, refused))
    assert not all(map(has_equal_shares, found.trained))


@pytest.mark.parametrize(("words", "said"), [
    (("selection.low=0.18",), r"low=0\.18 refuses only .* all agree; 7\+1 has H / ln G = 0\.181. Usual: .*low=0\.23"),
    (("selection.high=0.92",), r"high=0\.92 refuses only .* all differ; .* 0\.917. Usual: selection\.high=0\.88"),
    ((SHARE, "selection.low=null", "selection.high=null"), r"semantic_entropy rewards agreement, and selection has no"),
], ids=["low", "high", "none"])
def test_bounds_that_refuse_nothing_that_trains_are_told(words: tuple[str, ...], said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        warn_of_thresholds(tiny_config("sampling.group_size=8", *words))


@pytest.mark.parametrize("words", [
    (SHARE, "selection.low=0.19"), (SHARE, "selection.high=0.91"), ("selection.low=null", "selection.high=null"),
    (SHARE, "selection.low=0.1", "sampling.group_size=4")])
def test_bounds_that_act_are_not_told(words: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_thresholds(tiny_config("sampling.group_size=8", *words))


def test_the_dry_runs_table_lists_what_is_refused() -> None:
    assert describe(8, 0.2, 0.9).splitlines() == [
        "low=0.2 refuses         all 8 agree (0.000), 7+1 (0.181)",
        "train                   6+2 (0.270), 5+3 (0.318) ... 3+1+1+1+1+1 (0.802), 2+2+1+1+1+1 (0.833): 18 splits",
        "high=0.9 refuses        2+1+1+1+1+1+1 (0.917), all 8 differ (1.000)",
        "equal rewards           among those that train: 4+4, 2+2+2+2, if agreement is rewarded"]
    assert describe(4, None, None).splitlines()[0] == "low=None refuses        nothing"
    penalised = describe(4, None, 0.9, 3).splitlines()  # without consensus they train, whatever the bounds say
    assert penalised[1:4] == [
        "train                   all 4 agree (0.000), 3+1 (0.406)", "high=0.9 refuses        nothing",
        "min_votes=3 penalises   2+2 (0.500), 2+1+1 (0.750), all 4 differ (1.000)"]
    assert "too many ways" in describe(64, 0.2, 0.9)


def test_the_documented_entropies_are_those_of_these_splits() -> None:
    page = (project_root() / "docs" / "thresholds.md").read_text()
    for size in (4, 7, 8, 16):
        row = next(line for line in page.splitlines() if line.startswith(f"| {size} |"))
        for split in ((size - 1, 1), (size - 2, 2), (2, *(1,) * (size - 2)), (2, 2, *(1,) * (size - 4))):
            assert f"{normalised_entropy(split):.3f}" in row
    unanswered = [row.split("|")[2:-1] for row in page.splitlines() if row.startswith(("| apart", "| together"))]
    splits_of = [[(8 - n, *(1,) * n) for n in range(7)], [(8 - n, n)[: 1 + (n > 0)] for n in range(7)]]
    assert [[float(value) for value in row] for row in unanswered] == [
        [round(normalised_entropy(split), 3) for split in row] for row in splits_of]
