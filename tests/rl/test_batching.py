"""Plans, micro-batch tensors, and that layout, split and order change neither log-probabilities nor gradients of a real
model."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rl.batching import (
    PlannedBatch,
    SequenceIndex,
    build_micro_batch,
    denominators_of,
    plan_for_ranks,
    plan_micro_batches,
    split_for_ranks,
    split_minibatches,
    trains,
)
from rl.config import LossSection
from rl.losses import Aggregation, Denominators, LossTokens, policy_loss
from rl.policy.logprobs import token_logprobs
from rl.policy.rows import Layout, hidden_states
from rl.policy.shared_prompts import NAME, Segment
from rl.records import Group, Prompt, Question, Rollout, ScoredGroup, TrainingGroup

VOCAB = 23
PAD = 0
MAX_COMPLETION_TOKENS = 12
# Prompt length, completion lengths, advantages.
SHAPES = [(3, (4, 1, 12), (1.0, -0.5, -0.5)), (7, (2, 9), (0.7, -0.7)), (1, (1, 1, 5, 3), (0.0, 0.0, 0.0, 0.0)),
          (4, (6, 2), (-2.0, 2.0))]


def make_group(
    index: int, prompt_length: int, lengths: tuple[int, ...], advantages: tuple[float, ...]
) -> TrainingGroup:
    generator = random.Random(index)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(1, VOCAB) for _ in range(count))

    rollouts = tuple(
        Rollout(token_ids=ids(length), logprobs=tuple(-2 * generator.random() for _ in range(length)), text="",
                finish_reason="stop", policy_version=0, seed=0)
        for length in lengths)
    prompt = Prompt(Question(id=f"q{index}", text="", answer=None, columns={}), "", ids(prompt_length))
    size = len(lengths)
    scored = ScoredGroup(Group(prompt, rollouts), (0.0,) * size, {}, (None,) * size, tuple(range(size)), 0.0, {})
    return TrainingGroup(scored, advantages)


@functools.cache
def groups() -> tuple[TrainingGroup, ...]:
    return tuple(make_group(index, *shape) for index, shape in enumerate(SHAPES))


@functools.cache
def model(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, attn_implementation=attention, initializer_range=0.3)
    return LlamaForCausalLM(config)


def run(
    batch: tuple[TrainingGroup, ...], *, max_tokens: int, layout: Layout, attention: str = "sdpa",
    aggregation: Aggregation = "token", pad_token_id: int = PAD,
) -> tuple[dict[tuple[str, int], Tensor], Tensor, Tensor]:
    """Log-probabilities by (question, rollout), loss and flat gradient of one optimiser update."""
    policy = model(NAME if layout == "shared" else attention)
    policy.zero_grad()
    denominators = denominators_of(batch, MAX_COMPLETION_TOKENS)
    settings = LossSection(name="gspo", clip_low=0.9, clip_high=9.0, entropy_bonus=0.1)
    logprobs: dict[tuple[str, int], Tensor] = {}
    total = torch.zeros(())
    for planned in plan_micro_batches(batch, max_tokens=max_tokens, layout=layout):
        micro = build_micro_batch(
            batch, planned.sequences, denominators, layout=layout, pad_token_id=pad_token_id, aggregation=aggregation)
        assert micro.rows.token_ids_BL.numel() == planned.num_tokens
        scored = token_logprobs(
            hidden_states(policy, micro.rows), policy.lm_head, micro.rows.targets_N, chunk_tokens=5, entropy_grad=True)
        tokens = LossTokens(
            logprobs_T=scored.logprobs_N, old_logprobs_T=micro.sampler_logprobs_T,
            sampler_logprobs_T=micro.sampler_logprobs_T, advantages_T=micro.advantages_T,
            entropies_T=scored.entropies_N, weights_T=micro.weights_T, sequence_ids_T=micro.sequence_ids_T,
            num_sequences=micro.num_sequences, num_loss_tokens=micro.num_loss_tokens)
        result = policy_loss(tokens, settings)
        result.loss.backward()
        total += result.loss.detach()
        for sequence, values in zip(
            micro.sequences, scored.logprobs_N.detach().split(list(micro.sequence_lengths)), strict=True
        ):
            logprobs[batch[sequence.group].group.question.id, sequence.rollout] = values
    gradient = torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])
    return logprobs, total, gradient


def test_log_probabilities_are_those_of_each_row_alone() -> None:
    for layout in ("padded", "shared"):
        logprobs, _, _ = run(groups(), max_tokens=1000, layout=layout)
        assert len(logprobs) == 11
        for training_group in groups():
            group = training_group.group
            for index, rollout in enumerate(group.rollouts):
                row = torch.tensor([[*group.prompt.token_ids, *rollout.token_ids]])
                with torch.no_grad():
                    full_LV = model()(input_ids=row).logits[0].log_softmax(-1)
                start = len(group.prompt.token_ids)
                expected = torch.stack([full_LV[start + t - 1, token] for t, token in enumerate(rollout.token_ids)])
                torch.testing.assert_close(logprobs[group.question.id, index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize(
    ("max_tokens", "layout", "attention"),
    [
        (1, "padded", "sdpa"), (20, "padded", "sdpa"), (40, "padded", "eager"), (1, "shared", NAME),
        (20, "shared", NAME), (1000, "shared", NAME),
    ],
)
def test_loss_and_gradient_do_not_depend_on_layout_or_budget(
    aggregation: Aggregation, max_tokens: int, layout: Layout, attention: str
) -> None:
    _, loss, gradient = run(groups(), max_tokens=1000, layout="padded", aggregation=aggregation)
    _, other_loss, other_gradient = run(
        groups(), max_tokens=max_tokens, layout=layout, attention=attention, aggregation=aggregation)
    assert gradient.norm() > 0.01
    torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-6)
    assert float((other_gradient - gradient).norm() / gradient.norm()) < 1e-5


def with_a_repeat() -> tuple[TrainingGroup, tuple[TrainingGroup, ...]]:
    """A group whose third completion has the first one's tokens (other advantage, other sampler log-probabilities), and
    the same completions as two groups, between which nothing is shared."""
    whole = make_group(0, 3, (4, 6, 4), (1.0, -0.5, -0.25))
    first, second, third = whole.group.rollouts
    third = replace(third, token_ids=first.token_ids)

    def group(rollouts: tuple[Rollout, ...], advantages: tuple[float, ...]) -> TrainingGroup:
        size = len(rollouts)
        scored = ScoredGroup(
            Group(whole.group.prompt, rollouts), (0.0,) * size, {}, (None,) * size, tuple(range(size)), 0.0, {})
        return TrainingGroup(scored, advantages)

    return group((first, second, third), whole.advantages), (
        group((first, second), (1.0, -0.5)), group((third,), (-0.25,)))


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("max_tokens", [1, 1000])
def test_completions_with_the_same_tokens_share_a_row_and_each_counts(layout: Layout, max_tokens: int) -> None:
    together, apart = with_a_repeat()
    _, loss, gradient = run((together,), max_tokens=max_tokens, layout=layout)
    _, expected_loss, expected_gradient = run(apart, max_tokens=1000, layout="padded")
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 1e-5

    plan = plan_micro_batches((together,), max_tokens=max_tokens, layout=layout)
    assert sorted(s.rollout for planned in plan for s in planned.sequences) == [0, 1, 2]
    micro = build_micro_batch(
        (together,), [s for planned in plan for s in planned.sequences], Denominators(14, 3, MAX_COMPLETION_TOKENS),
        pad_token_id=PAD, aggregation="token", layout=layout)
    assert micro.rows.token_ids_BL.shape == ((2, 8) if layout == "padded" else (1, 3 + 3 + 5))
    assert micro.num_sequences == 3 and micro.rows.predicting_N.shape == (14,)


def test_group_order_and_pad_token_do_not_change_the_gradient() -> None:
    _, loss, gradient = run(groups(), max_tokens=40, layout="padded")
    for batch, pad_token_id in ((groups()[::-1], PAD), (groups(), 5)):
        _, other_loss, other_gradient = run(batch, max_tokens=40, layout="padded", pad_token_id=pad_token_id)
        torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-6)
        assert float((other_gradient - gradient).norm() / gradient.norm()) < 1e-5


def test_groups_without_advantage_need_no_forward_when_counted_in_the_denominator() -> None:
    kept = [trains(group, needs_all=False) for group in groups()]
    assert kept == [True, True, False, True]
    assert all(trains(group, needs_all=True) for group in groups())


@pytest.mark.parametrize("max_tokens", [1, 15, 30, 10_000])
@pytest.mark.parametrize("layout", ["padded", "shared"])
def test_plan_holds_every_sequence_once_within_the_budget(layout: Layout, max_tokens: int) -> None:
    plan = plan_micro_batches(groups(), max_tokens=max_tokens, layout=layout)
    found = sorted((sequence.group, sequence.rollout) for planned in plan for sequence in planned.sequences)
    assert found == [(g, r) for g, (_, lengths, _) in enumerate(SHAPES) for r in range(len(lengths))]
    for planned in plan:
        assert planned.num_tokens <= max_tokens or len(planned.sequences) == 1
    assert plan == plan_micro_batches(groups(), max_tokens=max_tokens, layout=layout)


def test_sorting_by_length_wastes_little_padding() -> None:
    generator = random.Random(1)
    batch = [make_group(i, 10, tuple(generator.randrange(1, 100) for _ in range(8)), (0.0,) * 8) for i in range(8)]
    real = sum(10 + len(r.token_ids) - 1 for item in batch for r in item.group.rollouts)
    plan = plan_micro_batches(batch, max_tokens=600, layout="padded")
    assert real < sum(planned.num_tokens for planned in plan) < 1.15 * real


def test_shared_prompts_are_computed_once_where_there_is_room() -> None:
    generator = random.Random(1)
    batch = [make_group(i, 10, tuple(generator.randrange(1, 60) for _ in range(8)), (0.0,) * 8) for i in range(8)]
    different = sum(10 + sum(len(r.token_ids) - 1 for r in item.group.rollouts) for item in batch)
    plan = plan_micro_batches(batch, max_tokens=600, layout="shared")
    assert sum(planned.num_tokens for planned in plan) == different
    assert len(plan) <= math.ceil(different / 600) + 1
    for planned in plan_micro_batches(batch, max_tokens=150, layout="shared"):
        prompts = {sequence.group for sequence in planned.sequences}
        own = sum(len(batch[s.group].group.rollouts[s.rollout].token_ids) - 1 for s in planned.sequences)
        assert planned.num_tokens == 10 * len(prompts) + own <= 150


def test_a_sequence_longer_than_the_budget_has_its_own_micro_batch() -> None:
    [first, *rest] = plan_micro_batches(groups(), max_tokens=13, layout="padded")
    assert first == PlannedBatch((SequenceIndex(group=1, rollout=1),), num_tokens=15)
    assert all(planned.num_tokens <= 13 or len(planned.sequences) == 1 for planned in rest)


def test_hand_built_padded_micro_batch() -> None:
    group = make_group(0, 2, (3, 1), (0.5, -0.5)).group
    batch = [TrainingGroup(make_group(0, 2, (3, 1), (0.5, -0.5)).scored, (0.5, -0.5))]
    [planned] = plan_micro_batches(batch, max_tokens=100, layout="padded")
    micro = build_micro_batch(batch, planned.sequences, Denominators(8, 4, 5), pad_token_id=PAD, aggregation="sequence",
                              layout="padded")
    (a, b), (c, d, e), (f,) = group.prompt.token_ids, group.rollouts[0].token_ids, group.rollouts[1].token_ids
    assert micro.rows.token_ids_BL.tolist() == [[a, b, c, d], [a, b, PAD, PAD]]
    assert micro.rows.position_ids_1L is None and micro.rows.shared_prompts is None
    assert micro.rows.targets_N.tolist() == [c, d, e, f]
    assert micro.rows.predicting_N.tolist() == [1, 2, 3, 5]
    assert micro.sequence_ids_T.tolist() == [0, 0, 0, 1]
    assert micro.advantages_T.tolist() == [0.5, 0.5, 0.5, -0.5]
    assert micro.weights_T.tolist() == pytest.approx([1 / 12] * 3 + [0.25])
    assert micro.sampler_logprobs_T.tolist() == pytest.approx(
        [*group.rollouts[0].logprobs, *group.rollouts[1].logprobs])
    assert micro.num_sequences == 2
    moved = micro.to("meta")
    assert moved.rows.token_ids_BL.is_meta and moved.weights_T.is_meta and not micro.rows.token_ids_BL.is_meta


def test_hand_built_micro_batch_of_shared_prompts() -> None:
    batch = [make_group(0, 2, (3, 1, 2), (0.5, -0.5, 0.0)), make_group(1, 1, (2,), (1.0,))]
    [planned] = plan_micro_batches(batch, max_tokens=100, layout="shared")
    micro = build_micro_batch(
        batch, sorted(planned.sequences), Denominators(8, 4, 5), pad_token_id=PAD, aggregation="token", layout="shared")
    (p, q), (a, b, c) = batch[0].group.prompt.token_ids, batch[0].group.rollouts[0].token_ids
    (d,), (e, f) = (rollout.token_ids for rollout in batch[0].group.rollouts[1:])
    (r,), (g, h) = batch[1].group.prompt.token_ids, batch[1].group.rollouts[0].token_ids
    rows = micro.rows
    assert rows.token_ids_BL.tolist() == [[p, q, r, a, b, e, g]]
    assert rows.position_ids_1L is not None and rows.position_ids_1L.tolist() == [[0, 1, 0, 2, 3, 2, 1]]
    assert rows.targets_N.tolist() == [a, b, c, d, e, f, g, h]
    assert rows.predicting_N.tolist() == [1, 3, 4, 1, 1, 5, 2, 6]
    assert rows.shared_prompts is not None and rows.shared_prompts.segments == (
        Segment(0, 2), Segment(2, 3), Segment(3, 5, 0, 2), Segment(5, 6, 0, 2), Segment(6, 7, 2, 3))
    moved = micro.to("meta")
    assert moved.rows.position_ids_1L is not None and moved.rows.position_ids_1L.is_meta


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_ranks_get_equally_many_micro_batches_and_share_all_of_them(num_ranks: int) -> None:
    plan = plan_micro_batches(groups(), max_tokens=15, layout="padded")
    shares = split_for_ranks(plan, num_ranks)
    assert len(shares) == num_ranks
    assert {len(share) for share in shares} == {math.ceil(len(plan) / num_ranks)}
    assert sorted(planned for share in shares for planned in share if planned is not None) == sorted(plan)
    assert all(None not in share[: share.index(None)] and set(map(type, share[share.index(None):])) == {type(None)}
               for share in shares if None in share)


def test_ranks_are_balanced_by_tokens() -> None:
    plan = [PlannedBatch((SequenceIndex(0, index),), size) for index, size in enumerate((100, 60, 50, 40, 30, 20))]
    loads = [sum(planned.num_tokens for planned in share if planned) for share in split_for_ranks(plan, 2)]
    # Dealt out in turn they would have 180 and 120; 140 + 160 is what the longest-first rule reaches with three each.
    assert loads == [160, 140]


@pytest.mark.parametrize("layout", ["padded", "shared"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_no_rank_is_idle_where_the_whole_batch_fits_one_micro_batch(layout: Layout, num_ranks: int) -> None:
    batch = [make_group(i, 15, (20,) * 8, (0.0,) * 8) for i in range(8)]
    plan = plan_for_ranks(batch, max_tokens=10_000, layout=layout, num_ranks=num_ranks)
    assert sum(len(planned.sequences) for planned in plan) == 64
    loads = [sum(planned.num_tokens for planned in share if planned) for share in split_for_ranks(plan, num_ranks)]
    assert max(loads) < 1.35 * sum(loads) / num_ranks


def test_minibatches_keep_the_order_and_are_never_empty() -> None:
    assert split_minibatches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert split_minibatches([1, 2], 5) == [[1], [2]]
    assert split_minibatches([], 3) == []


def test_inputs_stay_unchanged() -> None:
    plan = plan_micro_batches(groups(), max_tokens=15, layout="padded")
    before = list(plan)
    for share in split_for_ranks(plan, 2):
        share.clear()
    assert plan == before


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"optim\.micro_batch_tokens is 0"):
        plan_micro_batches(groups(), max_tokens=0, layout="padded")
    with pytest.raises(ValueError, match="question 'q9' has no tokens"):
        plan_micro_batches([make_group(9, 0, (2, 2), (1.0, -1.0))], max_tokens=10, layout="shared")
    with pytest.raises(ValueError, match=r"optim\.minibatches is 0"):
        split_minibatches([1], 0)
    with pytest.raises(ValueError, match="num_ranks is 0"):
        split_for_ranks([], 0)
