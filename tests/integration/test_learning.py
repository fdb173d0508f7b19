"""The main job does what it is for: held-out accuracy rises with GRPO and with EMPO, and does not with random
rewards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.configuration.loading import load
from rl.questions.inputs import read_inputs
from rl.runs.folder import RunFolder
from tests.reference.whole_run import GRPO, held_out_gain, metrics_of, pixels, summary_of, train

# Eight steps of 16 x 8, about six seconds, gain 0.31 with EMPO and with GRPO (seeds 0 and 1); random rewards lose 0.04
# to 0.06 (seeds 1 and 2).
SHORT = (
    "steps=8", "seed=0", "sampling.questions_per_step=16", "sampling.max_completion_tokens=48",
    "sampling.group_size=8", "data.limit=4096", "evaluation.num_questions=128", "evaluation.samples=4",
    "evaluation.every=0")
RANDOM = ("rewards.0.use=rewards.controls:random_reward", "selection.low=null", "selection.high=null")


def test_grpo_with_gold_answers_raises_held_out_accuracy(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *SHORT, *GRPO) == 0
    assert held_out_gain(tmp_path / "run") > 0.2


def test_empo_raises_held_out_accuracy_from_questions_without_any_answer(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *SHORT) == 0
    assert held_out_gain(tmp_path / "run") > 0.2
    rollouts = [json.loads(line) for line in RunFolder(tmp_path / "run").rollouts_file.read_text().splitlines()]
    assert len(rollouts) == 8 * 16
    assert {rollout["answer"] for rollout in rollouts} == {None}
    config = load(RunFolder(tmp_path / "run").config_file, [])
    prompts = read_inputs(config).prompts
    assert {prompt.question.answer for prompt in prompts} == {None}
    assert not any(prompt.question.columns for prompt in prompts)


def test_random_rewards_teach_nothing(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *SHORT, *RANDOM) == 0
    assert abs(held_out_gain(tmp_path / "run")) < 0.1


def test_dropout_does_not_count_as_a_difference_between_sampler_and_trainer(tmp_path: Path) -> None:
    """The sampler draws from the policy without dropout; what it is compared with has to be that policy too."""
    assert train(tmp_path / "run", *GRPO, "lora.dropout=0.5", "optim.lr=5e-3", "evaluation.path=null") == 0
    mismatches = [float(str(record["mismatch/mean"])) for record in metrics_of(tmp_path / "run")]
    assert len(mismatches) == 3 and max(mismatches) < 1e-4


def test_the_summary_holds_what_others_read(tmp_path: Path) -> None:
    assert train(tmp_path / "run") == 0
    summary = summary_of(tmp_path / "run")
    for when in ("held_out_before", "held_out_after"):
        assert set(summary[when]) == {"avg@2"}
        interval = summary[when]["avg@2"]
        assert set(interval) == {"value", "low", "high"}
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert summary["steps"] == 3
    assert summary["stop_reason"] == "completed"
    assert 0 < summary["wall_s"] < 300
    assert 0.1 < summary["peak_rss_gb"] < 20


@pytest.mark.parametrize(
    "name",
    [
        "config.resolved.yaml", "metrics.jsonl", "rollouts.jsonl", "curve.png", "summary.json",
        "checkpoints/best/adapter/adapter_model.safetensors", "checkpoints/step-000001/manifest.json",
    ],
)
def test_a_run_leaves_its_files(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "one-step-run"
    if not folder.exists():
        with pixels():
            assert train(folder, "steps=1") == 0
    assert (folder / name).stat().st_size > 0
