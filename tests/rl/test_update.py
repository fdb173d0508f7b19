"""Updates of the tiny model: the gradient is the batch's whatever the split, no forward is wasted, and each setting
acts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from accelerate import Accelerator

from rl.errors import ConfigError
from rl.losses import entropy_threshold
from rl.memory.estimate import longest_groups
from rl.optimizer import learning_rate
from rl.policy.policy import Policy
from rl.records import Group, TrainingGroup
from rl.update_report import UpdateReport
from tests.reference.losses import reference_covariances
from tests.reference.tiny_run import (
    literal_logprobs,
    make_updater,
    sampled_groups,
    tiny_config,
    tiny_policy,
    trained,
    with_advantages,
)

torch.set_num_threads(1)
Weights = dict[str, torch.Tensor]
SCALE = 0.02  # of the adapter's B, so that the gradient of A is not zero


@pytest.fixture(scope="module")
def groups() -> list[Group]:
    return sampled_groups(tiny_policy(adapter_scale=SCALE), 4, max_tokens=16)


def gradient(batch: Sequence[TrainingGroup], *overrides: str, version: int = 0) -> tuple[Weights, UpdateReport]:
    """The gradient that the optimiser was given in the only update of the batch, after clipping."""
    config = tiny_config("optim.max_grad_norm=1e9", *overrides)
    policy = tiny_policy(config, adapter_scale=SCALE)
    updater = make_updater(config, policy)
    seen: list[Weights] = []

    def look(*_: object) -> None:
        seen.append({name: p.grad.clone() for name, p in policy.trainable_parameters().items() if p.grad is not None})

    updater._optimizer.optimizer.register_step_pre_hook(look)  # type: ignore[attr-defined]
    report = updater.update(batch, step=0, policy_version=version)
    assert len(seen) == report.num_updates == 1
    return seen[0], report


def assert_close(found: Weights, expected: Weights, rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=rtol, atol=rtol * weight.abs().max().item())


def differ(one: Weights, other: Weights) -> bool:
    return any((one[name] - other[name]).abs().max() > 1e-3 * one[name].abs().max() for name in one)


def literal_gradient(groups: Sequence[TrainingGroup], loss: Callable[[torch.Tensor, float], torch.Tensor]) -> Weights:
    """Gradient of sum over completions of loss(logprobs [T], advantage), each completion run alone through the whole
    model."""
    policy = tiny_policy(adapter_scale=SCALE)
    for group in groups:
        for rollout, advantage in zip(group.group.rollouts, group.advantages, strict=True):
            prompt = group.group.prompt.token_ids
            logits = policy.causal_lm(input_ids=torch.tensor([[*prompt, *rollout.token_ids]]), use_cache=False).logits[
                0]
            logprobs = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
            loss(logprobs.gather(1, torch.tensor(rollout.token_ids)[:, None]).squeeze(1), advantage).backward()
    return {name: p.grad for name, p in policy.trainable_parameters().items() if p.grad is not None}


def shifted(group: Group, by: float) -> Group:
    """The group with `by` added to every log-probability that its sampler reported."""
    return dataclasses.replace(
        group,
        rollouts=tuple(
            dataclasses.replace(rollout, logprobs=tuple(value + by for value in rollout.logprobs))
            for rollout in group.rollouts))


class Forwards:
    """Counts calls of the backbone with and without gradient, and the tokens that went through it."""

    def __init__(self, policy: Policy) -> None:
        self.with_gradient = self.without_gradient = self.tokens = 0
        backbone = getattr(policy.causal_lm, policy.causal_lm.base_model_prefix)
        backbone.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _module: torch.nn.Module, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        self.tokens += kwargs["input_ids"].numel()
        if torch.is_grad_enabled():
            self.with_gradient += 1
        else:
            self.without_gradient += 1


def num_different_tokens(batch: Sequence[TrainingGroup]) -> int:
    """That a forward over the batch has to read: each prompt, and each different completion but for its last token."""
    return sum(
        len(item.group.prompt.token_ids)
        + sum(len(tokens) - 1 for tokens in {rollout.token_ids for rollout in item.group.rollouts}) for item in batch)


def count_forwards(batch: Sequence[TrainingGroup], *overrides: str) -> tuple[Forwards, int]:
    """(forwards of one update of the batch, its micro-batches)."""
    config = tiny_config("optim.micro_batch_tokens=120", *overrides)
    policy = tiny_policy(config)
    updater = make_updater(config, policy)
    num_micro_batches = len(list(updater.micro_batches_of(batch)))
    forwards = Forwards(policy)
    updater.update(batch, step=0, policy_version=0)
    return forwards, num_micro_batches


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_the_gradient_is_the_literal_one(groups: list[Group], aggregation: str) -> None:
    batch = with_advantages(groups, zero=[1])
    num_sequences = 16
    num_tokens = sum(len(r.token_ids) for g in groups for r in g.rollouts)

    def loss(logprobs: torch.Tensor, advantage: float) -> torch.Tensor:
        ratios = torch.exp(logprobs - logprobs.detach())
        weight = {
            "token": 1 / num_tokens, "sequence": 1 / (num_sequences * len(logprobs)),
            "constant": 1 / (num_sequences * 24)}
        return -(weight[aggregation] * advantage * ratios).sum()

    found, _ = gradient(batch, f"loss.aggregation={aggregation}")
    assert_close(found, literal_gradient(batch, loss))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("extra", [
    (), ("loss.kl_weight=0.1", "loss.entropy_bonus=0.01"), ("loss.name=gspo",), ("loss.top_entropy_share=0.4",),
    ("loss.covariance.mode=clip", "loss.covariance.low=0", "loss.covariance.share=0.2")])
def test_micro_batch_tokens_do_not_change_the_gradient(
    groups: list[Group], aggregation: str, extra: tuple[str, ...]
) -> None:
    batch = with_advantages(groups, zero=[2])
    whole, whole_report = gradient(batch, f"loss.aggregation={aggregation}", *extra)
    for tokens in (1, 70):
        split, report = gradient(batch, f"loss.aggregation={aggregation}", f"optim.micro_batch_tokens={tokens}", *extra)
        assert_close(split, whole)
        assert report.metrics == pytest.approx(whole_report.metrics, rel=1e-3, abs=1e-5)


def test_the_order_of_the_groups_does_not_change_the_gradient(groups: list[Group]) -> None:
    batch = with_advantages(groups)
    assert_close(gradient(batch[::-1])[0], gradient(batch)[0])


@pytest.mark.parametrize("extent", ["selective", "full"])
def test_gradient_checkpointing_does_not_change_the_gradient(groups: list[Group], extent: str) -> None:
    batch = with_advantages(groups)
    assert_close(gradient(batch, f"model.gradient_checkpointing={extent}")[0], gradient(batch)[0])


def test_the_batch_is_not_changed(groups: list[Group]) -> None:
    batch = with_advantages(groups)
    gradient(batch)
    assert batch == with_advantages(groups)


def test_groups_without_advantage_cost_no_forward_but_count_in_the_denominator(groups: list[Group]) -> None:
    batch = with_advantages(groups, zero=[0, 3])
    forwards, _ = count_forwards(batch)
    assert forwards.tokens == num_different_tokens(batch[1:3])
    with_zeros, without = gradient(batch)[0], gradient([batch[1], batch[2]])[0]
    all_tokens, kept_tokens = (
        sum(len(r.token_ids) for g in part for r in g.group.rollouts) for part in (batch, batch[1:3]))
    assert_close({name: weight * (all_tokens / kept_tokens) for name, weight in with_zeros.items()}, without)


def test_a_batch_without_any_advantage_changes_nothing(groups: list[Group]) -> None:
    config = tiny_config("optim.weight_decay=0.1")
    policy = tiny_policy(config, adapter_scale=SCALE)
    before, updater, forwards = trained(policy), make_updater(config, policy), Forwards(policy)
    for batch in (with_advantages(groups, zero=range(4)), []):
        report = updater.update(batch, step=0, policy_version=0)
        assert report.num_updates == 0 and report.metrics == {"optim/lr": config.optim.lr, "optim/updates": 0.0}
    assert forwards.tokens == 0 and all(torch.equal(weight, before[name]) for name, weight in trained(policy).items())


def test_one_update_per_batch_runs_one_forward_per_micro_batch(groups: list[Group]) -> None:
    forwards, num_micro_batches = count_forwards(with_advantages(groups))
    assert num_micro_batches > 1
    assert (forwards.with_gradient, forwards.without_gradient) == (num_micro_batches, 0)


@pytest.mark.parametrize(
    "overrides", [("optim.epochs=3",), ("optim.epochs=2", "optim.minibatches=2"), ("optim.minibatches=4",)]
)
def test_several_updates_per_batch_run_one_more_pass_without_gradient(
    groups: list[Group], overrides: tuple[str, ...]
) -> None:
    epochs = tiny_config(*overrides).optim.epochs
    batch = with_advantages(groups)
    forwards, num_micro_batches = count_forwards(batch, *overrides)
    assert forwards.without_gradient == num_micro_batches
    assert forwards.tokens == (epochs + 1) * num_different_tokens(batch)


def test_a_kl_penalty_runs_one_reference_forward_per_micro_batch_and_weight_zero_none(groups: list[Group]) -> None:
    forwards, num_micro_batches = count_forwards(with_advantages(groups), "loss.kl_weight=0.1")
    assert (forwards.with_gradient, forwards.without_gradient) == (num_micro_batches, num_micro_batches)
    assert count_forwards(with_advantages(groups), "loss.kl_weight=0")[0].without_gradient == 0


@pytest.mark.parametrize("term", ["loss.kl_weight=0.1", "loss.entropy_bonus=0.1"])
def test_terms_that_do_not_depend_on_advantages_act_on_groups_without_them(groups: list[Group], term: str) -> None:
    forwards, _ = count_forwards(with_advantages(groups, zero=range(4)), term)
    assert forwards.tokens >= num_different_tokens(with_advantages(groups))
    found, _ = gradient(with_advantages(groups, zero=range(4)), term)
    assert max(weight.abs().max().item() for weight in found.values()) > 0


def test_fresh_groups_take_the_policys_logprobs_as_old_and_stale_ones_the_samplers(groups: list[Group]) -> None:
    """The sampler's numbers are shifted by ln 1.5: fresh groups do not see it in the ratio, stale ones have the ratio
    1.5."""
    batch = with_advantages([shifted(group, -math.log(1.5)) for group in groups])
    fresh, stale = (gradient(batch, "loss.clip_high=10", "loss.clip_low=1", version=version) for version in (0, 1))
    assert fresh[1].metrics["loss/ratio"] == pytest.approx(1.0)
    assert fresh[1].metrics["mismatch/mean"] == pytest.approx(math.log(1.5), rel=1e-3)
    assert stale[1].metrics["loss/ratio"] == pytest.approx(1.5, rel=1e-3)
    assert "mismatch/mean" not in stale[1].metrics  # of another version: the difference says nothing about the sampler
    assert_close(stale[0], {name: 1.5 * weight for name, weight in fresh[0].items()}, rtol=1e-3)


@pytest.mark.slow
def test_the_effective_sample_share_is_that_of_the_corrections_weights(groups: list[Group]) -> None:
    """The sampler's numbers of half of the completions are shifted, so that these weigh 3 and the others 1."""
    mixed = [
        dataclasses.replace(group, rollouts=(*shifted(group, -math.log(3.0)).rollouts[:2], *group.rollouts[2:]))
        for group in groups]
    heavy, light = (
        sum(len(r.token_ids) for group in mixed for r in group.rollouts[part]) for part in (slice(0, 2), slice(2, 4)))

    def share(*overrides: str) -> float:
        return gradient(with_advantages(mixed), "loss.clip_high=10", *overrides)[1].metrics[
            "mismatch/effective_sample_share"]

    assert share() == pytest.approx((3 * heavy + light) ** 2 / ((heavy + light) * (9 * heavy + light)), rel=1e-4)
    truncated = (2 * heavy + light) ** 2 / ((heavy + light) * (4 * heavy + light))
    assert share("loss.correction.mode=truncate", "loss.correction.cap=2") == pytest.approx(truncated, rel=1e-4)
    assert share("loss.correction.mode=mask_sequence", "loss.correction.high=2") == pytest.approx(
        light / (heavy + light), rel=1e-4)
    assert share("loss.correction.mode=mask_token", "loss.correction.low=4", "loss.correction.high=5") == 0.0


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_a_second_update_takes_its_ratio_against_the_policy_before_the_first(
    groups: list[Group], aggregation: str
) -> None:
    """Two passes equal two literal ones whose old log-probabilities are those of the start."""
    batch = with_advantages(groups[:2])
    config = tiny_config("optim.epochs=2", "optim.lr=3e-3", "optim.eps=1e-4", "optim.max_grad_norm=1e9",
                         f"loss.aggregation={aggregation}")
    policy = tiny_policy(config, adapter_scale=SCALE)
    report = make_updater(config, policy).update(batch, step=0, policy_version=0)
    assert report.num_updates == 2 and report.metrics["optim/updates"] == 2
    assert report.metrics["loss/ratio"] != pytest.approx(1.0, abs=1e-4)

    literal = tiny_policy(config, adapter_scale=SCALE)
    optimizer = torch.optim.AdamW(
        literal.trainable_parameters().values(), lr=config.optim.lr, eps=config.optim.eps, weight_decay=0.0)
    old = {(g, r): literal_logprobs(literal, group.prompt.token_ids, rollout.token_ids)
           for g, group in enumerate(groups[:2]) for r, rollout in enumerate(group.rollouts)}
    num_tokens = sum(map(len, old.values()))
    for _ in range(2):
        optimizer.zero_grad()
        for (g, r), old_T in old.items():
            ids, completion = groups[g].prompt.token_ids, groups[g].rollouts[r].token_ids
            logits = literal.causal_lm(input_ids=torch.tensor([[*ids, *completion]])).logits[0, len(ids) - 1 : -1]
            ratio_T = torch.exp(
                torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None])[:, 0] - old_T)
            advantage = batch[g].advantages[r]
            objective_T = torch.minimum(ratio_T * advantage, ratio_T.clamp(0.8, 1.2) * advantage)
            (-objective_T.sum() / num_tokens if aggregation == "token" else -objective_T.mean() / len(old)).backward()
        optimizer.step()
    for name, weight in trained(literal).items():
        # Adam divides by the gradient's own size, so that rounding in a gradient near zero would move a weight by up to
        # lr; hence eps.
        torch.testing.assert_close(trained(policy)[name], weight, rtol=0, atol=0.05 * config.optim.lr)


def test_minibatches_split_the_batch_into_updates_of_their_own(groups: list[Group]) -> None:
    batch = with_advantages(groups)
    config = tiny_config("optim.minibatches=2", "optim.max_grad_norm=1e9")
    policy = tiny_policy(config, adapter_scale=SCALE)
    updater = make_updater(config, policy)
    seen: list[Weights] = []
    updater._optimizer.optimizer.register_step_pre_hook(  # type: ignore[attr-defined]
        lambda *_: seen.append(
            {name: p.grad.clone() for name, p in policy.trainable_parameters().items() if p.grad is not None}))
    assert updater.update(batch, step=0, policy_version=0).num_updates == 2
    assert_close(seen[0], gradient(batch[:2])[0])


@pytest.mark.parametrize(("epochs", "minibatches", "updates"), [(1, 1, 1), (3, 1, 3), (1, 4, 4), (2, 3, 6), (1, 9, 4)])
def test_updates_are_epochs_times_minibatches(groups: list[Group], epochs: int, minibatches: int, updates: int) -> None:
    config = tiny_config(f"optim.epochs={epochs}", f"optim.minibatches={minibatches}")
    report = make_updater(config, tiny_policy(config)).update(with_advantages(groups), step=0, policy_version=0)
    assert report.num_updates == updates == report.metrics["optim/updates"]


def test_a_minibatch_without_advantages_is_no_update(groups: list[Group]) -> None:
    config = tiny_config("optim.minibatches=2")
    report = make_updater(config, tiny_policy(config)).update(
        with_advantages(groups, zero=[0, 1]), step=0, policy_version=0)
    assert report.num_updates == 1


@pytest.mark.slow
def test_a_sampler_correction_of_each_mode_changes_the_gradient_as_it_says(groups: list[Group]) -> None:
    """The first group's sampler claims probabilities three times too small, so s = 3 there and 1 elsewhere."""
    batch = with_advantages([shifted(groups[0], -math.log(3)), *groups[1:]])
    plain, masked = with_advantages(groups), with_advantages(groups, zero=[0])
    share = sum(len(r.token_ids) for r in groups[0].rollouts) / sum(
        len(r.token_ids) for g in groups for r in g.rollouts)
    uncorrected, uncorrected_report = gradient(batch)
    assert_close(uncorrected, gradient(plain)[0])
    assert uncorrected_report.metrics["loss/corrected_share"] == 0
    for mode in ("mask_token", "mask_sequence"):
        found, report = gradient(batch, f"loss.correction.mode={mode}")
        assert_close(found, gradient(masked)[0])
        assert report.metrics["loss/corrected_share"] == pytest.approx(share)
    truncated, report = gradient(batch, "loss.correction.mode=truncate", "loss.correction.cap=2")
    doubled = [TrainingGroup(plain[0].scored, tuple(2 * a for a in plain[0].advantages)), *plain[1:]]
    assert_close(truncated, gradient(doubled)[0])
    assert report.metrics["loss/corrected_share"] == pytest.approx(share)


@pytest.mark.slow
def test_the_top_entropy_share_keeps_the_gradient_of_those_tokens_alone(groups: list[Group]) -> None:
    batch = with_advantages(groups)
    policy = tiny_policy(adapter_scale=SCALE)
    entropies: list[float] = []
    for group in groups:
        for rollout in group.rollouts:
            row = torch.tensor([[*group.prompt.token_ids, *rollout.token_ids]])
            with torch.no_grad():
                logits = policy.causal_lm(input_ids=row).logits[0, len(group.prompt.token_ids) - 1 : -1]
            logprobs = torch.log_softmax(logits, -1)
            entropies += (-(logprobs.exp() * logprobs).sum(-1)).tolist()
    # Completions of one group begin alike, so that several tokens may share the threshold's very entropy; all of them
    # are kept.
    threshold = entropy_threshold(torch.tensor(entropies), 0.25) - 1e-5
    num_kept = sum(entropy >= threshold for entropy in entropies)
    position, num_tokens = 0, len(entropies)
    assert math.ceil(0.25 * num_tokens) <= num_kept < 0.3 * num_tokens

    def loss(logprobs: torch.Tensor, advantage: float) -> torch.Tensor:
        nonlocal position
        kept = torch.tensor(entropies[position : position + len(logprobs)]) >= threshold
        position += len(logprobs)
        return -(advantage * kept * torch.exp(logprobs - logprobs.detach())).sum() / num_tokens

    found, report = gradient(batch, "loss.top_entropy_share=0.25")
    assert report.metrics["loss/top_entropy_share"] == pytest.approx(num_kept / num_tokens)
    assert differ(found, gradient(batch)[0])
    assert_close(found, literal_gradient(batch, loss))


def masked(groups: Sequence[Group]) -> list[TrainingGroup]:
    """The second completion of each group is left out, and all of the last."""
    batch = with_advantages(groups)
    left_out = [frozenset({1})] * 3 + [frozenset(range(4))]
    return [dataclasses.replace(item, left_out=out, advantages=tuple(
        0.0 if i in out else value for i, value in enumerate(item.advantages)))
        for item, out in zip(batch, left_out, strict=True)]


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_what_is_left_out_is_in_no_term_and_no_denominator(groups: list[Group], aggregation: str) -> None:
    """As if it had never been sampled, with a penalty and a bonus that act on every token."""
    extra = (f"loss.aggregation={aggregation}", "loss.kl_weight=0.1", "loss.entropy_bonus=0.01")
    batch = masked(groups)
    without = [
        TrainingGroup(
            dataclasses.replace(item.scored, group=dataclasses.replace(
                item.group, rollouts=tuple(item.group.rollouts[i] for i in item.trained))),
            tuple(item.advantages[i] for i in item.trained))
        for item in batch[:3]]
    found, report = gradient(batch, *extra)
    expected, expected_report = gradient(without, *extra)
    assert_close(found, expected)
    assert report.metrics == pytest.approx(expected_report.metrics, rel=1e-4, abs=1e-6)
    split, _ = gradient(batch, "optim.micro_batch_tokens=70", *extra)
    assert_close(split, expected)


def test_what_is_left_out_is_not_computed_before_several_updates_either(groups: list[Group]) -> None:
    batch = masked(groups)
    config = tiny_config("optim.epochs=2")
    policy = tiny_policy(config, adapter_scale=SCALE)
    report = make_updater(config, policy).update(batch, step=0, policy_version=0)
    assert report.token_means is not None
    num_tokens = sum(len(item.group.rollouts[i].token_ids) for item in batch for i in item.trained)
    assert report.token_means["num_tokens"] == 2 * num_tokens


@pytest.mark.slow
def test_clip_cov_takes_the_gradient_from_tokens_between_the_bounds_alone(groups: list[Group]) -> None:
    """With a share of 1 there is nothing to draw; a group without advantage moves no mean, also where a penalty has it
    computed."""
    batch = with_advantages(groups, zero=[3])
    policy, trains = tiny_policy(adapter_scale=SCALE), batch[:3]
    rows = [literal_logprobs(policy, item.group.prompt.token_ids, rollout.token_ids).detach()
            for item in trains for rollout in item.group.rollouts]
    advantages = [value for item in trains for value in item.advantages]
    covariances = reference_covariances(
        torch.cat(rows).tolist(), [a for a, row in zip(advantages, rows, strict=True) for _ in row])
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    position = 0

    def loss(logprobs: torch.Tensor, advantage: float) -> torch.Tensor:
        nonlocal position
        if advantage == 0.0:  # of the group that nothing is said of
            return 0.0 * logprobs.sum()
        kept = torch.tensor([not 0.1 < c < 2.0 for c in covariances[position : position + len(logprobs)]])
        position += len(logprobs)
        return -(advantage * kept * torch.exp(logprobs - logprobs.detach())).sum() / num_tokens

    settings = ("loss.covariance=clip", "loss.covariance.share=1", "loss.covariance.low=0.1", "loss.covariance.high=2")
    found, report = gradient(batch, *settings)
    assert report.marked_share == pytest.approx(sum(0.1 < c < 2.0 for c in covariances) / len(covariances))
    assert_close(found, literal_gradient(batch, loss))
    assert gradient(batch, "loss.kl_weight=0.1", *settings)[1].marked_share == report.marked_share


def test_kl_cov_holds_the_marked_tokens_in_later_updates_whatever_the_micro_batches(groups: list[Group]) -> None:
    batch = with_advantages(groups)

    def after(*overrides: str) -> Weights:
        config = tiny_config("optim.epochs=3", "optim.lr=1e-3", *overrides)
        policy = tiny_policy(config, adapter_scale=SCALE)
        make_updater(config, policy).update(batch, step=0, policy_version=0)
        return trained(policy)

    settings = ("loss.covariance=kl", "loss.covariance.share=0.3", "loss.covariance.weight=0.5")
    held = after(*settings)
    assert differ(held, after())
    assert_close(after("optim.micro_batch_tokens=70", *settings), held, rtol=1e-3)


def test_kl_cov_is_refused_where_it_would_do_nothing() -> None:
    with pytest.raises(ConfigError, match=r"loss\.covariance\.mode is kl.*with one\s+update a batch none has moved"):
        tiny_config("loss.covariance=kl")


@pytest.mark.parametrize("override", [
    "loss.kl_weight=0.5", "loss.entropy_bonus=0.1", "sampling.temperature=0.7", "loss.aggregation=sequence"])
def test_each_of_these_settings_changes_the_gradient(groups: list[Group], override: str) -> None:
    batch = with_advantages(groups)
    assert differ(gradient(batch, override)[0], gradient(batch)[0])


def test_cispo_bounds_a_tokens_weight_where_clip_takes_its_gradient_away(groups: list[Group]) -> None:
    """A ratio of 1.5 everywhere: cispo's gradient is that of ln pi with weight 1.2 A, clip's has tokens of negative A
    alone."""
    batch = with_advantages([shifted(group, -math.log(1.5)) for group in groups])
    plain, _ = gradient(with_advantages(groups))
    assert_close(
        gradient(batch, "loss.name=cispo", version=1)[0], {name: 1.2 * weight for name, weight in plain.items()})
    negative = [
        TrainingGroup(item.scored, tuple(1.5 * min(0.0, a) for a in item.advantages))
        for item in with_advantages(groups)]
    assert_close(gradient(batch, "loss.name=clip", version=1)[0], gradient(negative)[0])


def test_gspo_takes_the_ratio_of_the_whole_sequence(groups: list[Group]) -> None:
    """Sampler's numbers shifted by +0.3 on the first token and -0.3 on the second leave the sequence's ratio at 1."""
    tilted = [
        dataclasses.replace(
            g,
            rollouts=tuple(
                dataclasses.replace(r, logprobs=(r.logprobs[0] + 0.3, r.logprobs[1] - 0.3, *r.logprobs[2:]))
                for r in g.rollouts))
        for g in groups]
    batch = with_advantages(tilted)
    _, whole = gradient(batch, "loss.name=gspo", version=1)
    _, each = gradient(batch, "loss.name=clip", version=1)
    assert whole.metrics["loss/clip_low_share"] == whole.metrics["loss/clip_high_share"] == 0
    assert each.metrics["loss/clip_low_share"] > 0 and each.metrics["loss/clip_high_share"] > 0


@pytest.mark.parametrize(
    ("key", "metric"), [("loss.clip_low", "loss/clip_low_share"), ("loss.clip_high", "loss/clip_high_share")]
)
def test_the_clip_bounds_act_each_on_its_side(groups: list[Group], key: str, metric: str) -> None:
    sign = 1 if key.endswith("low") else -1
    batch = with_advantages([shifted(group, sign * 0.1) for group in groups])
    wide, narrow = (gradient(batch, f"{key}={value}", version=1)[1].metrics for value in (0.2, 0.05))
    assert wide[metric] == 0 and 0 < narrow[metric] < 1


def test_gradients_are_scaled_down_to_max_grad_norm_and_the_norm_before_it_is_reported(groups: list[Group]) -> None:
    batch = with_advantages(groups)
    free, report = gradient(batch)
    norm = math.sqrt(sum(weight.double().square().sum().item() for weight in free.values()))
    assert report.metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)
    clipped, clipped_report = gradient(batch, f"optim.max_grad_norm={norm / 4}")
    assert_close(clipped, {name: weight / 4 for name, weight in free.items()})
    assert clipped_report.metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert_close(gradient(batch, f"optim.max_grad_norm={norm * 2}")[0], free)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(groups: list[Group]) -> None:
    config = tiny_config()
    policy = tiny_policy(config, adapter_scale=SCALE)
    updater, before = make_updater(config, policy), trained(policy)
    broken = with_advantages(groups)
    broken[0] = TrainingGroup(broken[0].scored, (float("inf"), *broken[0].advantages[1:]))
    with pytest.raises(FloatingPointError, match=r"gradient's norm is .*Remedy: a lower optim\.lr"):
        updater.update(broken, step=0, policy_version=0)
    assert all(torch.equal(weight, before[name]) for name, weight in trained(policy).items())


@pytest.mark.slow
def test_a_rehearsal_leaves_no_trace(groups: list[Group]) -> None:
    config = tiny_config()
    rehearsed, plain = tiny_policy(config, adapter_scale=SCALE), tiny_policy(config, adapter_scale=SCALE)
    updater = make_updater(config, rehearsed)
    updater.rehearse(longest_groups(config, 20))
    reports = [updater.update(with_advantages(groups), step=0, policy_version=0),
               make_updater(config, plain).update(with_advantages(groups), step=0, policy_version=0)]
    assert reports[0] == reports[1]
    assert all(torch.equal(weight, trained(plain)[name]) for name, weight in trained(rehearsed).items())


def test_the_learning_rate_warms_up_and_then_follows_its_schedule() -> None:
    common = ("optim.lr=1", "steps=10", "optim.warmup_steps=2")
    expected = {
        "constant": [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        "linear": [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8],
        "cosine": [0.5, 1, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8))],
    }
    for schedule, values in expected.items():
        config = tiny_config(*common, f"optim.schedule={schedule}")
        assert [learning_rate(config.optim, step, config.steps) for step in range(10)] == pytest.approx(values)


@pytest.mark.slow
def test_the_reported_learning_rate_is_the_one_used(groups: list[Group]) -> None:
    """AdamW's first step moves each weight by lr, whatever its gradient (eps aside)."""
    config = tiny_config("optim.lr=4e-3", "optim.warmup_steps=4", "optim.eps=1e-16", "optim.max_grad_norm=1e9")
    policy = tiny_policy(config, adapter_scale=SCALE)
    before = trained(policy)
    report = make_updater(config, policy, Accelerator(cpu=True)).update(
        with_advantages(groups), step=1, policy_version=0)
    assert report.metrics["optim/lr"] == pytest.approx(2e-3)
    moved = max((weight - before[name]).abs().max().item() for name, weight in trained(policy).items())
    assert moved == pytest.approx(2e-3, rel=1e-3)


def test_weight_decay_shrinks_weights_beside_the_step(groups: list[Group]) -> None:
    changed = []
    for decay in (0.0, 0.5):
        config = tiny_config("optim.lr=1e-2", f"optim.weight_decay={decay}")
        policy = tiny_policy(config, adapter_scale=SCALE)
        before = trained(policy)
        make_updater(config, policy).update(with_advantages(groups), step=0, policy_version=0)
        changed.append({name: weight - before[name] for name, weight in trained(policy).items()})
    for name, weight in before.items():
        torch.testing.assert_close(changed[1][name] - changed[0][name], -1e-2 * 0.5 * weight, rtol=1e-3, atol=1e-6)
