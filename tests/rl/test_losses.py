"""Losses against nested loops, numbers computed by hand, and what must not change them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from rl.config import CorrectionSection, CovarianceSection, LossSection
from rl.kl import k3
from rl.losses import (
    LOSSES,
    STATISTICS,
    Aggregation,
    Denominators,
    LossOutput,
    LossTokens,
    covariance_marks,
    entropy_threshold,
    gspo,
    mean_statistics,
    policy_loss,
    sampler_correction,
    sequence_means,
    token_weights,
)
from tests.reference.losses import Sequences, reference_covariances, reference_loss

MAX_COMPLETION_TOKENS = 9


def correction_section(mode: str, **changes: float) -> CorrectionSection:
    return CorrectionSection().model_copy(update={"mode": mode, **changes})


def loss_section(*, mode: str = "none", **changes: Any) -> LossSection:
    """Not checked as a configuration's is: wider bounds than allowed, and names that do not exist."""
    correction = correction_section(mode, cap=1.3, low=0.7, high=1.4)
    return LossSection().model_copy(update={"clip_high": 0.28, "correction": correction, **changes})


def loss_tokens(logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, **others: Any) -> LossTokens:
    """The tokens of one sequence; what `others` does not name is zero."""
    zeros_T = torch.zeros(len(logprobs_T))
    fields: dict[str, Any] = {
        "sampler_logprobs_T": zeros_T, "entropies_T": zeros_T, "weights_T": torch.ones(len(logprobs_T)),
        "sequence_ids_T": zeros_T.long(), "num_sequences": 1, "num_loss_tokens": len(logprobs_T), **others}
    return LossTokens(logprobs_T, old_logprobs_T, advantages_T=advantages_T, **fields)


def random_sequences(lengths: tuple[int, ...] = (5, 1, 3, 7)) -> Sequences:
    """Ratios far enough from 1 that every clip and mask acts; logprobs and entropies are leaves with gradient."""
    generator = torch.Generator().manual_seed(2)

    def around(centres: list[Tensor], spread: float) -> list[Tensor]:
        return [centre.detach() + spread * torch.randn(centre.shape, generator=generator) for centre in centres]

    logprobs = [-3 * torch.rand(length, generator=generator) for length in lengths]
    old, ref = around(logprobs, 0.4), around(logprobs, 0.5)
    sampler = around(old, 0.5)
    entropies = [2 * torch.rand(length, generator=generator) for length in lengths]
    for tensor in [*logprobs, *entropies]:
        tensor.requires_grad_()
    return Sequences(logprobs, old, sampler, ref, entropies, [1.5, -0.7, -2.0, 0.4, 0.0][: len(lengths)])


def ours(data: Sequences, subset: list[int], *, min_entropy: float = -math.inf, **settings: Any) -> LossOutput:
    """policy_loss on the micro-batch of the sequences in `subset`, with the denominators of all sequences; settings:
    those of `loss_section`."""
    lengths = [len(data.logprobs[index]) for index in subset]
    denominators = Denominators(sum(map(len, data.logprobs)), len(data.logprobs), MAX_COMPLETION_TOKENS)
    sequence_ids_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([tensors[index] for index in subset])

    section = loss_section(**settings)
    return policy_loss(
        LossTokens(
            logprobs_T=flat(data.logprobs), old_logprobs_T=flat(data.old), sampler_logprobs_T=flat(data.sampler),
            advantages_T=torch.tensor([data.advantages[index] for index in subset])[sequence_ids_T],
            entropies_T=flat(data.entropies), ref_logprobs_T=flat(data.ref),
            weights_T=token_weights(lengths, section.aggregation, denominators), sequence_ids_T=sequence_ids_T,
            num_sequences=len(subset), num_loss_tokens=denominators.num_loss_tokens, min_entropy=min_entropy,
            is_marked_T=None if data.marks is None else torch.tensor([m for i in subset for m in data.marks[i]])),
        section)


def gradients(loss: Tensor, data: Sequences) -> list[Tensor]:
    found = torch.autograd.grad(loss, [*data.logprobs, *data.entropies], allow_unused=True, materialize_grads=True)
    return list(found)


@pytest.mark.parametrize(("mode", "kl_weight", "entropy_bonus", "min_entropy"), [
    ("none", 0.0, 0.0, -math.inf), ("truncate", 0.1, 0.0, -math.inf), ("mask_token", 0.0, 0.05, 0.8),
    ("mask_sequence", 0.3, 0.02, 1.1)])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_loss_and_gradients_equal_the_nested_loops(
    name: str, aggregation: Aggregation, mode: str, kl_weight: float, entropy_bonus: float, min_entropy: float
) -> None:
    data = random_sequences()
    settings: dict[str, Any] = {"name": name, "aggregation": aggregation, "mode": mode, "kl_weight": kl_weight,
                "entropy_bonus": entropy_bonus}
    result = ours(data, [0, 1, 2, 3], min_entropy=min_entropy, **settings)
    expected = reference_loss(
        data, loss_section(**settings), max_completion_tokens=MAX_COMPLETION_TOKENS, min_entropy=min_entropy)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-7)
    for gradient, reference in zip(gradients(result.loss, data), gradients(expected, data), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", ["clip", "kl"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_marked_tokens_lose_their_gradient_or_are_held_as_the_nested_loops_say(
    name: str, mode: Literal["clip", "kl"]
) -> None:
    plain = random_sequences()
    data = replace(plain, marks=[[(i + t) % 3 == 0 for t in range(len(row))] for i, row in enumerate(plain.logprobs)])
    settings: dict[str, Any] = {"name": name, "kl_weight": 0.1, "covariance": CovarianceSection(mode=mode, weight=0.7)}
    result = ours(data, [0, 1, 2, 3], min_entropy=0.5, **settings)
    expected = reference_loss(
        data, loss_section(**settings), max_completion_tokens=MAX_COMPLETION_TOKENS, min_entropy=0.5)
    torch.testing.assert_close(result.loss, expected, rtol=1e-5, atol=1e-7)
    for gradient, reference in zip(gradients(result.loss, data), gradients(expected, data), strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-7)
    assert not torch.isclose(result.loss, ours(plain, [0, 1, 2, 3], min_entropy=0.5, **settings).loss)
    halves = [ours(data, part, min_entropy=0.5, **settings).loss for part in ([3, 1], [0, 2])]
    torch.testing.assert_close(sum(halves), result.loss, rtol=1e-5, atol=1e-7)


def marked(mode: Literal["clip", "kl"], seed: int = 0, **settings: float) -> tuple[list[float], list[int]]:
    """The covariances of 40 tokens, letter by letter, and the numbers of those that are marked."""
    random = torch.Generator().manual_seed(5)
    logprobs_N, advantages_N = -3 * torch.rand(40, generator=random), torch.randn(40, generator=random)
    marks_N = covariance_marks(logprobs_N, advantages_N, CovarianceSection(mode=mode, **settings),
                               torch.Generator().manual_seed(seed))
    return reference_covariances(logprobs_N.tolist(), advantages_N.tolist()), marks_N.nonzero().flatten().tolist()


@pytest.mark.parametrize(("share", "count"), [(0.1, 4), (0.29, 11), (0.001, 1), (1.0, 40)])
def test_kl_marks_the_tokens_of_the_largest_covariance(share: float, count: int) -> None:
    covariances, found = marked("kl", share=share)
    assert found == sorted(sorted(range(40), key=lambda t: -covariances[t])[:count])


def test_clip_marks_some_of_the_tokens_between_the_bounds() -> None:
    covariances, every = marked("clip", share=1.0, low=0.2, high=1.5)
    assert every == [t for t in range(40) if 0.2 < covariances[t] < 1.5] and len(every) > 4
    draws = {tuple(marked("clip", seed=seed, share=0.1, low=0.2, high=1.5)[1]) for seed in range(20)}
    assert len(draws) > 1 and all(len(draw) == 4 and set(draw) < set(every) for draw in draws)
    assert marked("clip", share=1.0, low=50.0, high=60.0)[1] == []


def test_no_tokens_have_no_marks() -> None:
    nothing = torch.empty(0)
    assert covariance_marks(nothing, nothing, CovarianceSection(mode="kl"), torch.Generator()).numel() == 0


@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[3, 1], [0, 2]], [[2, 0, 3, 1]]])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("name", list(LOSSES))
def test_micro_batches_in_any_order_add_up_to_the_same_loss_gradient_and_metrics(
    name: str, aggregation: Aggregation, split: list[list[int]]
) -> None:
    data = random_sequences()

    def run(subset: list[int]) -> LossOutput:
        return ours(
            data, subset, name=name, aggregation=aggregation, kl_weight=0.1, entropy_bonus=0.05, mode="mask_sequence")

    whole, parts = run([0, 1, 2, 3]), [run(subset) for subset in split]
    total = torch.stack([part.loss for part in parts]).sum()
    torch.testing.assert_close(total, whole.loss, rtol=1e-5, atol=1e-7)
    for gradient, expected in zip(gradients(total, data), gradients(whole.loss, data), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.stack([part.sums_K for part in parts]).sum(dim=0), whole.sums_K)


def one_token(ratio: float, advantage: float, name: str = "clip") -> tuple[float, float]:
    """Loss and its gradient with respect to ln pi of a single token, clip bounds 0.8 and 1.28."""
    logprob_T = torch.tensor([-1.0], requires_grad=True)
    data = Sequences(
        [logprob_T], [torch.tensor([-1.0 - math.log(ratio)])], [torch.tensor([-1.0])], [torch.tensor([-1.0])],
        [torch.tensor([0.5])], [advantage])
    loss = ours(data, [0], name=name).loss
    [gradient_T] = torch.autograd.grad(loss, logprob_T)
    return float(loss.detach()), float(gradient_T)


def test_hand_computed_clip() -> None:
    assert one_token(1.0, 2.0) == pytest.approx((-2.0, -2.0))
    assert one_token(1.2, 2.0) == pytest.approx((-2.4, -2.4))
    assert one_token(1.5, 2.0) == pytest.approx((-2.56, 0.0))
    assert one_token(0.5, 2.0) == pytest.approx((-1.0, -1.0))
    assert one_token(0.5, -2.0) == pytest.approx((1.6, 0.0))
    assert one_token(1.5, -2.0) == pytest.approx((3.0, 3.0))


def test_hand_computed_cispo_keeps_the_gradient_of_clipped_tokens() -> None:
    # ln pi is -1, so the loss is weight * A.
    assert one_token(1.5, 2.0, "cispo") == pytest.approx((2.56, -2.56))
    assert one_token(0.5, -2.0, "cispo") == pytest.approx((-1.0, 1.0))


def test_gspo_clips_the_sequence_and_not_the_token() -> None:
    # Token ratios 2 and 1/2: clip touches the first; the sequence's ratio is their geometric mean, 1.
    data = Sequences(
        [torch.tensor([-1.0, -1.0], requires_grad=True)], [torch.tensor([-1 - math.log(2), -1 + math.log(2)])],
        [torch.zeros(2)], [torch.zeros(2)], [torch.zeros(2, requires_grad=True)], [1.0])
    gspo, clip = ours(data, [0], name="gspo"), ours(data, [0], name="clip")
    assert gradients(gspo.loss, data)[0].tolist() == pytest.approx([-0.5, -0.5])
    assert gradients(clip.loss, data)[0].tolist() == pytest.approx([0.0, -0.25])
    assert mean_statistics(gspo.sums_K)["clip_high"] == 0.0
    assert mean_statistics(clip.sums_K)["clip_high"] == 0.5


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_gspos_gradient_is_that_of_the_sequences_ratio_where_its_tokens_share_an_advantage(
    aggregation: Aggregation,
) -> None:
    torch.manual_seed(3)
    old_T, ids_T, advantages_B = torch.randn(7), torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([0.7, -1.2])
    logprobs_T = (old_T + 0.1 * torch.randn(7)).requires_grad_()
    weights_T = token_weights([3, 4], aggregation, Denominators(7, 2, 5))
    ratio_T = torch.exp(sequence_means(logprobs_T - old_T, ids_T, 2))
    (expected,) = torch.autograd.grad((weights_T * ratio_T * advantages_B[ids_T]).sum(), logprobs_T)
    tokens = loss_tokens(logprobs_T, old_T, advantages_B[ids_T], sequence_ids_T=ids_T, num_sequences=2)
    found = gspo(tokens, loss_section(clip_low=0.5, clip_high=0.5))
    torch.testing.assert_close(found.ratio_T, ratio_T.detach())
    torch.testing.assert_close(torch.autograd.grad((weights_T * found.objective_T).sum(), logprobs_T)[0], expected)


def test_gspo_gives_each_token_its_own_advantage() -> None:
    # The sequence's ratio is the geometric mean of 1/2 and 2, which is 1.
    old_T = torch.tensor([-1 + math.log(2), -1 - math.log(2)])
    logprobs_T = torch.tensor([-1.0, -1.0], requires_grad=True)
    found = gspo(loss_tokens(logprobs_T, old_T, torch.tensor([2.0, -3.0])), loss_section(clip_low=0.2, clip_high=0.2))
    assert torch.autograd.grad(found.objective_T.sum(), logprobs_T)[0].tolist() == pytest.approx([2.0, -3.0])


def test_first_update_has_ratio_one_and_the_plain_policy_gradient() -> None:
    data = random_sequences()
    data = replace(data, old=[sequence.detach() for sequence in data.logprobs])
    for name in LOSSES:
        result = ours(data, [0, 1, 2, 3], name=name, aggregation="sequence")
        for gradient, advantage in zip(gradients(result.loss, data)[:4], data.advantages, strict=True):
            torch.testing.assert_close(gradient, torch.full_like(gradient, -advantage / (4 * len(gradient))))
        assert mean_statistics(result.sums_K)["ratio"] == 1.0


def test_weights_of_each_aggregation_by_hand() -> None:
    def weights(aggregation: Aggregation) -> list[float]:
        return token_weights([2, 1], aggregation, Denominators(8, 4, 5)).tolist()

    assert weights("token") == [0.125] * 3
    assert weights("sequence") == [0.125, 0.125, 0.25]
    assert weights("constant") == pytest.approx([0.05] * 3)


def test_statistics_are_token_means() -> None:
    data = random_sequences((2, 1))
    result = ours(data, [0, 1], mode="truncate", min_entropy=float(data.entropies[1][0].detach()))
    means = mean_statistics(result.sums_K)
    mismatch = torch.cat([(old - sampler).abs() for old, sampler in zip(data.old, data.sampler, strict=True)])
    corrected = torch.cat([(old - sampler).exp() > 1.3 for old, sampler in zip(data.old, data.sampler, strict=True)])
    entropies = torch.cat(data.entropies).detach()
    assert list(means) == list(STATISTICS)
    assert means["num_tokens"] == 3
    assert means["mismatch"] == pytest.approx(float(mismatch.mean()))
    assert means["corrected"] == pytest.approx(float(corrected.float().mean()))
    assert means["entropy"] == pytest.approx(float(entropies.mean()))
    assert means["kept"] == pytest.approx(float((entropies >= entropies[2]).float().mean()))
    assert not result.sums_K.requires_grad
    assert mean_statistics(torch.zeros(len(STATISTICS)))["kl"] == 0.0


def test_k3_is_zero_at_equality_positive_elsewhere_and_keeps_its_digits() -> None:
    assert float(k3(torch.tensor(-1.0), torch.tensor(-1.0))) == 0.0
    assert float(k3(torch.tensor(-1.0), torch.tensor(-1.0 + math.log(2)))) == pytest.approx(1 - math.log(2))
    # d = 1e-3 in float32: exp(d) - d - 1 has an error of some percent; the true value is d^2 / 2 + d^3 / 6.
    tiny = float(k3(torch.tensor(0.0), torch.tensor(1e-3)))
    assert tiny == pytest.approx(0.5e-6 + 1e-9 / 6, rel=1e-3)


def test_entropy_mask_stops_the_policy_gradient_but_not_the_penalty() -> None:
    data = random_sequences()
    threshold = 1.0
    policy_only = gradients(ours(data, [0, 1, 2, 3], min_entropy=threshold, clip_low=1.0, clip_high=100.0).loss, data)
    with_penalty = gradients(ours(data, [0, 1, 2, 3], min_entropy=threshold, kl_weight=0.1).loss, data)
    for index in range(4):
        below = data.entropies[index] < threshold
        assert (policy_only[index][below] == 0).all() and (policy_only[index][~below] != 0).all()
        assert (with_penalty[index][below] != 0).all()


@pytest.mark.parametrize(("share", "kept"), [(0.2, 2), (0.25, 3), (0.7, 7), (1e-6, 1), (1.0, 10)])
def test_entropy_threshold_keeps_the_top_share(share: float, kept: int) -> None:
    entropies = torch.tensor([0.3, 0.9, 0.1, 0.5, 0.8, 0.2, 0.0, 0.7, 0.4, 0.6])
    assert int((entropies >= entropy_threshold(entropies, share)).sum()) == kept


def test_entropy_threshold_keeps_ties_and_refuses_bad_shares() -> None:
    assert entropy_threshold(torch.full((8,), 0.5), 0.25) == 0.5
    with pytest.raises(ValueError, match=r"top_entropy_share is 0"):
        entropy_threshold(torch.ones(3), 0.0)


def correction_weights(mode: str, low: float = 0.5, high: float = 2.0) -> tuple[list[float], list[bool]]:
    """Two sequences with s = (4, 1/4, 1) and (3, 3)."""
    log_s_T = torch.tensor([4.0, 0.25, 1.0, 3.0, 3.0]).log()
    tokens = loss_tokens(
        log_s_T, log_s_T - 1, torch.zeros(5), sampler_logprobs_T=torch.full((5,), -1.0),
        sequence_ids_T=torch.tensor([0, 0, 0, 1, 1]), num_sequences=2)
    result = sampler_correction(tokens, correction_section(mode, cap=2.0, low=low, high=high))
    return result.weights_T.tolist(), result.is_corrected_T.tolist()


def test_hand_computed_sampler_corrections() -> None:
    none, truncate = correction_weights("none"), correction_weights("truncate")
    token, sequence = correction_weights("mask_token"), correction_weights("mask_sequence")
    assert none == ([1.0] * 5, [False] * 5)
    assert truncate[0] == pytest.approx([2.0, 0.25, 1.0, 2.0, 2.0]) and truncate[1] == [True, False, False, True, True]
    assert token[0] == pytest.approx([0.0, 0.0, 1.0, 0.0, 0.0]) and token[1] == [True, True, False, True, True]
    # Geometric means 1 and 3.
    assert sequence[0] == pytest.approx([1.0, 1.0, 1.0, 0.0, 0.0]) and sequence[1] == [False, False, False, True, True]
    assert correction_weights("mask_sequence", high=3.5)[0] == pytest.approx([1.0, 1.0, 1.0, 3.0, 3.0])


def test_inputs_stay_unchanged() -> None:
    data = random_sequences()
    tensors = [*data.logprobs, *data.old, *data.sampler, *data.ref, *data.entropies]
    before = [tensor.detach().clone() for tensor in tensors]
    for name in LOSSES:
        ours(
            data, [0, 1, 2, 3], name=name, kl_weight=0.1, entropy_bonus=0.1, mode="mask_token", min_entropy=0.5
        ).loss.backward()
    assert all(torch.equal(first, second) for first, second in zip(before, tensors, strict=True))


def test_bad_names_are_refused() -> None:
    data = random_sequences()
    with pytest.raises(ValueError, match="'ppo'; known are clip, cispo, gspo"):
        ours(data, [0], name="ppo")
    with pytest.raises(ValueError, match="known are token, sequence, constant"):
        token_weights([1], "mean", Denominators(1, 1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="known are none, truncate, mask_token, mask_sequence"):
        ours(data, [0], mode="mask")
    with pytest.raises(ValueError, match=r"kl_weight is 0\.1, but no reference"):
        policy_loss(loss_tokens(torch.zeros(1), torch.zeros(1), torch.ones(1)), loss_section(kl_weight=0.1))
