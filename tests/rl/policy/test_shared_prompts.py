"""Completions that share their prompt in one row: what sees what against a dense mask, and equality with padded rows on
every architecture that takes an attention function."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from rl.policy import shared_prompts
from rl.policy.layout import layout_of, share_prompts
from rl.policy.recomputation import Recomputation, recompute
from rl.policy.rows import Layout, hidden_states, model_rows
from rl.policy.shared_prompts import Segment, SharedPrompts
from rl.records import PromptCompletion
from tests.reference.tiny_run import tiny_config, tiny_policy

torch.set_num_threads(1)
SIZES = {
    "vocab_size": 31, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    "initializer_range": 0.3}


def pairs(prompts: tuple[int, ...], completions: tuple[int, ...], seed: int = 0) -> list[PromptCompletion]:
    """Each prompt (its length) with each completion."""
    numbers = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(numbers.randrange(3, 31) for _ in range(count))

    return [(prompt, ids(length)) for prompt in map(ids, prompts) for length in completions]


def random_model(name: str, **settings: object) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, name)(**SIZES, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).float()
    return model.eval()


def hidden_and_gradient(model: PreTrainedModel, asked: list[PromptCompletion], layout: Layout) -> tuple[Tensor, Tensor]:
    """[N, H], and the flat gradient of a sum of it with random weights."""
    model.zero_grad()
    hidden_NH = hidden_states(model, model_rows(asked, layout, pad_token_id=0))
    (hidden_NH * torch.randn(hidden_NH.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return hidden_NH.detach(), torch.cat(gradients)


def assert_same(model: PreTrainedModel, asked: list[PromptCompletion]) -> None:
    (expected, gradient), (found, other) = (
        hidden_and_gradient(model, asked, layout) for layout in ("padded", "shared"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert float((other - gradient).norm() / gradient.norm()) < 1e-5


def dense(segments: tuple[Segment, ...], window: int | None) -> Tensor:
    """[L, L]: which token sees which, said token by token."""
    sees = torch.zeros(segments[-1].stop, segments[-1].stop, dtype=torch.bool)
    for segment in segments:
        before = list(range(segment.context_start, segment.context_stop))
        for token in range(segment.start, segment.stop):
            seen = [*before, *range(segment.start, token + 1)]
            sees[token, seen if window is None else seen[-window:]] = True
    return sees


@pytest.mark.parametrize("kept_copies", [4, 0])
@pytest.mark.parametrize("call_pairs", [0, 60, 10_000])
@pytest.mark.parametrize("window", [None, 4, 9])
def test_a_completion_sees_its_prompt_and_itself(
    window: int | None, call_pairs: int, kept_copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_prompts, "CALL_PAIRS", call_pairs)  # 0: a call for each; many: one call for all
    monkeypatch.setitem(shared_prompts.KEPT_COPIES, "cpu", kept_copies)
    segments = (Segment(0, 5), Segment(5, 8), Segment(8, 15, 0, 5), Segment(15, 16, 0, 5), Segment(16, 18, 5, 8),
                Segment(18, 29, 0, 5))
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 29, 8, requires_grad=True) for heads in (4, 2, 2))
    weights = torch.randn(1, 29, 4, 8)

    def with_gradients(result: Tensor) -> list[Tensor]:
        return [result, *torch.autograd.grad((result * weights).sum(), (query, key, value))]

    expected = with_gradients(scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=dense(segments, window), scale=0.3
    ).transpose(1, 2))
    layout = SharedPrompts(segments)
    found = with_gradients(layout.attend(query, key, value, scale=0.3, dropout=0.0, window=window))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    ((calls, _),) = layout._calls.values()
    assert len(calls) == {0: 6, 60: len(calls), 10_000: 1}[call_pairs] and layout.windows == [window]


@pytest.mark.parametrize("call_pairs", [0, 100, 400, 2048])
def test_results_stand_in_the_rows_order_whatever_shares_a_call(
    call_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among these are calls whose order is its own inverse."""
    monkeypatch.setattr(shared_prompts, "CALL_PAIRS", call_pairs)
    for seed in range(25):
        numbers = random.Random(seed)
        prompts = tuple(numbers.randrange(1, 30) for _ in range(numbers.randrange(1, 4)))
        lengths = [tuple(numbers.choice((1, 2, 2, 3, 9)) for _ in range(numbers.randrange(1, 4))) for _ in prompts]
        asked = [pair for index, prompt in enumerate(prompts)
                 for pair in pairs((prompt,), lengths[index], 10 * seed + index)]
        layout = model_rows(asked, "shared", pad_token_id=0).shared_prompts
        assert layout is not None
        length = layout.segments[-1].stop
        query, key, value = (torch.randn(1, 2, length, 4) for _ in range(3))
        torch.testing.assert_close(
            layout.attend(query, key, value, scale=None, dropout=0.0, window=None),
            scaled_dot_product_attention(query, key, value, attn_mask=dense(layout.segments, None)).transpose(1, 2))


@pytest.mark.parametrize(("name", "settings"), [
    ("LlamaConfig", {}), ("Qwen2Config", {}), ("Qwen3Config", {}), ("GemmaConfig", {}), ("PhiConfig", {}),
    ("Phi3Config", {}), ("Olmo2Config", {}), ("GraniteConfig", {}), ("CohereConfig", {}), ("SmolLM3Config", {}),
    ("MistralConfig", {}), ("MistralConfig", {"sliding_window": 6}), ("Gemma3TextConfig", {"sliding_window": 6}),
    ("Cohere2Config", {"sliding_window": 6})])
def test_shared_rows_are_read_as_padded_rows_are(name: str, settings: dict[str, object]) -> None:
    model = random_model(name, **settings)
    assert share_prompts(model) is None and layout_of(model) == "shared"
    asked = pairs((5, 9, 20), (1, 4, 7, 15, 2))
    assert_same(model, [*asked, asked[2]])


@pytest.mark.parametrize("size", [1, 2, 16])
def test_a_prompt_may_have_any_number_of_completions(size: int) -> None:
    model = random_model("LlamaConfig")
    assert share_prompts(model) is None
    assert_same(model, pairs((12,), tuple(range(1, size + 1))))


@pytest.mark.parametrize(("name", "reason"), [
    ("Gemma2Config", "softcap"), ("DogeConfig", "a mask of its own"),
    ("StableLmConfig", "0 of its 2 layers attend"), ("GptOssConfig", "attention is eager"),
])
def test_what_would_be_read_differently_stays_in_padded_rows(name: str, reason: str) -> None:
    model = random_model(name)
    before = model.config._attn_implementation
    why = share_prompts(model)
    assert why is not None and reason in why
    assert layout_of(model) == "padded" and model.config._attn_implementation == before


def test_a_model_that_ignores_the_layout_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every completion saw all that stands before it in the row."""
    monkeypatch.setattr(SharedPrompts, "_by_calls", lambda self, query, key, value, scale, dropout, window: (
        scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)))
    why = share_prompts(random_model("LlamaConfig"))
    assert why is not None and "a completion would see another" in why
    monkeypatch.setattr(SharedPrompts, "_by_calls", lambda self, query, key, value, scale, dropout, window: (
        value.repeat_interleave(2, 1).transpose(1, 2)))
    why = share_prompts(random_model("LlamaConfig"))
    assert why is not None and "hidden states would differ" in why


def test_others_read_the_model_as_before() -> None:
    """With a mask, with padding on the left, with a cache: bit for bit, without keys and values repeated for grouped
    queries."""
    plain, shared = random_model("LlamaConfig"), random_model("LlamaConfig")
    assert share_prompts(shared) is None
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for arguments in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        first, second = (model(**arguments, use_cache=True) for model in (plain, shared))
        assert torch.equal(first.logits, second.logits)
        more = [model(input_ids=ids[:, :1], past_key_values=output.past_key_values).logits
                for model, output in ((plain, first), (shared, second))]
        assert torch.equal(*more)


class Counted(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times[func.name()] += 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("extent", "times"), [("selective", 1), ("full", 2)])
def test_recomputed_layers_give_the_same(
    extent: Recomputation, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And attend once or twice: no third time for copies of prompts that would not have been kept."""
    asked = pairs((5, 9), (4, 7, 15))
    model = random_model("LlamaConfig").train()
    assert share_prompts(model) is None
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    with Counted() as plain:
        hidden, gradient = hidden_and_gradient(model, asked, "shared")
    monkeypatch.setitem(shared_prompts.KEPT_COPIES, "cpu", 0)
    recompute(model, extent)
    with Counted() as recomputed:
        again, other = hidden_and_gradient(model, asked, "shared")
    assert torch.equal(again, hidden) and torch.equal(other, gradient)
    assert recomputed.times[attention] == times * plain.times[attention] > 0


def test_bfloat16() -> None:
    asked = pairs((5, 9), (4, 7, 15))
    model = random_model("LlamaConfig").train()
    assert share_prompts(model) is None
    hidden, _ = hidden_and_gradient(model, asked, "shared")
    rounded = random_model("LlamaConfig").to(torch.bfloat16)
    assert share_prompts(rounded) is None
    found, _ = hidden_and_gradient(rounded, asked, "shared")
    assert 1e-4 < float((found.float() - hidden).norm() / hidden.norm()) < 0.05


@pytest.mark.parametrize("window", [None, 4])
def test_one_call_for_all_segments_reads_the_same(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's kernel is given, computed sequence by sequence in its place."""
    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, query_starts: Tensor, key_starts: Tensor, longest_query: int,
        longest_key: int, *, scale: float, window_size: tuple[int, int], enable_gqa: bool = False,
    ) -> Tensor:
        assert query_starts.dtype == key_starts.dtype == torch.int32 and window_size[1] == 0 and enable_gqa
        results, lengths = [], []
        for number in range(len(query_starts) - 1):
            q, k, v = (x[starts[number] : starts[number + 1]].transpose(0, 1)[None] for x, starts in (
                (query, query_starts), (key, key_starts), (value, key_starts)))
            lengths.append((q.shape[2], k.shape[2]))
            sees = torch.ones(*lengths[-1], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
            if window_size[0] >= 0:
                sees = sees.triu(k.shape[2] - q.shape[2] - window_size[0])
            results.append(scaled_dot_product_attention(q, k, v, attn_mask=sees, scale=scale, enable_gqa=True)[0])
        assert (longest_query, longest_key) == tuple(map(max, zip(*lengths, strict=True)))
        return torch.cat(results, dim=1).transpose(0, 1)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    layout = model_rows(pairs((5, 9), (4, 1, 7)), "shared", pad_token_id=0).shared_prompts
    assert layout is not None
    length = layout.segments[-1].stop
    query, key, value = (torch.randn(1, heads, length, 8) for heads in (4, 2, 2))
    torch.testing.assert_close(
        layout._by_flash(query, key, value, 0.3, window), layout._by_calls(query, key, value, 0.3, 0.0, window))


def test_under_autocast_queries_and_keys_are_in_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("Qwen3Config")
    seen: set[torch.dtype] = set()

    def look(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.update((query.dtype, key.dtype, value.dtype))
        return sdpa(query, key, value, *args, **kwargs)

    sdpa = shared_prompts._sdpa
    monkeypatch.setattr(shared_prompts, "_sdpa", look)
    assert share_prompts(model, torch.bfloat16) is None and seen == {torch.bfloat16}
    asked = pairs((5, 9), (4, 7, 15))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (hidden_states(model, model_rows(asked, layout, 0)) for layout in ("shared", "padded"))
    assert 0 < float((found - expected).detach().norm() / expected.detach().norm()) < 0.03


def test_another_attention_is_trained_in_padded_rows() -> None:
    assert layout_of(tiny_policy().causal_lm) == "shared"
    assert layout_of(tiny_policy(tiny_config("model.attention=sdpa")).causal_lm) == "padded"
