"""Whole runs with rewards that ask the policy, in one process, over two, and resumed; and R1's three rewards on the
tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.checkpoint import list_checkpoints
from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.train import main
from tests.integration.test_two_ranks import RUN
from tests.reference.fork import forked_ranks
from tests.reference.whole_run import GRPO, metrics_of, one_thread, train

ASKING = (
    "rewards=[{use: 'rewards.confidence:self_certainty', weight: 0.1}, {use: 'rewards.confidence:token_entropy'}, "
    "{use: 'rewards.reference_likelihood:reference_likelihood'}]")
NAMES = ("self_certainty", "token_entropy", "reference_likelihood")
SUM = {"self_certainty": 0.1, "token_entropy": 1.0, "reference_likelihood": 1.0}


def train_lines(folder: Path) -> list[dict[str, float]]:
    return [{key: float(str(value)) for key, value in record.items() if key != "kind"}
            for record in metrics_of(folder) if record["kind"] == "train"]


def test_a_run_reports_each_reward_and_keeps_no_statistics(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *GRPO, ASKING, "evaluation.path=null") == 0
    lines = train_lines(tmp_path / "run")
    assert len(lines) == 3
    for line in lines:
        assert line["reward"] == pytest.approx(sum(weight * line[f"reward/{name}"] for name, weight in SUM.items()))
        assert line["reward/self_certainty"] > 0 > line["reward/token_entropy"]
        assert 0 < line["reward/reference_likelihood"] < 1
    assert "self_certainties" not in RunFolder(tmp_path / "run").rollouts_file.read_text()


def test_a_resumed_run_ends_where_the_uninterrupted_one_ends(tmp_path: Path) -> None:
    """With groups left over by refilling, which are stored in the checkpoint after they were scored."""
    words = (*GRPO, ASKING, "evaluation.path=null", "selection.mode=refill", "selection.low=0.3", "lora.dropout=0.1")
    assert train(tmp_path / "whole", *words, "steps=4") == 0
    assert train(tmp_path / "parts", *words, "steps=2") == 0
    assert train(tmp_path / "parts", *words, "steps=4", "--resume", str(tmp_path / "parts")) == 0
    assert train_lines(tmp_path / "parts") == train_lines(tmp_path / "whole")
    weights = [
        (
            list_checkpoints(RunFolder(tmp_path / name).checkpoints)[-1] / "adapter" / "adapter_model.safetensors"
        ).read_bytes()
        for name in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_two_ranks_score_their_shares_as_one_rank_scores_all(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with one_thread():
        assert main([*RUN, ASKING, f"run_dir={one}"]) == 0
    for done in forked_ranks(lambda: main([*RUN, ASKING, f"run_dir={two}"])):
        assert done.returncode == 0, done.stderr[-3000:]
    first = [
        next(
            json.loads(line)
            for line in (run / "metrics.jsonl").read_text().splitlines()
            if json.loads(line)["kind"] == "train")
        for run in (one, two)]
    for key in ("reward", "groups/trained", "tokens/sampled", "loss/value", *(f"reward/{name}" for name in NAMES)):
        assert first[1][key] == pytest.approx(first[0][key], rel=1e-4, abs=1e-6)
    rollouts = [
        [
            record
            for line in (run / "rollouts.jsonl").read_text().splitlines()
            if (record := json.loads(line))["step"] == 1]
        for run in (one, two)]
    assert [record["question"] for record in rollouts[0]] == [record["question"] for record in rollouts[1]]


def test_r1s_rewards_add_up_with_their_weights(tmp_path: Path) -> None:
    """Its own template asks for tags that the tiny model has no tokens for: format_think is 0 throughout, the others
    are not."""
    with one_thread():
        assert (
            main(
                [
                    "--config", str(project_root() / "configs" / "r1_rewards.yaml"), f"run_dir={tmp_path / 'run'}",
                    "model=models/tiny-arith", "data.path=models/tiny-arith/questions/train_with_answers.jsonl",
                    "data.limit=64", "prompt=question_line", "steps=3", "generator=transformers",
                    "model.gradient_checkpointing=off", "sampling.questions_per_step=8",
                    "sampling.group_size=4", "sampling.max_completion_tokens=32", "evaluation.path=null",
                    "tracking.progress=off", "optim.micro_batch_tokens=2048"])
            == 0)
    lines = train_lines(tmp_path / "run")
    assert len(lines) == 3
    for line in lines:
        assert line["reward/format_think"] == 0.0 and line["reward/language_consistency"] == 1.0
        assert line["reward"] == pytest.approx(line["accuracy"] + 0.1) and 0 < line["accuracy"] < 1
