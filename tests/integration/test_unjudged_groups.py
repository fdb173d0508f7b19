"""A run whose judge fails now and then: groups that it could not judge train nothing, are counted, and are in no other
number."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rl.runs.folder import RunFolder
from tests.reference.chat_server import Call, ChatServer, Reply, says
from tests.reference.whole_run import metrics_of, train

EVEN_FAILS = 2


def judge(call: Call, number: int) -> Reply:
    """Compares numbers, and fails for half of the questions, by the number of characters in the whole prompt without
    its answers."""
    first, second = call.pair
    length = len(call.body["messages"][0]["content"]) - len(first) - len(second)
    return (
        Reply(b"overloaded", 400)
        if length % EVEN_FAILS == 0
        else says("Yes" if first.strip() == second.strip() else "No"))


def rewards(url: str) -> str:
    return (
        f"rewards=[{{use: rewards.free_form:verifier_entropy, arguments: {{url: '{url}', model: m, on_failure: "
        "skip}}, {use: rewards.format:format_boxed, weight: 0.1}]")


@pytest.mark.parametrize("mode", ["drop", "zero"])
def test_skipped_groups_train_nothing_and_distort_nothing(tmp_path: Path, mode: str) -> None:
    with ChatServer(judge) as server:
        assert train(tmp_path / "run", rewards(server.url), f"selection.mode={mode}", "steps=2") == 0
    lines = [json.loads(line) for line in RunFolder(tmp_path / "run").rollouts_file.read_text().splitlines()]
    records = [record for record in metrics_of(tmp_path / "run") if record["kind"] == "train"]
    assert len(records) == 2
    seen_skipped = 0
    for record in records:
        groups = [line for line in lines if line["step"] == record["step"]]
        skipped = [line for line in groups if line["refused"] == "skipped"]
        judged = [line for line in groups if line["refused"] != "skipped"]
        seen_skipped += len(skipped)
        assert record["refused/skipped"] == record["reward/group/skipped"] == pytest.approx(len(skipped) / len(groups))
        for line in skipped:
            assert not any(completion["advantage"] for completion in line["completions"])
            assert len({completion["reward"] for completion in line["completions"]}) == 1
        if judged:
            assert record["normalised_entropy"] == pytest.approx(
                sum(line["normalised_entropy"] for line in judged) / len(judged))
            mean = [completion["reward"] for line in judged for completion in line["completions"]]
            assert record["reward"] == pytest.approx(math.fsum(mean) / len(mean))
    assert 0 < seen_skipped < len(lines), "both kinds of groups came up"


@pytest.mark.parametrize("mode", ["drop", "refill", "zero"])
def test_a_run_in_which_nothing_can_be_judged_goes_on_without_training_and_without_numbers(
    tmp_path: Path, mode: str
) -> None:
    plugin = tmp_path / "away.py"
    plugin.write_text(
        "from rewards.contract import GroupScore\n\n"
        "def away(*, completions, **columns):\n    return GroupScore([None] * len(completions), skipped=True)\n")
    words = (
        f"rewards=[{{use: {plugin}:away}}, {{use: rewards.semantic_entropy:semantic_entropy}}]",
        f"selection.mode={mode}", "steps=2")
    assert train(tmp_path / "run", *words) == 0
    for record in metrics_of(tmp_path / "run"):
        if record["kind"] == "train":
            assert record["refused/skipped"] == 1.0 and record["policy/version"] == 0
            assert (
                record["reward"] is None
                and record["normalised_entropy"] is None
                and "reward/semantic_entropy" not in record)


def test_a_judge_that_fails_ends_the_run_by_default(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ChatServer(lambda call, number: says("Perhaps")) as server:
        words = rewards(server.url).replace(", on_failure: skip", "")
        assert train(tmp_path / "run", words, "steps=1") != 0
        assert "replied 'Perhaps', expected Yes or No" in capfd.readouterr().err
