"""Attention over a cache in which rows share their prompt's part, against a loop over the rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rl.policy.shared_cache import SharedCache

torch.set_num_threads(1)
PROMPTS, WIDTH, LENGTHS = 3, 7, (7, 4, 1)


def row_by_row(
    query: Tensor, prompt: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], prompt_of_B: list[int], scale: float
) -> Tensor:
    """Each row and head alone, over what it sees and nothing else."""
    found = torch.zeros(len(query), 1, *query.shape[1::2])
    repeats = query.shape[1] // own[0].shape[1]
    for row, number in enumerate(prompt_of_B):
        for head in range(query.shape[1]):
            key, value = (
                torch.cat([x[number, head // repeats, WIDTH - LENGTHS[number] :], y[row, head // repeats]]).float()
                for x, y in zip(prompt, own, strict=True))
            found[row, 0, head] = (key @ query[row, head, 0].float() * scale).softmax(0) @ value
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_a_row_sees_its_own_prompt_without_padding_and_its_own_tokens(
    heads: int, groups: int, dtype: torch.dtype
) -> None:
    """As rows leave, and with them a prompt."""
    torch.manual_seed(0)
    is_real = torch.arange(WIDTH) >= WIDTH - torch.tensor(LENGTHS)[:, None]
    layers = [(torch.randn(PROMPTS, groups, WIDTH, 8).to(dtype), torch.randn(PROMPTS, groups, WIDTH, 8).to(dtype))
              for _ in range(2)]
    rows = torch.tensor([0, 0, 0, 1, 2, 2])
    cache = SharedCache(layers, is_real, rows)
    kept = rows.tolist()
    for tokens, going in ((1, None), (3, [0, 1, 2, 4, 5]), (4, [0, 4]), (5, [1])):
        if going is not None:
            cache.keep(torch.tensor(going))
            kept = [kept[row] for row in going]
        for number, prompt in enumerate(layers):
            query = torch.randn(len(kept), heads, 1, 8).to(dtype)
            key, value = (torch.randn(len(kept), groups, tokens, 8).to(dtype) for _ in range(2))
            found = cache.attend(number, query, key, value, scale=0.3)
            assert found.dtype == dtype
            expected = row_by_row(query, prompt, (key, value), kept, 0.3).to(dtype)
            torch.testing.assert_close(found, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)
    assert kept == [2] and [len(key) for key, _ in cache._prompts] == [1, 1]
    assert [len(key) for key, _ in layers] == [PROMPTS, PROMPTS]  # its inputs are as they were


def test_without_a_scale_it_is_that_of_scaled_dot_product_attention() -> None:
    torch.manual_seed(0)
    key, value, own_key, own_value = (torch.randn(1, 2, length, 16) for length in (5, 5, 3, 3))
    query = torch.randn(1, 2, 1, 16)
    cache = SharedCache([(key, value)], torch.ones(1, 5), torch.tensor([0]))
    torch.testing.assert_close(
        cache.attend(0, query, own_key, own_value, scale=None),
        torch.nn.functional.scaled_dot_product_attention(
            query, torch.cat([key, own_key], 2), torch.cat([value, own_value], 2)).transpose(1, 2))
