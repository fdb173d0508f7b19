"""Plain distillation in a warm-up: loss and gradient against a literal reference, with packing, chunks and
micro-batches."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rl.configuration.loading import load, to_yaml
from rl.errors import ConfigError
from rl.kl import forward_kl
from rl.paths import resolve_path
from rl.policy.policy import Policy
from rl.runs.folder import RunFolder
from rl.supervised.config import DistillationSection, WarmupConfig
from rl.supervised.distillation import attach_teacher, distilled_losses
from rl.supervised.loop import STATE_FILE, WarmupState
from rl.supervised.run import _checkpoint_to_resume, check_warmup_teacher
from rl.supervised.trainer import make_trainer, trainer_arguments
from rl.teacher.teacher import teacher_digests
from tests.reference.tiny_run import change_adapter, tiny_policy, trained
from tests.reference.warmup import warmup_parts
from tests.rl.teacher.test_advantages import other_vocabulary

torch.set_num_threads(1)
ROWS = 8
TEACHER = "distillation.teacher=models/tiny-arith"
CASES = list(itertools.product(("forward_kl", "reverse_kl"), (1.0, 2.0), (1.0, 0.4)))


def teacher_policy() -> Policy:
    """Another adapter over the same base than the policy's."""
    policy = tiny_policy()
    change_adapter(policy, 0.1, seed=11)
    return policy


def parts(
    folder: Path, teacher: Policy, *overrides: str, adapter_scale: float = 0.05
) -> tuple[Any, Policy, torch.Tensor]:
    """(a trainer whose one batch has all rows, the policy, its rows' literal loss: the sum over all solution tokens /
    their number)."""
    config, inputs, policy = warmup_parts(
        f"data.limit={ROWS}", f"optim.batch_rows={ROWS}", f"optim.micro_batch_rows={ROWS}", TEACHER, *overrides,
        adapter_scale=adapter_scale)
    assert config.distillation is not None
    losses = [
        literal_losses(policy, teacher, row.prompt.token_ids, row.completion_ids, config.distillation)
        for row in inputs.rows]
    trainer = make_trainer(
        config, policy, inputs.rows, inputs.max_tokens, trainer_arguments(config, folder), teacher=teacher)
    return trainer, policy, torch.cat(losses).mean()


def literal_losses(
    policy: Policy, teacher: Policy, prompt: tuple[int, ...], solution: tuple[int, ...], section: DistillationSection
) -> torch.Tensor:
    """[T], with gradient, one row in a forward of its own, token by token from the definitions."""
    ids = torch.tensor([[*prompt, *solution]])
    logits_TV = policy.causal_lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    with torch.no_grad():
        other_TV = teacher.causal_lm(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    losses = []
    for t, token in enumerate(solution):
        pi, other = (torch.softmax(z[t] / section.temperature, 0) for z in (logits_TV, other_TV))
        p, q = (other, pi) if section.divergence == "forward_kl" else (pi, other)
        cross_entropy = -torch.softmax(logits_TV[t], 0)[token].log()
        losses.append(
            section.weight * section.temperature**2 * (p * (p / q).log()).sum() + (1 - section.weight) * cross_entropy)
    return torch.stack(losses)


def as_words(divergence: str, temperature: float, weight: float) -> tuple[str, ...]:
    return (
        f"distillation.divergence={divergence}", f"distillation.temperature={temperature}",
        f"distillation.weight={weight}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_loss_and_gradient_equal_a_literal_reference(
    case: tuple[str, float, float], packing: bool, tmp_path: Path
) -> None:
    words = ("packing=true", "data.max_tokens=64") if packing else ()
    trainer, policy, expected = parts(tmp_path, teacher_policy(), *as_words(*case), *words)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in policy.trainable_parameters().items() if p.grad is not None}
    policy.model.zero_grad()
    # With packing the batch is one row of several solutions.
    batches = list(trainer.get_train_dataloader())
    total = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    found = sum(
        trainer.compute_loss(policy.model, dict(batch), num_items_in_batch=torch.tensor(total)) for batch in batches)
    assert isinstance(found, torch.Tensor) and found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert gradients
    for name, parameter in policy.trainable_parameters().items():
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=2e-3, atol=2e-4 * gradients[name].abs().max().item())


def test_a_mixture_of_experts_is_distilled_without_its_balancing_loss(tmp_path: Path) -> None:
    source, folder = resolve_path("models/tiny-arith"), tmp_path / "moe"
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=AutoConfig.from_pretrained(source).vocab_size, hidden_size=32, intermediate_size=64,
            moe_intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
            num_experts=4, num_experts_per_tok=2, max_position_embeddings=256)
    ).save_pretrained(folder)
    for file in [*Path(source).glob("*token*"), Path(source) / "generation_config.json"]:
        shutil.copy(file, folder)
    trainer, policy, expected = parts(
        tmp_path / "out", teacher_policy(), f"model.path={folder}", "lora.targets=[q_proj,v_proj]")
    (batch,) = list(trainer.get_train_dataloader())
    loss = trainer.compute_loss(policy.model, dict(batch))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.trainable_parameters().values())


def test_chunks_change_neither_loss_nor_gradient() -> None:
    config, inputs, policy = warmup_parts("data.limit=1", TEACHER, "distillation.weight=0.5")
    assert config.distillation is not None
    row, teacher = inputs.rows[0], teacher_policy()
    ids = torch.tensor([[*row.prompt.token_ids, *row.completion_ids]])
    labels = torch.tensor([[*[-100] * len(row.prompt.token_ids), *row.completion_ids]])
    results = []
    plain = policy.causal_lm.forward
    for chunk_tokens in (3, 1000):
        policy.causal_lm.forward = plain
        attach_teacher(policy.causal_lm, teacher.causal_lm, config.distillation, chunk_tokens=chunk_tokens)
        policy.model.zero_grad()
        losses = policy.model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
        losses.sum().backward()
        results.append(
            (
                losses.detach(),
                {name: p.grad.clone() for name, p in policy.trainable_parameters().items() if p.grad is not None}))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][name], rtol=1e-3, atol=1e-4 * gradient.abs().max().item())


def test_the_teacher_computes_in_its_own_dtype_where_the_student_computes_in_bfloat16() -> None:
    config, inputs, policy = warmup_parts(
        "data.limit=1", TEACHER, "distillation.weight=1", "distillation.temperature=1")
    assert config.distillation is not None
    row, teacher = inputs.rows[0], teacher_policy()
    ids = torch.tensor([[*row.prompt.token_ids, *row.completion_ids]])
    labels = torch.tensor([[*[-100] * len(row.prompt.token_ids), *row.completion_ids]])
    first = len(row.prompt.token_ids) - 1
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits_TV = policy.causal_lm(input_ids=ids, use_cache=False).logits[0, first:-1].float()
        rounded_TV = teacher.causal_lm(input_ids=ids, use_cache=False).logits[0, first:-1].float()
    with torch.no_grad():
        exact_TV = teacher.causal_lm(input_ids=ids, use_cache=False).logits[0, first:-1]
    attach_teacher(policy.causal_lm, teacher.causal_lm, config.distillation)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found_T = -policy.causal_lm(input_ids=ids, labels=labels, fused_lm_head=True).log_probs[0, first:]
    expected_T, wrong_T = forward_kl(logits_TV, exact_TV), forward_kl(logits_TV, rounded_TV)
    assert (expected_T - wrong_T).abs().max() > 1e-3
    torch.testing.assert_close(found_T, expected_T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_a_teacher_that_equals_the_policy_leaves_nothing_to_learn(divergence: str, tmp_path: Path) -> None:
    trainer, policy, _ = parts(tmp_path, tiny_policy(), *as_words(divergence, 2.0, 1.0), adapter_scale=0.0)
    (batch,) = list(trainer.get_train_dataloader())
    loss = trainer.compute_loss(policy.model, dict(batch))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert all(p.grad is not None and p.grad.abs().max() < 1e-6 for p in policy.trainable_parameters().values())


def test_outputs_that_only_one_model_has_do_not_count() -> None:
    """Families pad the output layer differently; what is no token has no part in the divergence."""
    section = DistillationSection.model_validate({"teacher": {"path": "x"}})
    logits, other, tokens = torch.randn(3, 6), torch.randn(3, 8), torch.tensor([1, 2, 3])
    torch.testing.assert_close(
        distilled_losses(logits, other, tokens, section), distilled_losses(logits, other[:, :6], tokens, section))


@pytest.mark.slow
def test_one_update_is_the_same_for_every_micro_batch_size(tmp_path: Path) -> None:
    def after_one_step(size: int) -> tuple[float, dict[str, torch.Tensor]]:
        config, inputs, policy = warmup_parts(
            f"data.limit={ROWS}",
            "steps=1",
            "optim.lr=1e-2",
            f"optim.batch_rows={ROWS}",
            f"optim.micro_batch_rows={size}",
            TEACHER)
        trainer = make_trainer(
            config,
            policy,
            inputs.rows,
            inputs.max_tokens,
            trainer_arguments(config, tmp_path),
            teacher=teacher_policy())
        trainer.train()
        return trainer.state.log_history[0]["loss"], trained(policy)

    loss, weights = after_one_step(ROWS)
    other_loss, other = after_one_step(2)
    assert other_loss == pytest.approx(loss, rel=1e-4)
    # Adam's first step is lr = 1e-2
    assert max(float((weights[name] - other[name]).abs().max()) for name in weights) < 5e-4
    assert any(not torch.equal(weights[name], before) for name, before in trained(warmup_parts()[2]).items())


def test_a_warm_up_does_not_go_on_with_another_teacher_in_the_same_folder(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    teacher_policy().model.save_pretrained(str(adapter))
    config, inputs, _ = warmup_parts(
        "data.limit=4",
        f"run_dir={tmp_path / 'run'}",
        f"distillation.teacher={{path: models/tiny-arith, adapter: {adapter}}}")
    assert config.distillation is not None
    folder = RunFolder(config.run_dir)
    checkpoint = folder.checkpoints / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    folder.config_file.write_text(to_yaml(config))
    began = teacher_digests(config.distillation.teacher, "distillation.teacher")
    assert began.keys() == {"distillation.teacher.path", "distillation.teacher.adapter"}
    (checkpoint / STATE_FILE).write_text(json.dumps(asdict(WarmupState(2, 0, inputs.digest, None, began))))
    assert _checkpoint_to_resume(folder, config, inputs, began)[0] == checkpoint
    tiny_policy(adapter_scale=0.3).model.save_pretrained(str(adapter))
    now = teacher_digests(config.distillation.teacher, "distillation.teacher")
    with pytest.raises(
        ConfigError, match=r"^distillation\.teacher\.adapter: the weights differ from those that the run began with"
    ):
        _checkpoint_to_resume(folder, config, inputs, now)


def test_a_teacher_of_another_vocabulary_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    config, inputs, _ = warmup_parts("data.limit=4", f"distillation.teacher={other_vocabulary(tmp_path / 'other')}")
    with pytest.raises(ConfigError) as error:
        check_warmup_teacher(config, inputs)
    assert str(error.value).startswith(
        f"distillation.teacher.path: {tmp_path / 'other'} has another vocabulary (99 tokens)")
    assert "or distillation=null, which learns from a teacher's solutions by their text alone" in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distillation.weight=0.5"], "distillation.teacher.path: no teacher is named"),
        ([TEACHER, "distillation.weight=1.5"], "distillation.weight: saw 1.5; expected a number > 0 and <= 1"),
        (
            [TEACHER, "distillation.divergence=js"],
            "distillation.divergence: saw 'js'; expected one of: forward_kl, reverse_kl",
        ),
    ],
)
def test_a_wrong_distillation_section_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, words, WarmupConfig)
    assert message in str(error.value)
