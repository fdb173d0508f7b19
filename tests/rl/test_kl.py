"""KL estimators and exact divergences against closed forms and enumerations on small vocabularies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rl.config import LossSection
from rl.kl import forward_kl, k1, k2, k3, reverse_kl
from rl.losses import LOSSES, LossTokens, policy_loss
from rl.teacher.advantages import distilled_advantages


def assert_exact(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def random_logits(num_positions: int, vocab_size: int, seed: int) -> Tensor:
    return 2.0 * torch.randn(
        num_positions, vocab_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def literal_softmax(logits: list[float], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in logits]
    return [weight / math.fsum(weights) for weight in weights]


def test_divergences_of_a_coin_by_hand() -> None:
    fair, biased = logits_of(0.5, 0.5), logits_of(0.25, 0.75)
    # KL(fair || biased) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3); KL(biased || fair) = 1/4 ln(1/2) + 3/4 ln(3/2)
    assert reverse_kl(fair, biased).item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-12)
    assert forward_kl(fair, biased).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-12)


def test_against_a_uniform_distribution_the_divergence_is_the_missing_entropy() -> None:
    logits = random_logits(5, 7, seed=1)
    entropies = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    assert_exact(reverse_kl(logits, torch.zeros_like(logits)), math.log(7) - entropies)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("vocab_size", [2, 3, 11])
def test_divergences_equal_a_literal_sum_at_every_temperature(vocab_size: int, temperature: float) -> None:
    logits, other = random_logits(4, vocab_size, seed=2), random_logits(4, vocab_size, seed=3)
    for position in range(4):
        p = literal_softmax(logits[position].tolist(), temperature)
        q = literal_softmax(other[position].tolist(), temperature)
        assert reverse_kl(logits, other, temperature)[position].item() == pytest.approx(literal_kl(p, q), rel=1e-10)
        assert forward_kl(logits, other, temperature)[position].item() == pytest.approx(literal_kl(q, p), rel=1e-10)


def test_divergences_ignore_a_shift_of_the_logits_and_vanish_for_equal_distributions() -> None:
    logits = random_logits(6, 9, seed=4)
    for divergence in (forward_kl, reverse_kl):
        assert_exact(divergence(logits, logits + 5.0), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("vocab_size", [2, 5, 50])
def test_k1_and_k3_are_unbiased_and_k2_is_not(vocab_size: int) -> None:
    """The expectation over the policy's own tokens, summed over the whole vocabulary."""
    logits, other = random_logits(8, vocab_size, seed=5), random_logits(8, vocab_size, seed=6)
    log_pi, log_other = logits.log_softmax(-1), other.log_softmax(-1)
    exact = reverse_kl(logits, other)
    assert_exact((log_pi.exp() * k1(log_pi, log_other)).sum(-1), exact)
    assert_exact((log_pi.exp() * k3(log_pi, log_other)).sum(-1), exact)
    assert ((log_pi.exp() * k2(log_pi, log_other)).sum(-1) - exact).abs().min() > 1e-3


def test_k2_and_k3_are_never_negative_and_k3_has_the_lower_variance_near_equality() -> None:
    logits = random_logits(20, 6, seed=7)
    other = logits + 0.05 * random_logits(20, 6, seed=8)
    log_pi, log_other = logits.log_softmax(-1), other.log_softmax(-1)
    assert (k2(log_pi, log_other) >= 0).all() and (k3(log_pi, log_other) >= 0).all()

    def variance(values: Tensor) -> float:
        mean = (log_pi.exp() * values).sum(-1, keepdim=True)
        return (log_pi.exp() * (values - mean).square()).sum(-1).mean().item()

    assert variance(k3(log_pi, log_other)) < 0.01 * variance(k1(log_pi, log_other))


def test_k3_keeps_its_digits_where_both_nearly_agree() -> None:
    """exp(d) - 1 - d in float32 has no digit left at d = 1e-4; the series d^2 / 2 + d^3 / 6 has them all."""
    difference = torch.tensor(1e-4)
    assert k3(torch.tensor(0.0), difference).item() == pytest.approx(1e-8 / 2 + 1e-12 / 6, rel=1e-3)


def test_the_expected_gradient_of_k2_is_that_of_the_exact_divergence() -> None:
    logits, other = random_logits(3, 5, seed=9).requires_grad_(), random_logits(3, 5, seed=10)
    (exact,) = torch.autograd.grad(reverse_kl(logits, other).sum(), logits)
    log_pi, log_other = logits.log_softmax(-1), other.log_softmax(-1)
    (found,) = torch.autograd.grad((log_pi.detach().exp() * k2(log_pi, log_other)).sum(), logits)
    assert_exact(found, exact)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_expected_gradient_of_the_distillation_loss_is_that_of_the_exact_reverse_kl(
    name: str, temperature: float
) -> None:
    """Every token of the vocabulary at every context once, weighted with its probability of being sampled: the
    expectation, exactly.

    The student at its sampling temperature, the teacher at temperature 1, three tokens a sequence: each has an
    advantage of its own."""
    weight, num_positions, vocab_size = 0.3, 4, 6
    logits = random_logits(num_positions, vocab_size, seed=11).requires_grad_()
    teacher = random_logits(num_positions, vocab_size, seed=12)
    divergence = reverse_kl(logits / temperature, teacher)
    (exact,) = torch.autograd.grad(weight * divergence.sum(), logits)
    logprobs_T = (logits / temperature).log_softmax(-1).flatten()
    old_T = logprobs_T.detach()
    zeros_T = torch.zeros_like(old_T)
    tokens = LossTokens(
        logprobs_T=logprobs_T,
        old_logprobs_T=old_T,
        sampler_logprobs_T=old_T,
        advantages_T=distilled_advantages(zeros_T, old_T, teacher.log_softmax(-1).flatten(), weight=weight),
        entropies_T=zeros_T,
        weights_T=old_T.exp(),
        sequence_ids_T=torch.arange(len(old_T)) // 3,
        num_sequences=len(old_T) // 3,
        num_loss_tokens=len(old_T))
    loss = policy_loss(tokens, LossSection.model_validate({"name": name})).loss
    (found,) = torch.autograd.grad(loss, logits)
    assert_exact(found, exact)


def test_what_is_no_temperature_or_no_common_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        reverse_kl(torch.zeros(1, 3), torch.zeros(1, 3), 0.0)
    with pytest.raises(ValueError, match=r"shapes \(1, 3\) and \(1, 4\)"):
        forward_kl(torch.zeros(1, 3), torch.zeros(1, 4))
