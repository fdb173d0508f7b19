"""A whole run with every part of label-free training at once, from one configuration file: all of them act, and the run
goes on from a checkpoint to where the uninterrupted one ends."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.checkpoint import list_checkpoints
from rl.configuration.loading import load
from rl.paths import project_root
from rl.policy.moving_average import MovingAverage
from rl.runs.folder import RunFolder
from rl.runs.tracking import read_json_lines
from rl.trainer import Trainer
from tests.reference.fork import after, signal_itself
from tests.reference.whole_run import GRPO, metrics_of, train

EVERY_PART = """
data: {path: models/tiny-arith/questions/train.jsonl, limit: 12, columns: {answer: null}}
anchors: {path: models/tiny-arith/questions/train_with_answers.jsonl, limit: 4, mixed_in: 2}
rewards:
  - use: rewards.majority:soft_votes
  - {use: "rewards.confidence:self_certainty", weight: 0.2}
selection: {low: 0.05, high: 0.95, mode: zero, min_votes: 2, penalty: 0.5}
advantage: {normalise: each, flips: {enabled: true, window: 2}}
loss: {kl_weight: 0.01, mask_truncated: true, covariance: {mode: kl, share: 0.05}}
optim: {minibatches: 2}
evaluation: {path: null}
"""


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("configuration") / "parts.yaml"
    file.write_text(EVERY_PART)
    return str(file)


def test_every_part_acts_and_the_run_resumes_to_the_same_end(tmp_path: Path, configuration: str) -> None:
    words = ("--config", configuration, "data.limit=12", "sampling.max_completion_tokens=24", "checkpoint.every=2")
    assert train(tmp_path / "whole", *words, "steps=5") == 0
    lines = [record for record in metrics_of(tmp_path / "whole") if record["kind"] == "train"]
    for name in ("anchors/reward", "groups/without_consensus", "loss/covariance_share", "flips/weight",
                 "reward/soft_votes", "reward/self_certainty", "loss/kl"):
        assert all(name in line for line in lines), name
    assert all(0.03 < float(str(line["loss/covariance_share"])) < 0.07 for line in lines)
    assert any(float(str(line["flips/weight"])) < 1 for line in lines)
    assert sum(float(str(line["groups/without_consensus"])) for line in lines) > 0
    rollouts = [*read_json_lines(RunFolder(tmp_path / "whole").rollouts_file)]
    assert any(str(record["question_id"]).startswith("anchor:") for record in rollouts)

    assert train(tmp_path / "parts", *words, "steps=3") == 0
    assert train(tmp_path / "parts", "--resume", str(tmp_path / "parts"), *words, "steps=5") == 0
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    newest, expected = (list_checkpoints(RunFolder(tmp_path / name).checkpoints)[-1] for name in ("parts", "whole"))
    for name in ("adapter/adapter_model.safetensors", "optimizer.pt"):
        assert (newest / name).read_bytes() == (expected / name).read_bytes()


def test_the_configurations_on_the_page_are_some(tmp_path: Path) -> None:
    page = (project_root() / "docs" / "label_free.md").read_text()
    jury, parts = (block.split("```")[0] for block in page.split("```yaml\n")[1:])
    found = []
    for text in (jury, parts):
        (tmp_path / "page.yaml").write_text(text)
        found.append(load(tmp_path / "page.yaml", []))
    assert found[1].anchors is not None and found[1].advantage.flips.enabled and found[1].loss.covariance.mode == "clip"
    for name in ("label_free", "tiny_label_free"):
        shipped = load(project_root() / "configs" / f"{name}.yaml", [])
        assert (shipped.votes, shipped.advantage, shipped.rewards[0].use) == (
            found[0].votes, found[0].advantage, found[0].rewards[0].use)


def test_a_run_on_the_votes_of_its_average_resumes_to_the_same_end(tmp_path: Path) -> None:
    words = ("rewards.0.use=rewards.majority:voted", "votes={samples: 4, decay: 0.5}", "evaluation.path=null",
             "optim.lr=5e-3")
    assert train(tmp_path / "whole", *words, "steps=4") == 0
    assert train(tmp_path / "parts", *words, "steps=2") == 0
    assert train(tmp_path / "parts", "--resume", str(tmp_path / "parts"), *words, "steps=4") == 0
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    lines = [record for record in metrics_of(tmp_path / "whole") if record["kind"] == "train"]
    assert all(0 <= float(str(line["reward/voted/vote_share"])) <= 1 for line in lines)
    answered = sum(completion["num_tokens"] for line in (tmp_path / "whole" / "rollouts.jsonl").read_text().splitlines()
                   for completion in json.loads(line)["completions"])
    counted = sum(float(str(line["tokens/sampled"])) for line in lines)
    assert 1.7 * answered < counted < 2.3 * answered, "4 votes beside 4 completions"
    newest = list_checkpoints(RunFolder(tmp_path / "whole").checkpoints)[-1]
    average = torch.load(newest / "average.pt", weights_only=True)
    weights = load_file(newest / "adapter" / "adapter_model.safetensors")
    assert any(not torch.equal(weight, weights[name.replace(".default.", ".")]) for name, weight in average.items())


def test_what_is_saved_late_while_the_average_votes_is_the_policy(tmp_path: Path) -> None:
    """The second signal asks for it in the middle of the votes, where the policy's parameters hold the average."""
    words = ("rewards.0.use=rewards.majority:voted", "votes={samples: 4, decay: 0.9}", "evaluation.path=null",
             "optim.lr=5e-3")
    assert train(tmp_path / "three", *words, "steps=3") == 0
    saved: list[bytes] = []
    times = iter(range(100))

    def stop_twice() -> None:
        if next(times) == 2 * 3:  # set in place and back in each of three steps; now the fourth
            for _ in range(2):
                signal_itself(signal.SIGTERM)()

    def note() -> None:
        saved.extend(path.read_bytes() for path in tmp_path.glob("run/checkpoints/step-000003/adapter/*.safetensors"))

    with after(MovingAverage, "_set", stop_twice), after(Trainer, "save_late", note):
        assert train(tmp_path / "run", *words, "steps=6") == 0
    three = list_checkpoints(RunFolder(tmp_path / "three").checkpoints)[-1]
    assert saved and set(saved) == {(three / "adapter" / "adapter_model.safetensors").read_bytes()}


def test_evaluations_count_questions_apart_by_their_majority_before_training(tmp_path: Path) -> None:
    """Also in a run that goes on from a checkpoint."""
    words = (*GRPO, "evaluation.every=1", "evaluation.samples=4", "evaluation.samples_during=4", "optim.lr=2e-3")
    assert train(tmp_path / "run", *words, "steps=1") == 0
    assert train(tmp_path / "run", "--resume", str(tmp_path / "run"), *words, "steps=2") == 0
    first, *others = [record for record in metrics_of(tmp_path / "run") if record["kind"] == "eval"]
    right = float(str(first["held_out/majority_right"]))
    assert 0 < right < 1 and "held_out/majority_lost" not in first and len(others) >= 2
    for line in others:
        lost, gained, now, part, other, accuracy = (float(str(line[f"held_out/{name}"])) for name in (
            "majority_lost", "majority_gained", "majority_right", "accuracy_where_majority_was_right",
            "accuracy_where_majority_was_wrong", "accuracy"))
        assert right - lost + gained == pytest.approx(now)
        assert right * part + (1 - right) * other == pytest.approx(accuracy)


def test_parts_that_are_off_add_no_metric(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *GRPO, "steps=1", "evaluation.path=null") == 0
    [line] = [record for record in metrics_of(tmp_path / "run") if record["kind"] == "train"]
    parts = ("anchors/", "flips/", "groups/without_consensus", "loss/covariance_share")
    assert not [name for name in line if name.startswith(parts)]
