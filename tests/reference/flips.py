"""TTRL-Guard's weight of a question (arXiv:2605.19444), from the list of all its visits, letter by letter."""

from __future__ import annotations

from collections.abc import Sequence

from rl.config import FlipsSection


def reference_weight(answers: Sequence[str], shares: Sequence[float], settings: FlipsSection) -> float:
    """answers, shares: of every visit so far, the present one last."""
    window, flips = settings.window, []
    for visit in range(1, len(answers)):
        flips.append(1.0 if answers[visit] != answers[visit - 1] else 0.0)
    rate = sum(flips[-window:]) / len(flips[-window:]) if flips else 0.0
    alpha = 1.0 - settings.unstable * rate
    gamma = 1.0
    if rate > settings.max_flip_rate and shares[-1] > settings.min_agreement:
        gamma = 1.0 - settings.contradiction
    delta = 1.0
    agreement = sum(shares[-window:]) / len(shares[-window:])
    if sum(flips) == 0 and len(answers) in range(window, 2 * window) and agreement > settings.min_agreement:
        delta = 1.0 - 0.5 * settings.contradiction
    return max(0.1, alpha * gamma * delta)
