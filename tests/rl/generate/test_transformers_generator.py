"""The transformers sampler on the tiny model: what it draws, what it reports, and that new weights reach it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from transformers import DynamicCache

from rl.config import GeneratorSection
from rl.generate.build import build_generator
from rl.generate.growing_cache import growing_cache
from rl.generate.protocol import Request, SamplingParameters, request_seed
from rl.generate.token_sampling import sample_tokens, uniform_streams
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.records import Group, Rollout
from tests.reference.tiny_run import (
    change_adapter,
    inputs,
    literal_logprobs,
    make_updater,
    prompts,
    sampled_groups,
    tiny_config,
    tiny_policy,
    with_advantages,
)

torch.set_num_threads(1)
MAX_TOKENS = 40
PLAIN = SamplingParameters(1.0, 1.0, 0, MAX_TOKENS)
Sync = Literal["shared", "merge"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(adapter_scale=0.02)


def embedded(policy: Policy, sync: Sync = "shared", max_sequences: int = 64) -> TransformersGenerator:
    generator = build_generator(GeneratorSection(sync=sync, max_sequences=max_sequences), policy)
    assert isinstance(generator, TransformersGenerator)
    return generator


def requests(count: int = 6, size: int = 4) -> list[Request]:
    return [
        Request(p, tuple(request_seed(0, "test", 0, p.question.id, i) for i in range(size))) for p in prompts(count)]


def rollouts(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def tokens(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts(groups)]


def worst_difference(policy: Policy, groups: Sequence[Group], temperature: float = 1.0) -> float:
    """Largest |reported - literal log-probability| over all tokens."""
    return max(
        (torch.tensor(r.logprobs) - literal_logprobs(policy, g.prompt.token_ids, r.token_ids, temperature))
        .abs()
        .max()
        .item()
        for g in groups
        for r in g.rollouts)


@pytest.mark.parametrize("sync", ["shared", "merge"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_logprobs_equal_a_full_forward_at_the_sampling_temperature(
    policy: Policy, sync: Sync, temperature: float
) -> None:
    groups = embedded(policy, sync).generate(requests(), dataclasses.replace(PLAIN, temperature=temperature))
    assert any(r.finish_reason == "stop" for r in rollouts(groups))
    assert len({len(g.prompt.token_ids) for g in groups}) > 1
    assert worst_difference(policy, groups, temperature) < 1e-4


def test_a_completion_ends_with_the_stop_token_exactly_once(policy: Policy) -> None:
    groups = embedded(policy).generate(requests(8, 8), dataclasses.replace(PLAIN, max_completion_tokens=20))
    seen = set()
    for rollout in rollouts(groups):
        seen.add(rollout.finish_reason)
        stops = [i for i, token in enumerate(rollout.token_ids) if token in policy.eos_token_ids]
        if rollout.finish_reason == "stop":
            assert stops == [len(rollout.token_ids) - 1]
        else:
            assert stops == [] and len(rollout.token_ids) == 20
    assert seen == {"stop", "length"}


def test_a_stop_token_in_the_last_place_is_a_stop(policy: Policy) -> None:
    request = requests(1, 1)
    [length] = [len(r.token_ids) for r in rollouts(embedded(policy).generate(request, PLAIN))]
    assert length < MAX_TOKENS
    [exact] = rollouts(embedded(policy).generate(request, dataclasses.replace(PLAIN, max_completion_tokens=length)))
    [cut] = rollouts(embedded(policy).generate(request, dataclasses.replace(PLAIN, max_completion_tokens=length - 1)))
    assert (exact.finish_reason, len(exact.token_ids)) == ("stop", length)
    assert (cut.finish_reason, cut.token_ids) == ("length", exact.token_ids[:-1])


def test_stop_token_ids_end_a_completion_too(policy: Policy) -> None:
    [whole] = rollouts(embedded(policy).generate(requests(1, 1), PLAIN))
    stop = whole.token_ids[3]
    [cut] = rollouts(embedded(policy).generate(requests(1, 1), dataclasses.replace(PLAIN, stop_token_ids=(stop,))))
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1] and cut.finish_reason == "stop"


def test_a_stop_string_ends_a_completion_and_rewards_see_the_text_before_it(policy: Policy) -> None:
    """Against the same seeds without it: the tokens are the same up to the one that completes the string, which is kept
    and trained."""
    without = rollouts(embedded(policy).generate(requests(), PLAIN))
    found = rollouts(
        embedded(policy).generate(requests(), dataclasses.replace(PLAIN, stop_strings=("ed{", "never there"))))
    assert any("ed{" in rollout.text for rollout in without)
    for plain, stopped in zip(without, found, strict=True):
        assert "ed{" not in stopped.text
        if "ed{" in plain.text:
            assert stopped.text == plain.text[: plain.text.index("ed{")] and stopped.finish_reason == "stop"
            assert policy.tokenizer.decode(stopped.token_ids).endswith("ed{")
            assert stopped.token_ids == plain.token_ids[: len(stopped.token_ids)]
        else:
            assert stopped == plain


def test_text_is_the_assistant_prefix_and_the_completion_without_special_tokens(policy: Policy) -> None:
    request = Request(dataclasses.replace(prompts(1)[0], assistant_prefix="<think>"), (5,))
    [rollout] = rollouts(embedded(policy).generate([request], PLAIN))
    decoded = inputs().tokenizer.decode(rollout.token_ids[:-1])
    assert rollout.finish_reason == "stop" and rollout.text == "<think>" + decoded


def test_the_same_seeds_give_the_same_tokens_and_others_do_not(policy: Policy) -> None:
    first, again = (embedded(policy).generate(requests(), PLAIN) for _ in range(2))
    assert first == again
    other = [dataclasses.replace(r, seeds=tuple(seed + 1 for seed in r.seeds)) for r in requests()]
    assert tokens(embedded(policy).generate(other, PLAIN)) != tokens(first)
    assert all(len({r.token_ids for r in group.rollouts}) > 1 for group in first)


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["shared", "merge"])
@pytest.mark.parametrize("max_sequences", [1, 3, 4, 7, 64])
def test_tokens_do_not_depend_on_how_many_decode_together(policy: Policy, sync: Sync, max_sequences: int) -> None:
    whole = embedded(policy, sync, 1000).generate(requests(), PLAIN)
    assert tokens(embedded(policy, sync, max_sequences).generate(requests(), PLAIN)) == tokens(whole)


def test_prompts_of_different_lengths_together_give_what_each_gives_alone(policy: Policy) -> None:
    together = embedded(policy).generate(requests(), PLAIN)
    alone = [embedded(policy).generate([request], PLAIN)[0] for request in requests()]
    assert len({len(r.prompt.token_ids) for r in requests()}) > 1
    assert tokens(together) == tokens(alone)


def test_groups_come_back_in_the_order_of_the_requests(policy: Policy) -> None:
    order = [4, 1, 5, 0, 3, 2]
    straight = embedded(policy).generate(requests(), PLAIN)
    shuffled = embedded(policy).generate([requests()[i] for i in order], PLAIN)
    assert [g.question.id for g in shuffled] == [requests()[i].prompt.question.id for i in order]
    assert tokens(shuffled) == tokens([straight[i] for i in order])
    assert [r.seed for r in straight[2].rollouts] == list(requests()[2].seeds)


def test_requests_may_want_different_numbers_of_completions(policy: Policy) -> None:
    wanted = [Request(p, tuple(range(n))) for p, n in zip(prompts(4), (1, 5, 2, 3), strict=True)]
    assert [len(g.rollouts) for g in embedded(policy, max_sequences=4).generate(wanted, PLAIN)] == [1, 5, 2, 3]


@pytest.mark.slow
def test_never_more_than_max_sequences_decode_together(policy: Policy) -> None:
    generator = embedded(policy, max_sequences=3)
    rows: list[int] = []
    hook = policy.causal_lm.get_input_embeddings().register_forward_hook(
        lambda _m, args, _out: rows.append(len(args[0])))
    groups = generator.generate(requests(4, 8), PLAIN)
    hook.remove()
    assert max(rows) <= 3 and [len(g.rollouts) for g in groups] == [8] * 4


def test_no_requests_give_no_groups(policy: Policy) -> None:
    assert embedded(policy).generate([], PLAIN) == []


def test_generating_leaves_the_module_in_training_mode_and_without_gradients(policy: Policy) -> None:
    policy.model.train()
    embedded(policy).generate(requests(1, 2), PLAIN)
    assert policy.model.training
    assert all(p.grad is None and not p.is_inference() for p in policy.model.parameters())


@pytest.mark.parametrize("sync", ["shared", "merge"])
def test_sampling_is_the_same_with_gradient_checkpointing(policy: Policy, sync: Sync) -> None:
    checkpointed = tiny_policy(tiny_config("model.gradient_checkpointing=full"), adapter_scale=0.02)
    assert embedded(checkpointed, sync).generate(requests(3), PLAIN) == embedded(policy, sync).generate(
        requests(3), PLAIN)


def test_near_temperature_zero_equals_transformers_greedy_decoding(policy: Policy) -> None:
    groups = embedded(policy).generate(requests(4, 1), dataclasses.replace(PLAIN, temperature=1e-6))
    policy.model.eval()
    for group in groups:
        ids = torch.tensor([group.prompt.token_ids])
        output = policy.causal_lm.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_TOKENS,
            pad_token_id=0)
        assert group.rollouts[0].token_ids == tuple(output[0, ids.shape[1]:].tolist())
    policy.model.train()


def test_first_tokens_have_the_models_frequencies(policy: Policy) -> None:
    [prompt] = prompts(1)
    count, temperature = 4000, 2.0
    [group] = embedded(policy, max_sequences=count).generate(
        [Request(prompt, tuple(range(count)))], SamplingParameters(temperature, 1.0, 0, 1))
    with torch.no_grad():
        logits_V = policy.causal_lm(input_ids=torch.tensor([prompt.token_ids])).logits[0, -1]
    expected_V = torch.softmax(logits_V.double() / temperature, dim=-1)
    found_V = torch.bincount(torch.tensor([r.token_ids[0] for r in group.rollouts]), minlength=len(expected_V)) / count
    # Five standard deviations of a binomial share, at least 5 / count.
    bound_V = 5 * (expected_V * (1 - expected_V) / count).sqrt() + 5 / count
    assert (expected_V > 0.01).sum() >= 3
    assert ((found_V - expected_V).abs() <= bound_V).all()


@pytest.mark.parametrize(("top_p", "top_k"), [(0.6, 0), (1.0, 3), (0.5, 4), (1e-9, 0), (1.0, 1)])
def test_top_p_and_top_k_draw_only_from_the_allowed_set(policy: Policy, top_p: float, top_k: int) -> None:
    temperature = 2.0
    groups = embedded(policy).generate(requests(2, 4), SamplingParameters(temperature, top_p, top_k, 12))
    assert worst_difference(policy, groups, temperature) < 1e-4  # of the whole softmax, not of the restricted one
    for group in groups:
        for rollout in group.rollouts:
            for position, token in enumerate(rollout.token_ids):
                prefix = [*group.prompt.token_ids, *rollout.token_ids[:position]]
                with torch.no_grad():
                    logits_V = policy.causal_lm(input_ids=torch.tensor([prefix])).logits[0, -1] / temperature
                probabilities = torch.softmax(logits_V, dim=-1).sort(descending=True)
                allowed, share = set(), 0.0
                total = sum(probabilities.values[: top_k or None].tolist())
                for value, index in list(
                    zip(probabilities.values.tolist(), probabilities.indices.tolist(), strict=True)
                )[: top_k or None]:
                    if share >= top_p * total:
                        break
                    allowed.add(index)
                    share += value
                assert token in allowed


def parameters(**changes: float) -> SamplingParameters:
    return dataclasses.replace(PLAIN, **changes)  # type: ignore[arg-type]


def test_uniform_zero_draws_the_first_token_that_has_any_probability() -> None:
    logits_BV = torch.tensor([[-float("inf"), 0.0, 0.0, -float("inf")]])
    drawn, logprobs = sample_tokens(logits_BV, torch.tensor([0.0]), PLAIN)
    assert drawn.tolist() == [1] and logprobs.tolist() == pytest.approx([-0.6931472])


@pytest.mark.parametrize("uniform", [1.0 - 2.0**-24, 1.0])
def test_the_largest_uniform_never_draws_a_last_token_without_probability(uniform: float) -> None:
    """1.0 itself is outside the contract, and what rounding on some device could make of the largest one."""
    for width in (3, 50, 1000):
        logits_BV = torch.randn(64, width, generator=torch.Generator().manual_seed(width))
        logits_BV[:, -1] = -float("inf")
        drawn, logprobs = sample_tokens(logits_BV, torch.full((64,), uniform), PLAIN)
        assert (drawn < width - 1).all() and torch.isfinite(logprobs).all()


def test_a_restricted_draw_with_the_largest_uniform_stays_in_the_set() -> None:
    logits_BV = torch.randn(256, 500, generator=torch.Generator().manual_seed(0))
    drawn, _ = sample_tokens(logits_BV, torch.full((256,), 1.0 - 2.0**-24), parameters(top_k=5))
    allowed = logits_BV.topk(5).indices
    assert (drawn[:, None] == allowed).any(dim=1).all()


def test_a_uniform_in_each_interval_of_the_cumulative_distribution_draws_its_token() -> None:
    logits_BV = torch.tensor([0.2, 0.5, 0.3]).log().expand(4, 3)
    drawn, _ = sample_tokens(logits_BV, torch.tensor([0.1, 0.25, 0.69, 0.71]), PLAIN)
    assert drawn.tolist() == [0, 1, 1, 2]


def test_each_row_of_uniforms_depends_on_its_own_seed_alone() -> None:
    both, one = uniform_streams([3, 9], 20), uniform_streams([9], 20)
    assert torch.equal(both[1], one[0]) and not torch.equal(both[0], both[1])
    assert torch.equal(uniform_streams([9], 5)[0], one[0, :5])
    assert (both >= 0).all() and (both < 1).all()


def test_merge_and_shared_sample_the_same_with_the_same_logprobs(policy: Policy) -> None:
    merged, shared = (embedded(policy, sync).generate(requests(), PLAIN) for sync in ("merge", "shared"))
    assert tokens(merged) == tokens(shared)
    for one, other in zip(rollouts(merged), rollouts(shared), strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("sync", ["shared", "merge"])
def test_after_take_over_the_sampler_has_the_trainers_weights_and_not_the_bases(sync: Sync) -> None:
    policy = tiny_policy()
    generator = embedded(policy, sync)
    before = generator.generate(requests(), PLAIN)
    make_updater(tiny_config("optim.lr=0.01"), policy).update(with_advantages(before), step=0, policy_version=0)
    generator.take_over(policy, 1)
    after = generator.generate(requests(), PLAIN)
    assert {r.policy_version for r in rollouts(before)} == {0} and {r.policy_version for r in rollouts(after)} == {1}
    assert worst_difference(policy, after) < 1e-4
    assert worst_difference(tiny_policy(), after) > 1e-2
    generator.close()


def test_without_take_over_the_next_update_reports_a_mismatch_above_the_bound() -> None:
    policy, config = tiny_policy(), tiny_config("optim.lr=0.01")
    generator, updater = embedded(policy, "merge"), make_updater(config, policy)
    fine = updater.update(with_advantages(generator.generate(requests(), PLAIN)), step=0, policy_version=0)
    stale = updater.update(with_advantages(generator.generate(requests(), PLAIN)), step=1, policy_version=0)
    assert fine.metrics["mismatch/mean"] < 1e-5
    assert stale.metrics["mismatch/mean"] > 1e-3


def test_several_take_overs_merge_from_the_base_each_time() -> None:
    policy = tiny_policy()
    generator = embedded(policy, "merge")
    for version, scale in enumerate((0.05, 0.1, 0.02), start=1):
        change_adapter(policy, scale)
        generator.take_over(policy, version)
    once = embedded(policy, "merge")
    assert (
        generator.generate(requests(2), PLAIN)[0].rollouts[0].logprobs
        == once.generate(requests(2), PLAIN)[0].rollouts[0].logprobs)


def test_close_frees_the_merged_copy_and_may_be_called_twice(policy: Policy) -> None:
    generator = embedded(policy, "merge")
    generator.close()
    generator.close()
    assert all(p.device.type == "meta" for p in generator._model.parameters())
    assert all(p.device.type == "cpu" for p in policy.model.parameters())


def test_closing_a_shared_sampler_leaves_the_policy_alone(policy: Policy) -> None:
    embedded(policy, "shared").close()
    assert len(sampled_groups(policy, 1)) == 1


def test_each_group_is_told_of_once_when_it_is_whole(policy: Policy) -> None:
    told: list[tuple[int, Group]] = []
    groups = embedded(policy, max_sequences=6).generate(
        requests(), PLAIN, lambda index, group: told.append((index, group)))
    assert sorted(index for index, _ in told) == list(range(len(groups)))
    assert all(group == groups[index] for index, group in told)


@pytest.mark.parametrize("sync", ["shared", "merge"])
def test_scores_are_the_sampled_log_probabilities(policy: Policy, sync: Sync) -> None:
    generator = embedded(policy, sync)
    [group] = generator.generate(requests(1, 4), PLAIN)
    scores = generator.logprobs([(group.prompt.token_ids, rollout.token_ids) for rollout in group.rollouts])
    for rollout, found in zip(group.rollouts, scores, strict=True):
        assert found == pytest.approx(rollout.logprobs, abs=1e-4)


@pytest.mark.slow
def test_the_growing_cache_gives_the_results_of_transformers_own(policy: Policy) -> None:
    """Prompt, repeated rows, token by token past several reservations, rows removed on the way: the same logits and
    keys."""
    model = policy.causal_lm.eval()
    ids_BL = torch.randint(2, 99, (3, 6), generator=torch.Generator().manual_seed(1))
    caches: list[DynamicCache] = [growing_cache(model.config), DynamicCache(config=model.config)]
    with torch.no_grad():
        for step in range(90):
            one, other = (model(input_ids=ids_BL, past_key_values=cache, use_cache=True).logits for cache in caches)
            assert torch.equal(one, other)
            if step == 0:
                for cache in caches:
                    cache.batch_repeat_interleave(2)
                ids_BL = ids_BL.repeat_interleave(2, 0)
            if step in (10, 50):
                rows = torch.arange(len(ids_BL))[1:]
                for cache in caches:
                    cache.batch_select_indices(rows)
                ids_BL = ids_BL[rows]
            if step == 70:
                order = torch.arange(len(ids_BL)).flip(0)
                for cache in caches:
                    cache.reorder_cache(order)
            ids_BL = torch.randint(2, 99, (len(ids_BL), 1), generator=torch.Generator().manual_seed(step))
    for mine, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)
    policy.model.train()


def test_the_growing_cache_moves_its_contents_seldom(policy: Policy) -> None:
    cache = growing_cache(policy.causal_lm.config)
    layer, moves, last = cache.layers[0], 0, 0
    for _ in range(200):
        keys, _ = layer.update(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
        moves += keys.untyped_storage().data_ptr() != last
        last = keys.untyped_storage().data_ptr()
    assert keys.shape == (1, 1, 200, 4) and moves <= 6


def test_request_seeds_differ_by_each_of_their_parts() -> None:
    base = (0, "train-0", 3, "q", 1)
    others = [
        (1, *base[1:]), (0, "held_out", 3, "q", 1), (0, "train-0", 4, "q", 1), (0, "train-0", 3, "r", 1),
        (*base[:4], 2)]
    seeds = {request_seed(*parts) for parts in (base, *others)}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(*base) == request_seed(*base)
