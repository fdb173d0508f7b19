"""Chunked log-probabilities against the full logits: values, gradients, memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rl.policy.logprobs import LogitHead, chunk_tokens_for, token_logprobs
from tests.reference.logprobs import reference_token_logprobs

# H at most the smallest chunk, so that the transposed weight [H, V] is not taken for logits.
N, H, V = 11, 3, 17


def problem(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lm_head = nn.Linear(H, V, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in lm_head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    hidden_NH = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    return hidden_NH, lm_head, torch.randint(V, (N,), generator=generator)


@pytest.mark.parametrize("chunk_tokens", [1, 3, N, 1000])
@pytest.mark.parametrize(("bias", "temperature", "logit_scale", "softcap"), [
    (False, 1.0, 1.0, None), (True, 0.7, 1.0, None), (False, 1.3, 0.25, None), (True, 0.9, 2.0, 5.0)])
def test_values_and_gradients_equal_those_of_full_logits(
    chunk_tokens: int, bias: bool, temperature: float, logit_scale: float, softcap: float | None
) -> None:
    hidden_NH, lm_head, token_ids_N = problem(bias=bias)
    result = token_logprobs(hidden_NH, LogitHead(lm_head, logit_scale, softcap), token_ids_N, chunk_tokens=chunk_tokens,
                            temperature=temperature, entropy_grad=True)
    logprobs_N, entropies_N = reference_token_logprobs(
        hidden_NH.double(),
        lm_head.weight.double(),
        None if lm_head.bias is None else lm_head.bias.double(),
        token_ids_N,
        temperature,
        logit_scale,
        softcap)
    torch.testing.assert_close(result.logprobs_N.double(), logprobs_N, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.entropies_N.double(), entropies_N, rtol=1e-5, atol=1e-5)
    factors_N = torch.linspace(-1, 1, N)
    inputs = [hidden_NH, *lm_head.parameters()]
    ours = torch.autograd.grad((factors_N * result.logprobs_N - 0.3 * factors_N * result.entropies_N).sum(), inputs)
    theirs = torch.autograd.grad((factors_N * logprobs_N - 0.3 * factors_N * entropies_N).sum(), inputs)
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 3, N, 1000])
@pytest.mark.parametrize(("bias", "temperature", "logit_scale", "softcap"), [
    (False, 1.0, 1.0, None), (True, 0.7, 1.0, None), (False, 1.3, 0.25, None), (True, 0.9, 2.0, 5.0)])
def test_a_frozen_head_runs_once_and_gives_the_same_values_and_gradients(
    chunk_tokens: int, bias: bool, temperature: float, logit_scale: float, softcap: float | None
) -> None:
    hidden_NH, lm_head, token_ids_N = problem(bias=bias)
    lm_head.requires_grad_(False)
    seen: list[int] = []
    kept: list[torch.Size] = []

    def head(hidden_nH: Tensor) -> Tensor:
        seen.append(hidden_nH.shape[0])
        return lm_head(hidden_nH)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = token_logprobs(
            hidden_NH, LogitHead(head, logit_scale, softcap, is_frozen=True), token_ids_N, chunk_tokens=chunk_tokens,
            temperature=temperature, self_certainty=True)
    assert (N, H) in kept and result.logprobs_N.requires_grad and not result.entropies_N.requires_grad
    factors_N = torch.linspace(-1, 1, N)
    (ours,) = torch.autograd.grad((factors_N * result.logprobs_N).sum(), hidden_NH)
    assert sum(seen) == N and max(seen) <= chunk_tokens
    expected = token_logprobs(
        hidden_NH, LogitHead(lm_head, logit_scale, softcap), token_ids_N, chunk_tokens=N, temperature=temperature,
        self_certainty=True)
    for name in ("logprobs_N", "entropies_N", "self_certainties_N"):
        torch.testing.assert_close(getattr(result, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    (theirs,) = torch.autograd.grad((factors_N * expected.logprobs_N).sum(), hidden_NH)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_hand_computed_two_token_vocabulary() -> None:
    lm_head = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        lm_head.weight.copy_(torch.tensor([[math.log(3.0)], [0.0]]))
    result = token_logprobs(torch.ones(2, 1), lm_head, torch.tensor([0, 1]), chunk_tokens=1)
    assert result.logprobs_N.tolist() == pytest.approx([math.log(0.75), math.log(0.25)], rel=1e-6)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert result.entropies_N.tolist() == pytest.approx([entropy, entropy], rel=1e-6)
    # At temperature 1/2 the odds are squared: 9 to 1.
    sharper = token_logprobs(torch.ones(1, 1), lm_head, torch.tensor([0]), chunk_tokens=1, temperature=0.5)
    assert sharper.logprobs_N.tolist() == pytest.approx([math.log(0.9)], rel=1e-6)


@pytest.mark.parametrize("chunk_tokens", [2, N])
def test_entropy_has_no_gradient_unless_asked(chunk_tokens: int) -> None:
    hidden_NH, lm_head, token_ids_N = problem()
    assert not token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=chunk_tokens).entropies_N.requires_grad
    asked = token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=chunk_tokens, entropy_grad=True)
    [gradient_NH] = torch.autograd.grad(asked.entropies_N.sum(), hidden_NH)
    assert gradient_NH.abs().sum() > 0


def test_bfloat16_states_give_float32_results_normalised_in_float32() -> None:
    hidden_NH, lm_head, token_ids_N = problem(dtype=torch.bfloat16)
    result = token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=4)
    expected_N = torch.log_softmax(lm_head(hidden_NH).float(), dim=-1).gather(-1, token_ids_N[:, None]).squeeze(-1)
    assert result.logprobs_N.dtype == result.entropies_N.dtype == torch.float32
    torch.testing.assert_close(result.logprobs_N, expected_N, rtol=1e-6, atol=1e-6)
    result.logprobs_N.sum().backward()
    assert hidden_NH.grad is not None and hidden_NH.grad.dtype == torch.bfloat16


class TensorsSeen(TorchDispatchMode):
    """Remembers the most rows of any [rows, V] floating-point tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.most_rows = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dim() == 2 and tensor.shape[1] == V:
                self.most_rows = max(self.most_rows, tensor.shape[0])
        return result


def test_no_tensor_holds_more_rows_of_logits_than_a_chunk_forward_or_backward() -> None:
    hidden_NH, lm_head, token_ids_N = problem()
    for chunk_tokens, most_rows in ((3, 3), (N, N)):
        with TensorsSeen() as seen:
            result = token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=chunk_tokens, entropy_grad=True)
            (result.logprobs_N + result.entropies_N).sum().backward()
        assert seen.most_rows == most_rows


@pytest.mark.parametrize(("chunk_tokens", "kept_logits"), [(3, 0), (N, 1)])
def test_no_logits_wait_for_the_backward_pass_when_chunked(chunk_tokens: int, kept_logits: int) -> None:
    hidden_NH, lm_head, token_ids_N = problem()
    shapes: set[tuple[torch.Size, int]] = set()

    def pack(tensor: Tensor) -> Tensor:
        # The weight's transpose is kept too, and costs nothing.
        if tensor.dim() == 2 and tensor.shape[1] == V and tensor.data_ptr() != lm_head.weight.data_ptr():
            shapes.add((tensor.shape, tensor.data_ptr()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=chunk_tokens)
    assert len(shapes) == kept_logits


@pytest.mark.parametrize(("chunk_tokens", "calls"), [(3, 8), (N, 1), (100, 1)])
def test_the_head_runs_twice_per_chunk_and_once_when_everything_fits(chunk_tokens: int, calls: int) -> None:
    hidden_NH, lm_head, token_ids_N = problem()
    seen: list[int] = []

    def counting_head(hidden_nH: Tensor) -> Tensor:
        seen.append(hidden_nH.shape[0])
        return lm_head(hidden_nH)

    token_logprobs(hidden_NH, counting_head, token_ids_N, chunk_tokens=chunk_tokens).logprobs_N.sum().backward()
    assert len(seen) == calls
    assert max(seen) <= chunk_tokens


def test_without_gradients_nothing_is_recomputed_and_values_agree() -> None:
    hidden_NH, lm_head, token_ids_N = problem()
    with torch.no_grad():
        result = token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=4)
    assert not result.logprobs_N.requires_grad
    with_gradient = token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=N)
    torch.testing.assert_close(result.logprobs_N, with_gradient.logprobs_N.detach())


def test_no_tokens_give_empty_results() -> None:
    hidden_NH, lm_head, token_ids_N = problem()
    result = token_logprobs(hidden_NH[:0], lm_head, token_ids_N[:0], chunk_tokens=4)
    assert result.logprobs_N.shape == result.entropies_N.shape == (0,)


def test_chunk_fits_the_budget() -> None:
    assert chunk_tokens_for(152_000, budget_bytes=2**30) == 2**30 // (4 * 152_000)
    assert chunk_tokens_for(152_000, budget_bytes=1) == 1


def test_bad_input_is_named() -> None:
    hidden_NH, lm_head, token_ids_N = problem()
    with pytest.raises(ValueError, match="11 hidden states for 10 tokens"):
        token_logprobs(hidden_NH, lm_head, token_ids_N[:-1], chunk_tokens=4)
    with pytest.raises(ValueError, match="temperature is 0"):
        token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=4, temperature=0.0)
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        token_logprobs(hidden_NH, lm_head, token_ids_N, chunk_tokens=0)
