"""rl/rejection/report.py against numbers counted by hand, and the one message where nothing is kept."""

from __future__ import annotations

import json

import pytest

from rl.errors import ConfigError
from rl.rejection.config import KeepSection
from rl.rejection.keep import choose
from rl.rejection.report import MixedIn, Report, Tally, bucket_of, to_json, to_markdown
from rl.rejection.samples import SampledQuestion
from tests.reference.reject import completion, sampled

KEEP = KeepSection(order="shortest", per_question=1, high=0.9)

# Of four completions each: all right, one of them a copy; two right, one of these cut; none right; too scattered; not
# judged.
QUESTIONS = (
    sampled(
        [
            completion("1 2 3", tokens=4), completion("1 2 3", tokens=6), completion("4 5 6", tokens=9),
            completion("7", tokens=10)]),
    sampled(
        [
            completion("a", tokens=8, exact=False), completion("b", tokens=20, truncated=True),
            completion("c", 0.0, tokens=2), completion("d", 0.0, tokens=3)]),
    sampled([completion(letter, 0.25, tokens=5) for letter in "abcd"]),
    sampled([completion("a", tokens=7), *(completion(letter, 0.0, tokens=7) for letter in "bcd")], entropy=1.0),
    sampled([completion(letter, 1.0, tokens=1) for letter in "abcd"], judged=False),
)


def tally_of(*questions: SampledQuestion, keep: KeepSection = KEEP) -> Tally:
    tally = Tally(keep)
    for question in questions:
        tally.add(question, choose(question, keep, 0))
    return tally


def report() -> Report:
    return tally_of(*QUESTIONS).report([MixedIn("other.jsonl", 3, 50)], seed=5, wall_s=1.5)


def test_a_report_counted_by_hand() -> None:
    found = report()
    assert (found.questions, found.completions, found.kept, found.questions_kept) == (5, 20, 2, 2)
    assert found.kept_share == 0.1 and found.rows == 5 and found.retokenised == 1
    assert dict(found.dropped) == {
        "unjudged": 4, "entropy_low": 0, "entropy_high": 4, "truncated": 1, "empty": 0, "reward": 6,
        "near_duplicate": 1, "over_limit": 2}
    assert sum(found.dropped.values()) + found.kept == found.completions
    # Over the 16 judged completions: 4 + 2 + 4 * 0.25 + 1.
    assert found.mean_reward == pytest.approx(8 / 16)


def test_difficulty_is_the_share_with_the_reward_whatever_else_became_of_them() -> None:
    buckets = {bucket.rewarded_share: bucket for bucket in report().difficulty}
    assert {name: (b.questions, b.completions, b.kept, b.questions_kept) for name, b in buckets.items()} == {
        "none": (1, 4, 0, 0),
        "up to 1/4": (1, 4, 0, 0),
        "up to 1/2": (1, 4, 1, 1),
        "up to 3/4": (0, 0, 0, 0),
        "below 1": (0, 0, 0, 0),
        "all": (1, 4, 1, 1)}
    assert buckets["all"].kept_share == 0.25 and buckets["up to 3/4"].kept_share == 0.0


def test_each_share_of_eight_falls_into_its_bucket() -> None:
    found = [bucket_of(sampled([completion("a", float(i < right)) for i in range(8)]), KEEP) for right in range(9)]
    assert found == [
        "none", "up to 1/4", "up to 1/4", "up to 1/2", "up to 1/2", "up to 3/4", "up to 3/4", "below 1", "all"]


def test_lengths_counted_by_hand() -> None:
    kept, dropped = report().lengths_kept, report().lengths_dropped
    assert kept is not None and dropped is not None
    assert (kept.completions, kept.mean, kept.median, kept.max) == (2, 6.0, 6.0, 8) and kept.p90 == pytest.approx(7.6)
    assert (dropped.completions, dropped.max) == (18, 20)
    # 6 9 10, 20 2 3, 5 5 5 5, 7 7 7 7, 1 1 1 1 in order: 1 1 1 1 2 3 5 5 5 5 6 7 7 7 7 9 10 20.
    assert dropped.mean == pytest.approx(102 / 18) and dropped.median == 5.0 and dropped.p90 == pytest.approx(9.3)


def test_the_files_say_the_same() -> None:
    found = report()
    values = json.loads(to_json(found))
    assert values["dropped"]["reward"] == 6 and values["mix"] == [
        {"path": "other.jsonl", "rows": 3, "rows_in_file": 50}]
    page = to_markdown(found, "Title")
    for line in (
        "2 of 20 completions kept (10.0%), of 2 of 5 questions; mean reward 0.500, seed 5.",
        "| up to 1/2 | 1 | 4 | 1 | 25.0% | 1 |", "| reward below keep.reward_at_least | 6 |",
        "| kept | 2 | 6.0 | 6 | 7.6 | 8 |", "- 3 of 50 rows of other.jsonl",
        "Of 1 kept completions a warm-up makes other tokens than were sampled",
    ):
        assert line in page


@pytest.mark.parametrize(
    "index, keep, said",
    [
        (
            2,
            KEEP,
            (
                "nothing is left of 4 completions of 1 questions, so no file is written: 4 reward below "
                "keep.reward_at_least. Remedy: the highest of these rewards is 0.25: keep.reward_at_least=0.25 or less "
                "with --resume RUN (chooses again"
            ),
        ),
        (
            3, KEEP,
            "4 semantic entropy not below keep.high. Remedy: keep.high=null, or a wider bound, with --resume RUN",
        ),
        (0, KeepSection(low=0.6), "4 semantic entropy not above keep.low. Remedy: keep.low=null"),
        (4, KEEP, "4 a reward gave no verdict. Remedy: a new run when the reward's service answers"),
    ],
)
def test_where_nothing_is_kept_the_reason_and_what_would_help_are_named(
    index: int, keep: KeepSection, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tally_of(QUESTIONS[index], keep=keep).check("--resume RUN")
    assert said in str(caught.value) and len(caught.value.problems) == 1


def test_where_something_is_kept_nothing_is_said() -> None:
    tally_of(*QUESTIONS).check("--resume RUN")
