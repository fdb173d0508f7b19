"""What completions do before they answer, told from their text: cheap signs of reasoning, which train nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rl.records import Rollout, ScoredGroup

_ANSWER_START = re.compile(r"\\boxed|\\fbox|####|<answer>|answer is", re.IGNORECASE)
_THINK_TAG = re.compile(r"</?think>")
_RECONSIDERS = re.compile(
    r"\b(?:wait|hmm+|actually|alternatively|however|on second thought|re-?consider|re-?check|double[- ]check|"
    r"let me (?:check|verify|re-?\w+)|check again|try again|start over|mistake|that(?: is|'s) (?:not right|wrong))\b",
    re.IGNORECASE)


def text_before_answer(scored: ScoredGroup, rollout: Rollout, answer: str) -> str:
    """What a completion says before its answer; the template's own beginning and think tags are no part of it."""
    text = _THINK_TAG.sub("", rollout.text.removeprefix(scored.group.prompt.assistant_prefix))
    marker = _ANSWER_START.search(text)
    return text[: marker.start() if marker else max(text.find(answer), 0)]


def reasoning_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """reconsidering_share: of all completions, those with a word such as wait, actually, let me check (English alone).
    steps: lines with text before the answer, the mean over the answered completions; missing where there is none."""
    completions = [(group, rollout, answer) for group in groups
                   for rollout, answer in zip(group.group.rollouts, group.answers, strict=True)]
    steps = [sum(1 for line in text_before_answer(group, rollout, answer).splitlines() if line.strip())
             for group, rollout, answer in completions if answer is not None]
    found = {"steps": sum(steps) / len(steps)} if steps else {}
    if completions:
        reconsidering = sum(_RECONSIDERS.search(rollout.text) is not None for _, rollout, _ in completions)
        found["reconsidering_share"] = reconsidering / len(completions)
    return found
