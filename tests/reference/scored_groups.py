"""Scored groups made by hand, for tests of what comes after the rewards: each distinct answer is a cluster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rl.records import FinishReason, Group, Prompt, Question, Rollout, ScoredGroup


def scored_group(question_id: str, answers: Sequence[str | None], *, texts: Sequence[str] | None = None,
                 assistant_prefix: str = "", num_tokens: Sequence[int] | None = None,
                 truncated: Sequence[int] = ()) -> ScoredGroup:
    """A group whose rewards are p(c), 0 without an answer; `truncated` lists the completions cut at the length
    bound."""
    size = len(answers)
    texts = texts or [
        f"because of this and that \\boxed{{{answer}}}" if answer else "no idea at all" for answer in answers]
    lengths = num_tokens or [5] * size
    labels: list[int] = []
    founders: dict[str, int] = {}
    for index, answer in enumerate(answers):
        labels.append(index if answer is None else founders.setdefault(answer, index))
    shares = [count / size for count in Counter(labels).values()]
    rewards = tuple(
        0.0 if answer is None else labels.count(label) / size for label, answer in zip(labels, answers, strict=True))
    question = Question(question_id, f"question {question_id}", None, {})
    reasons: list[FinishReason] = ["length" if index in truncated else "stop" for index in range(size)]
    rollouts = tuple(
        Rollout(tuple(range(1, length + 1)), (-0.5,) * length, text, reason, 3, seed)
        for seed, (text, length, reason) in enumerate(zip(texts, lengths, reasons, strict=True)))
    prompt = Prompt(question, f"question {question_id}\n", (1, 2), assistant_prefix)
    entropy = -sum(share * math.log(share) for share in shares)
    group = Group(prompt, rollouts)
    return ScoredGroup(group, rewards, {"semantic_entropy": rewards}, tuple(answers), tuple(labels), entropy, {})
