"""A question's sampled completions -> which of them are kept as solutions, and why each other one is not.

A completion passes if its group was judged, the group's entropy is within the bounds, it ended by itself, says
something, and has the reward. Those that pass are taken shortest first (or in random order) up to `per_question`,
leaving out near-duplicates of what was taken. Without gold answers a label-free reward (rewards/majority.py,
rewards/semantic_entropy.py) and the bounds on entropy do the choosing.
For another rule: a reason in `REASONS`, in the place where it is asked.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rl.rejection.config import KeepSection
from rl.rejection.samples import Completion, SampledQuestion
from rl.selection import ROUNDING

Reason = Literal[
    "unjudged", "entropy_low", "entropy_high", "truncated", "empty", "reward", "near_duplicate", "over_limit"]
REASONS: tuple[Reason, ...] = (
    "unjudged", "entropy_low", "entropy_high", "truncated", "empty", "reward", "near_duplicate", "over_limit")
"""In the order in which they are asked: a completion is counted for the first that applies."""

SHINGLE = 3  # words; shorter texts are one shingle
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Choice:
    """kept: indices of the kept completions, in the order in which they were taken. reasons: [n], None for a kept
    one."""

    kept: tuple[int, ...]
    reasons: tuple[Reason | None, ...]


def choose(question: SampledQuestion, keep: KeepSection, seed: int) -> Choice:
    """The completions of one question that are kept; the same on each call. seed: of the random order."""
    reasons = [_refusal(question, completion, keep) for completion in question.completions]
    kept: list[int] = []
    shingles: list[frozenset[tuple[str, ...]]] = []
    for index in _in_order(question, [i for i, reason in enumerate(reasons) if reason is None], keep.order, seed):
        own = shingles_of(question.completions[index].text)
        if keep.near_duplicates is not None and any(
            similarity(own, other) >= keep.near_duplicates - ROUNDING for other in shingles
        ):
            reasons[index] = "near_duplicate"
        elif keep.per_question is not None and len(kept) == keep.per_question:
            reasons[index] = "over_limit"
        else:
            kept.append(index)
            shingles.append(own)
    return Choice(tuple(kept), tuple(reasons))


def has_reward(completion: Completion, keep: KeepSection) -> bool:
    """Whether its reward is high enough; a sum of weights that comes out 1e-16 below the bound is."""
    return completion.reward >= keep.reward_at_least - ROUNDING


def shingles_of(text: str) -> frozenset[tuple[str, ...]]:
    """All sequences of SHINGLE words in the text; a word is letters and digits, or one other character that is no
    space."""
    words = tuple(_WORD.findall(text))
    return frozenset(words[i:i + SHINGLE] for i in range(max(1, len(words) - SHINGLE + 1)))


def similarity(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    """|A and B| / |A or B|, in [0, 1]: the resemblance of two texts by their shingles (Broder 1997)."""
    return len(a & b) / len(a | b)


def _refusal(question: SampledQuestion, completion: Completion, keep: KeepSection) -> Reason | None:
    """Thresholds on entropy are exclusive, as in training (rl/selection.py)."""
    entropy = question.normalised_entropy
    if not question.judged:
        return "unjudged"
    if keep.low is not None and entropy is not None and entropy <= keep.low + ROUNDING:
        return "entropy_low"
    if keep.high is not None and entropy is not None and entropy >= keep.high - ROUNDING:
        return "entropy_high"
    if completion.truncated:
        return "truncated"
    if not completion.text.strip():
        return "empty"
    return None if has_reward(completion, keep) else "reward"


def _in_order(
    question: SampledQuestion, passed: Sequence[int], order: Literal["shortest", "random"], seed: int
) -> list[int]:
    if order == "shortest":
        return sorted(passed, key=lambda i: (question.completions[i].num_tokens, i))
    shuffled = list(passed)
    random.Random(f"{seed}\x1fkeep\x1f{question.id}").shuffle(shuffled)
    return shuffled
