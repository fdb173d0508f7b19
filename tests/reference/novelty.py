"""EVOL-RL's reward (arXiv:2509.15194), letter by letter, with a cosine of character trigrams for its embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence


def similarity(one: str, other: str) -> float:
    keys = sorted({text[at : at + 3] for text in (one, other) for at in range(max(1, len(text) - 2))})

    def counts(text: str) -> list[int]:
        found = [0] * len(keys)
        for at in range(max(1, len(text) - 2)):
            found[keys.index(text[at : at + 3])] += 1
        return found

    a, b = counts(one), counts(other)
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b)))


def reference_novelty(texts: Sequence[str], answers: Sequence[str | None], majority: str | None) -> list[float]:
    """[G] rewards; answers are equal where their texts are."""
    valid = [i for i, answer in enumerate(answers) if answer is not None]
    rewards = [-1.0] * len(texts)
    for side in ([i for i in valid if answers[i] == majority], [i for i in valid if answers[i] != majority]):
        novelty = []
        for i in side:
            own = [similarity(texts[i], texts[j]) for j in side if j != i]
            every = [similarity(texts[i], texts[j]) for j in valid if j != i]
            mean = sum(own) / len(own) if own else sum(every) / len(every) if every else 1.0
            novelty.append(1 - 0.5 * mean - 0.5 * max(every, default=1.0))
        for i, value in zip(side, novelty, strict=True):
            is_majority = answers[i] == majority
            if len(side) == 1:
                rewards[i] = 1.0 if is_majority else -0.5
            else:
                spread = max(novelty) - min(novelty)
                scaled = (value - min(novelty)) / spread if spread > 1e-9 else 0.5
                rewards[i] = (0.5 if is_majority else -1.0) + 0.5 * scaled
    return rewards
