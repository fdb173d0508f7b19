"""Rewards that must not teach anything right: report them beside every claim (arXiv:2506.10947)."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from rewards.accuracy import accuracy
from rewards.contract import GroupScore


def random_reward(*, question: str, completions: list[str], seed: int = 0, **columns: object) -> list[float]:
    """r_i in {0, 1} with probability 1/2 each, whatever the answer is.

    A hash of (seed, question, completion, i): a resumed run draws the same, and no generator's state has to be saved.
    """
    rewards = []
    for i, completion in enumerate(completions):
        # The lengths keep ("ab", "c") and ("a", "bc") apart.
        key = f"{seed} {i} {len(question)} {question} {completion}".encode("utf-8", "surrogatepass")
        rewards.append(float(hashlib.blake2b(key, digest_size=1).digest()[0] & 1))
    return rewards


def inverted_accuracy(
    *, completions: list[str], answer: str, last_number: bool = False, **columns: object
) -> GroupScore:
    """r_i = 1 - accuracy_i."""
    right = accuracy(completions=completions, answer=answer, last_number=last_number)
    return replace(right, scores=[None if score is None else 1.0 - score for score in right.scores])


inverted_accuracy.needs_answer = True  # type: ignore[attr-defined]
