"""Two processes (gloo, CPU) train as one does: the same weights after an update, the same batches in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from rl.train import main
from tests.reference.fork import forked_ranks, free_port
from tests.reference.tiny_run import ANSWERED, HELD_OUT
from tests.reference.two_rank_update import CASES, updated
from tests.reference.two_rank_update import main as update
from tests.reference.whole_run import one_thread, python

torch.set_num_threads(1)
RUN = (
    f"data.path={ANSWERED}",
    "data.columns.answer=answer",
    "rewards.0.use=rewards.accuracy:accuracy",
    "lora.rank=4",
    "steps=3",
    "sampling.questions_per_step=5",
    "sampling.group_size=4",
    f"evaluation.path={HELD_OUT}",
    "evaluation.num_questions=7",
    "evaluation.samples=2",
    "model.dtype=float32",
    "tracking.progress=off",
    "optim.micro_batch_tokens=120",
    "optim.eps=1e-4",
    "watchdog.enabled=false")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of two ranks wrote."""
    out = tmp_path_factory.mktemp("ranks")
    for rank in forked_ranks(lambda: update(out)):
        assert rank.returncode == 0, rank.stderr[-2000:]
    return out


def written(ranks: Path, rank: int) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((ranks / f"{rank}.json").read_text())
    return value


def test_ranks_prove_their_samplers_together_and_stop_together_where_one_is_wrong(ranks: Path) -> None:
    (found, error), (found_there, error_there) = (written(ranks, rank)["proofs"] for rank in range(2))
    without_time = {name: value for name, value in found.items() if name != "proof_s"}
    assert without_time == {name: value for name, value in found_there.items() if name != "proof_s"}
    assert without_time["proof/completions"] == 6.0 and without_time["proof/inconclusive"] == 0.0
    assert error == error_there and "(process 1 of 2)" in error and "the adapter never reached the sampler" in error


@pytest.mark.parametrize("name", CASES)
def test_one_update_by_two_ranks_is_the_update_by_one(ranks: Path, name: str) -> None:
    weights, metrics, num_micro_batches = updated(Accelerator(cpu=True), CASES[name])
    first, second = (load_file(ranks / f"{name}-{rank}.safetensors") for rank in range(2))
    for key, weight in weights.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], weight, rtol=1e-5, atol=2e-7)
    counts = [written(ranks, rank)["counts"][name] for rank in range(2)]
    assert sum(counts) >= num_micro_batches  # more where one rank would else have nothing to do
    found = [written(ranks, rank)["metrics"][name] for rank in range(2)]
    assert found[0] == found[1] == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def test_the_cases_are_what_their_names_say(ranks: Path) -> None:
    counts = {name: [written(ranks, rank)["counts"][name] for rank in range(2)] for name in CASES}
    assert sum(counts["even"]) % 2 == 0 and min(counts["even"]) >= 2
    assert sum(counts["odd"]) % 2 == 1 and min(counts["odd"]) >= 1
    assert counts["one micro-batch, dealt out in two"] == [1, 1]


def test_shares_of_any_size_come_together_in_order(ranks: Path) -> None:
    for rank in range(2):
        assert written(ranks, rank)["gathered"] == {str(n): list(range(n)) for n in range(6)}


def test_a_run_of_two_processes_samples_and_trains_as_a_run_of_one(tmp_path: Path) -> None:
    """Five questions over two ranks, so that one has more to do. Later steps may differ: rounding may move a token."""
    one, two = tmp_path / "one", tmp_path / "two"
    with one_thread():
        assert main([*RUN, f"run_dir={one}"]) == 0
    # `accelerate launch --cpu --num_processes 2` starts one process only.
    finished = python(
        "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "rl/train.py", *RUN,
        f"run_dir={two}", environment={"ACCELERATE_USE_CPU": "true"})
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]
    assert json.loads((two / "checkpoints" / "step-000003" / "state.json").read_text())["num_ranks"] == 2
    metrics = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    steps = [[record for record in records if record["kind"] == "train"] for records in metrics]
    assert [record["step"] for record in steps[1]] == [1, 2, 3]
    same = (
        "reward", "groups/trained", "tokens/sampled", "loss/value", "optim/grad_norm", "refused/equal_rewards",
        "loss/tokens")
    for key in same:
        assert steps[1][0][key] == pytest.approx(steps[0][0][key], rel=1e-4, abs=1e-6)
    before = [next(record for record in records if record["kind"] == "eval") for records in metrics]
    assert before[0]["held_out/accuracy"] == before[1]["held_out/accuracy"]
    rollouts = [[json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()] for run in (one, two)]
    first = [[record for record in records if record["step"] == 1] for records in rollouts]
    assert first[0] == first[1] and len(first[0]) == 5
    summary = json.loads((two / "summary.json").read_text())
    assert summary["stop_reason"] == "completed" and summary["steps"] == 3
    for name in ("step-000003", "best"):
        assert (two / "checkpoints" / name / "manifest.json").is_file()
