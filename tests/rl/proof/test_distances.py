"""Distances between sampler, trainer and base against hand-computed numbers, and the verdicts that follow."""

from __future__ import annotations

import math

import pytest
import torch

from rl.proof.distances import Distances, Judgement, distances, effective_sample_share, pooled

BASE_T = torch.tensor([-1.0, -2.0, -3.0, -4.0])
TRAINER_T = BASE_T + torch.tensor([0.3, -0.1, 0.2, -0.4])  # moved: mean 0.25, squares 0.3


def test_distances_are_means_of_absolute_differences_and_counts_of_the_nearer_side() -> None:
    found = distances(BASE_T + torch.tensor([0.3, -0.1, 0.1, 0.2]), TRAINER_T, BASE_T)
    assert found.num_tokens == 4
    assert [found.agreement, found.from_base, found.moved] == pytest.approx([0.175, 0.175, 0.25])
    assert found.share == pytest.approx((0.09 + 0.01 + 0.02 - 0.08) / 0.3, rel=1e-4)
    sampler_T, trainer_T, base_T = torch.tensor([[-1.0, -2.5, -3.0], [-1.0, -2.0, -4.0], [-2.0, -3.0, -3.0]])
    found = distances(sampler_T, trainer_T, base_T)
    assert (found.num_nearer_policy, found.num_nearer_base) == (1, 1)  # the second is as far from one as the other


@pytest.mark.parametrize(
    ("part", "verdict"), [(1.0, "policy"), (0.0, "base"), (0.45, "other"), (2.0, "other"), (-1.0, "other")]
)
def test_a_sampler_that_shows_a_part_of_the_move(part: float, verdict: str) -> None:
    base_T, move_T = BASE_T.repeat(10), (TRAINER_T - BASE_T).repeat(10)
    found = distances(base_T + part * move_T, base_T + move_T, base_T)
    assert found.share == pytest.approx(part)
    assert found.verdict(Judgement(0.1)) == verdict


def test_fewer_than_25_tokens_that_differ_are_on_no_side() -> None:
    def verdict(count: int) -> str:
        base_T, move_T = torch.zeros(1000), torch.zeros(1000)
        move_T[:count] = 0.01
        return distances(base_T, base_T + move_T, base_T).verdict(Judgement(0.1))

    assert [verdict(count) for count in (0, 1, 25, 26, 1000)] == ["open", "open", "open", "base", "base"]


@pytest.mark.parametrize("seed", range(5))
def test_on_a_lattice_a_few_large_moves_are_no_verdict(seed: int) -> None:
    """What bfloat16 does: log-probabilities are multiples of 1/16, sampler and trainer round a policy that has hardly
    moved to either side by chance. A mean weighted by the move takes the dozen tokens at which they differ for proof.
    """
    draws = torch.Generator().manual_seed(seed)

    def rounded(values_T: torch.Tensor) -> torch.Tensor:
        return ((values_T + 0.002 * torch.randn(len(values_T), generator=draws)) * 16).round() / 16

    true_T = -3.0 * torch.rand(600, generator=draws)
    found = distances(rounded(true_T), rounded(true_T), rounded(true_T))
    assert found.verdict(Judgement(0.1)) == "open"
    assert 0 < found.num_nearer_policy + found.num_nearer_base < 100


@pytest.mark.parametrize("seed", range(5))
def test_a_move_far_below_the_bound_and_below_the_numerics_tells_policy_from_base_by_many_tokens(seed: int) -> None:
    """bfloat16's numerics: noise of 0.02 nats, a move of 0.008, 4,000 tokens, a bound of 0.1."""
    draws = torch.Generator().manual_seed(seed)
    base_T, move_T, noise_T = (
        scale * torch.randn(4000, generator=draws, dtype=torch.float64) for scale in (1.0, 0.01, 0.02))
    has_policy, has_base = (
        distances(sampler_T, base_T + move_T, base_T) for sampler_T in (base_T + move_T + noise_T, base_T + noise_T))
    assert max(has_policy.agreement, has_base.agreement) < 0.1
    assert [found.verdict(Judgement(0.1)) for found in (has_policy, has_base)] == ["policy", "base"]
    assert [found.verdict(Judgement(0.1, judges_side=False)) for found in (has_policy, has_base)] == ["open", "open"]


@pytest.mark.parametrize("seed", range(5))
def test_a_move_that_the_numerics_hide_is_open_and_no_alarm(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    base_T, move_T, noise_T = (
        scale * torch.randn(100, generator=draws, dtype=torch.float64) for scale in (1.0, 0.001, 0.02))
    for sampler_T in (base_T + move_T + noise_T, base_T + noise_T):
        assert distances(sampler_T, base_T + move_T, base_T).verdict(Judgement(0.1)) == "open"


def test_one_token_of_chance_proves_nothing() -> None:
    assert distances(torch.tensor([0.02]), torch.tensor([0.03]), torch.tensor([0.0])).verdict(Judgement(0.1)) == "open"


def test_a_policy_that_equals_its_base_is_open_and_agreement_is_still_asked() -> None:
    found = distances(BASE_T + 1e-5, BASE_T, BASE_T)
    assert (found.moved, found.share, found.verdict(Judgement(1e-3))) == (0.0, None, "open")
    assert distances(BASE_T + 0.5, BASE_T, BASE_T).verdict(Judgement(1e-3)) == "other"


def test_without_a_base_agreement_is_all() -> None:
    assert distances(TRAINER_T, TRAINER_T, None) == Distances(4, 0.0)
    assert distances(TRAINER_T, TRAINER_T, None).verdict(Judgement(1e-3)) == "policy"
    assert distances(TRAINER_T + 0.1, TRAINER_T, None).verdict(Judgement(1e-3)) == "other"


def test_what_is_not_a_number_does_not_agree() -> None:
    assert distances(BASE_T * math.nan, TRAINER_T, BASE_T).verdict(Judgement(1e-3)) == "other"


def test_ranks_are_pooled_by_their_tokens() -> None:
    found = pooled([Distances(1, 0.4, 0.1, 0.2, 1.0, 1, 0), Distances(3, 0.0, 0.3, 0.2, 0.6, 1, 2), Distances(4, 0.1)])
    assert found.num_tokens == 8
    assert [found.agreement, found.from_base, found.moved, found.share] == pytest.approx([0.1, 0.25, 0.2, 0.7])
    assert (found.num_nearer_policy, found.num_nearer_base) == (2, 2)
    with pytest.raises(ValueError, match="no distances"):
        pooled([])


def test_the_effective_sample_share_of_weights() -> None:
    assert effective_sample_share(torch.tensor([0.5, 0.5, 0.5])) == pytest.approx(1.0)
    assert effective_sample_share(torch.tensor([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert effective_sample_share(torch.tensor([1.0, 2.0])) == pytest.approx(9 / 10)
    assert effective_sample_share(torch.zeros(3)) == 0.0
    with pytest.raises(ValueError, match="no weights"):
        effective_sample_share(torch.tensor([]))
