"""The policy's own token distributions -> how sure it was of each completion. No answer is read, neither gold nor
final.

Both need per-token statistics of the distribution sampled from (softmax of logits / sampling temperature, before top_p
and top_k), which a run records because of the attribute `needs_token_statistics`. The mean runs over the completion's
tokens, stop token included. Differs from the papers in the temperature, where theirs sample at 1. Both collapse sooner
or later (arXiv:2505.21444): keep the watchdog on. Another statistic is another field of the rollout and another
function here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewards.calling import RolloutLike
from rewards.contract import GroupScore


def self_certainty(*, rollouts: Sequence[RolloutLike], **columns: object) -> GroupScore:
    """r_i = mean over t of KL(uniform || pi_t) = logsumexp(z_t) - mean_v(z_t) - ln V, in nats, >= 0 (Intuitor,
    arXiv:2505.19590).

    The constant ln V, which the paper leaves in, is subtracted: 0 means that all V tokens were equally likely. It
    changes no advantage. Raises ValueError where the rollouts carry no statistics.
    """
    values = [_statistics(rollout.self_certainties, "self_certainties") for rollout in rollouts]
    return GroupScore([math.fsum(row) / len(row) for row in values])


def token_entropy(*, rollouts: Sequence[RolloutLike], **columns: object) -> GroupScore:
    """r_i = -(mean over t of the entropy of pi_t), in nats, -ln V <= r_i <= 0 (RENT, arXiv:2505.22660).

    Raises ValueError where the rollouts carry no statistics."""
    values = [_statistics(rollout.entropies, "entropies") for rollout in rollouts]
    return GroupScore([-math.fsum(row) / len(row) for row in values])


self_certainty.needs_token_statistics = True  # type: ignore[attr-defined]
token_entropy.needs_token_statistics = True  # type: ignore[attr-defined]


def _statistics(values: Sequence[float] | None, name: str) -> Sequence[float]:
    if values is None:
        raise ValueError(
            f"the rollouts carry no {name}: they were sampled for rewards that do not ask for token statistics")
    return values
