"""What TRL's trainer computes for us: the cross-entropy of completion tokens alone, the same with and without
packing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.errors import ConfigError
from rl.optimizer import learning_rate
from rl.paths import project_root
from rl.policy.forward import PolicyForward
from rl.policy.logprob_calculator import LogprobCalculator
from rl.supervised.loop import held_out_loss
from rl.supervised.trainer import make_trainer, trainer_arguments
from rl.supervised.trl_version import TRL_VERSIONS
from tests.reference.tiny_run import trained
from tests.reference.warmup import literal_losses, warmup_parts

torch.set_num_threads(1)
ROWS = 12


def trainer_of(folder: Path, *overrides: str) -> tuple[Any, torch.Tensor, Any]:
    """(a trainer whose one batch has all rows, the literal loss of every completion token [T], the policy)."""
    config, inputs, policy = warmup_parts(
        f"data.limit={ROWS}", f"optim.batch_rows={ROWS}", f"optim.micro_batch_rows={ROWS}", *overrides)
    expected = literal_losses(policy, inputs.rows)
    return (
        make_trainer(config, policy, inputs.rows, inputs.max_tokens, trainer_arguments(config, folder)), expected,
        policy)


@pytest.mark.parametrize(
    "overrides",
    [
        (), ("packing=true", "data.max_tokens=64"), ("lora.enabled=false",), ("packing=true", "lora.enabled=false"),
        ("packing=true", "model.attention=eager"), ("model.quantization=nf4",),
    ],
    ids=["lora", "lora, packed", "full", "full, packed", "eager, packed", "4 bits"],
)
def test_the_loss_is_the_cross_entropy_of_the_completion_tokens_alone(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    trainer, expected_T, policy = trainer_of(tmp_path, *overrides)
    assert {parameter.dtype for parameter in policy.trainable_parameters().values()} == {torch.float32}
    policy.model.eval()
    (batch,) = list(trainer.get_train_dataloader())
    if "packing=true" in overrides:
        assert batch["input_ids"].shape[0] == 1 and "attention_mask" not in batch
    assert int((batch["labels"] != -100).sum()) == len(expected_T)
    with torch.no_grad():
        loss = trainer.compute_loss(policy.model, dict(batch))
        outputs = policy.model(**batch, fused_lm_head=True)
    assert float(loss) == pytest.approx(float(expected_T.double().mean()), rel=1e-5)
    # Token by token, in whatever order packing put the rows: no solution sees another one.
    found_T = -outputs.log_probs[outputs.label_mask]
    torch.testing.assert_close(found_T.sort().values, expected_T.sort().values, atol=2e-5, rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["false", "true"])
def test_one_update_is_the_same_for_every_micro_batch_size_and_with_packing(packing: str, tmp_path: Path) -> None:
    def after_one_step(*overrides: str) -> tuple[float, dict[str, torch.Tensor]]:
        config, inputs, policy = warmup_parts(f"data.limit={ROWS}", "steps=1", "optim.lr=1e-2", *overrides)
        trainer = make_trainer(config, policy, inputs.rows, inputs.max_tokens, trainer_arguments(config, tmp_path))
        trainer.train()
        return trainer.state.log_history[0]["loss"], trained(policy)

    literal, expected = after_one_step("optim.batch_rows=12", "optim.micro_batch_rows=12")
    size = ("optim.batch_rows=16", "optim.micro_batch_rows=2", "data.max_tokens=64") if packing == "true" else (
        "optim.batch_rows=12", "optim.micro_batch_rows=3")
    loss, weights = after_one_step(f"packing={packing}", *size)
    assert loss == pytest.approx(literal, rel=1e-5)
    # Adam's first step is lr = 1e-2
    assert max(float((weights[name] - expected[name]).abs().max()) for name in expected) < 2e-4
    assert any(not torch.equal(weights[name], before) for name, before in trained(warmup_parts()[2]).items())


def test_the_held_out_loss_is_the_mean_over_all_completion_tokens_not_over_rows() -> None:
    _, inputs, policy = warmup_parts("data.limit=9")
    calculator = LogprobCalculator(policy, PolicyForward(policy, temperature=1.0), max_tokens=100)
    expected = literal_losses(policy, inputs.rows)
    assert held_out_loss(calculator, inputs.rows) == pytest.approx(float(expected.double().mean()), rel=1e-5)
    assert held_out_loss(calculator, ()) is None


def test_held_out_rows_share_no_question_with_training_rows(tmp_path: Path) -> None:
    rows = "".join(f'{{"question": "{i % 10}+1=?", "solution": "{i}"}}\n' for i in range(40))
    (tmp_path / "rows.jsonl").write_text(rows)
    _, inputs, _ = warmup_parts(f"data.path={tmp_path / 'rows.jsonl'}", "data.held_out_rows=5")
    held_out = {row.prompt.text for row in inputs.held_out_rows}
    assert len(inputs.held_out_rows) == 8 and len(held_out) == 2 and len(inputs.rows) == 32
    assert held_out.isdisjoint({row.prompt.text for row in inputs.rows})


def test_the_learning_rate_of_each_update_is_that_of_a_training_run(tmp_path: Path) -> None:
    config, inputs, policy = warmup_parts(
        "data.limit=16",
        "optim.batch_rows=4",
        "optim.micro_batch_rows=4",
        "epochs=2",
        "optim.schedule=cosine",
        "optim.warmup_steps=3")
    trainer = make_trainer(config, policy, inputs.rows, inputs.max_tokens, trainer_arguments(config, tmp_path))
    trainer.train()
    rates = [line["learning_rate"] for line in trainer.state.log_history if "loss" in line]
    assert rates == pytest.approx([learning_rate(config.optim, step, 8) for step in range(8)])


def test_a_batch_that_no_micro_batches_make_up_is_refused(tmp_path: Path) -> None:
    config, _, _ = warmup_parts("optim.batch_rows=10", "optim.micro_batch_rows=4")
    with pytest.raises(ConfigError, match=r"optim.batch_rows: 10 rows .* Remedy: optim.batch_rows=12"):
        trainer_arguments(config, tmp_path)


def test_the_range_of_trl_is_the_one_that_the_package_asks_for() -> None:
    first, last = TRL_VERSIONS
    extra = re.search(r'^trl = \["(.*)"\]$', (project_root() / "pyproject.toml").read_text(), re.M)
    assert extra is not None and extra.group(1) == f"trl>={first},<{last}"
