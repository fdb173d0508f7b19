"""docs/examples/grpo_one_page.py: it learns, and its loss and gradient of a batch are those of the full trainer."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch

from rl.collect import Collected
from rl.paths import project_root
from rl.policy.forward import PolicyForward
from rl.policy.policy import Policy
from rl.records import ScoredGroup
from rl.scoring.rewarding import score_groups
from rl.selection import select
from rl.training_groups import groups_with_advantages
from tests.reference.tiny_run import make_updater, sampled_groups, tiny_config, tiny_policy

PAGE = project_root() / "docs" / "examples" / "grpo_one_page.py"
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_one_page", PAGE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gradient(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in policy.trainable_parameters().items() if p.grad is not None}


def test_its_loss_and_gradient_of_a_batch_are_those_of_the_full_trainer(page: ModuleType) -> None:
    config = tiny_config(
        "selection.mode=zero", f"selection.low={page.LOW}", f"selection.high={page.HIGH}", "optim.max_grad_norm=1e9",
        "optim.micro_batch_tokens=4096", f"sampling.max_completion_tokens={page.SAMPLING.max_completion_tokens}")
    groups = sampled_groups(tiny_policy(config, adapter_scale=0.02), 24, size=4, max_tokens=48)
    scored: list[ScoredGroup] = score_groups(page.AGREEMENT, groups)
    selection = select(scored, page.LOW, page.HIGH)
    assert selection.kept and selection.refused
    batch = page.training_groups(scored)
    assert batch == groups_with_advantages(config, Collected(tuple(scored), selection, selection.kept, 0))

    theirs, ours = tiny_policy(config, adapter_scale=0.02), tiny_policy(config, adapter_scale=0.02)
    updater, seen = make_updater(config, theirs), []
    updater._optimizer.optimizer.register_step_pre_hook(  # type: ignore[attr-defined]
        lambda *_: seen.append(gradient(theirs)))
    report = updater.update(batch, step=0, policy_version=0)
    loss = page.backward(PolicyForward(ours, temperature=1.0), batch, pad_token_id=ours.eos_token_ids[0])
    assert loss == report.metrics["loss/value"] != 0.0
    found = gradient(ours)
    assert found.keys() == seen[0].keys() and all(torch.equal(found[name], seen[0][name]) for name in found)


def test_it_learns_from_questions_alone(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "LEARNING_RATE", 1e-3)  # twice its own, for half of the steps that it would need
    before, after = page.main(steps=14)
    assert before < 0.45 and after > 0.85


def test_it_fits_on_a_page() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150 and "Shape legend" in PAGE.read_text(encoding="utf-8")
