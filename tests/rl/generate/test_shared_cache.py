"""The embedded sampler with completions that share their prompt's cache, beside the same with copies of it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.generate.decoding import DecodingRows, reads_shared_cache
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.layout import share_prompts
from rl.policy.policy import Policy
from rl.policy.shared_cache import SharedCache
from rl.records import Group, Prompt, Question
from tests.reference.tiny_run import inputs, prompts, tiny_config, tiny_policy
from tests.rl.policy.test_shared_prompts import random_model

torch.set_num_threads(1)
SAMPLING = SamplingParameters(1.0, 1.0, 0, 24)
ENDS = (1, 7, 9, 12)  # of 31 tokens: rows leave one after the other


def requests(sizes: tuple[int, ...] = (5, 1, 8, 3), lengths: tuple[int, ...] = (3, 9, 20, 9)) -> list[Request]:
    numbers = random.Random(0)
    return [Request(Prompt(Question(str(i), "", None, {}), "", tuple(numbers.randrange(3, 31) for _ in range(length))),
                    tuple(range(100 * i, 100 * i + size)))
            for i, (size, length) in enumerate(zip(sizes, lengths, strict=True))]


def sampler(model: PreTrainedModel, *, ends: tuple[int, ...] = ENDS) -> TransformersGenerator:
    policy = Policy(model, inputs().tokenizer, ends, model.dtype)
    return TransformersGenerator(policy, merge=False, max_sequences=64)


def both_ways(generator: TransformersGenerator, asked: list[Request]) -> tuple[list[Group], list[Group]]:
    """With copies, and shared."""
    assert generator.shares_cache
    shared = generator.generate(asked, SAMPLING)
    generator.shares_cache = False
    copied = generator.generate(asked, SAMPLING)
    return copied, shared


def assert_same(copied: list[Group], shared: list[Group]) -> None:
    for one, other in zip(copied, shared, strict=True):
        assert [r.token_ids for r in one.rollouts] == [r.token_ids for r in other.rollouts]
        for first, second in zip(one.rollouts, other.rollouts, strict=True):
            assert second.logprobs == pytest.approx(first.logprobs, abs=1e-4)


@pytest.mark.parametrize("name", [
    "LlamaConfig", "Qwen2Config", "Qwen3Config", "MistralConfig", "GemmaConfig", "PhiConfig", "Phi3Config",
    "Olmo2Config", "GraniteConfig", "CohereConfig", "SmolLM3Config"])
def test_a_shared_cache_samples_what_copies_sample(name: str) -> None:
    settings = {"sliding_window": None} if name == "MistralConfig" else {}
    model = random_model(name, **settings)
    assert share_prompts(model) is None
    copied, shared = both_ways(sampler(model), requests())
    assert_same(copied, shared)
    lengths = [len(rollout.token_ids) for group in shared for rollout in group.rollouts]
    assert len(lengths) == 17 and len(set(lengths)) > 5


@pytest.mark.parametrize(("sizes", "lengths"), [
    ((8,), (5,)), ((2, 2), (6, 6)), ((1, 1, 2), (4, 9, 5)), ((16, 1), (1, 20))])
def test_groups_and_prompts_may_have_any_size(sizes: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    model = random_model("LlamaConfig")
    assert share_prompts(model) is None
    assert_same(*both_ways(sampler(model), requests(sizes, lengths)))


def test_in_bfloat16_it_is_no_further_from_a_full_forward_than_with_copies() -> None:
    """Mean |difference of log-probabilities| over the tokens of all completions."""
    policy = tiny_policy(tiny_config("model.dtype=bfloat16"), adapter_scale=0.02)
    generator = TransformersGenerator(policy, merge=False, max_sequences=64)
    asked = [Request(prompt, tuple(range(8))) for prompt in prompts(8)]

    def distance(groups: list[Group]) -> float:
        pairs = [(group.prompt.token_ids, r.token_ids) for group in groups for r in group.rollouts]
        expected = [value for values in generator.logprobs(pairs) for value in values]
        found = [value for group in groups for r in group.rollouts for value in r.logprobs]
        return float((torch.tensor(found) - torch.tensor(expected)).abs().mean())

    copied, shared = map(distance, both_ways(generator, asked))
    assert 0 < shared < 1.1 * copied < 0.05


@pytest.mark.parametrize(("name", "settings"), [
    ("Gemma2Config", {}), ("MistralConfig", {"sliding_window": 6}), ("Gemma3TextConfig", {"sliding_window": 6}),
    ("DogeConfig", {})])
def test_what_cannot_share_decodes_with_copies(name: str, settings: dict[str, object]) -> None:
    model = random_model(name, **settings)
    share_prompts(model)
    generator = sampler(model)
    assert not generator.shares_cache
    groups = generator.generate(requests((2, 3), (5, 9)), SAMPLING)
    for group in groups:
        for rollout in group.rollouts:
            [expected] = generator.logprobs([(group.prompt.token_ids, rollout.token_ids)])
            assert rollout.logprobs == pytest.approx(expected, abs=1e-4)


def test_another_attention_does_not_share() -> None:
    assert not reads_shared_cache(random_model("LlamaConfig"))


@pytest.mark.parametrize("fault", ["scale", "error"])
def test_a_model_that_would_read_it_wrongly_is_found_out(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("LlamaConfig")
    assert share_prompts(model) is None and reads_shared_cache(model)
    attend = SharedCache.attend

    def wrong(
        self: SharedCache, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None
    ) -> Tensor:
        if fault == "error":
            raise KeyError("an architecture of its own")
        return attend(self, layer, query, key, value, scale=1.5 * (scale or 1.0))

    monkeypatch.setattr(SharedCache, "attend", wrong)
    assert not reads_shared_cache(model)


@torch.inference_mode()
def test_a_prompt_is_held_once_and_leaves_with_its_last_row() -> None:
    model = random_model("LlamaConfig")
    assert share_prompts(model) is None
    asked = requests((5, 1, 8, 3), (9, 9, 9, 9))
    rows = DecodingRows(model, asked, share=True)
    for _ in range(3):
        rows.append(torch.arange(3, 20)[: len(rows.logits)])
    assert rows._shared is not None
    assert {key.shape for key, _ in rows._shared._prompts} == {(4, 1, 9, 16)}
    assert {layer.keys.shape for layer in rows._cache.layers} == {(17, 1, 3, 16)}
    rows.keep(torch.tensor([0, 4, 15, 16]))
    assert {key.shape for key, _ in rows._shared._prompts} == {(2, 1, 9, 16)}
    assert {layer.keys.shape for layer in rows._cache.layers} == {(4, 1, 3, 16)}


def test_the_first_completion_is_what_it_is_alone() -> None:
    """A question of one completion is never shared."""
    model = random_model("LlamaConfig")
    assert share_prompts(model) is None
    generator, asked = sampler(model), requests((4, 4), (5, 12))
    together = generator.generate(asked, SAMPLING)
    alone = generator.generate([replace(request, seeds=request.seeds[:1]) for request in asked], SAMPLING)
    for one, other in zip(together, alone, strict=True):
        assert one.rollouts[0].token_ids == other.rollouts[0].token_ids
