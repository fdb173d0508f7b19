"""Each reward called once on real questions with made-up completions, before anything is sampled: a signature that does
not take the columns, or a value that is no number, is found by `--dry-run` and not after the first batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.scoring import RewardSum
from rl.records import Group, Prompt, Rollout
from rl.scoring.rewarding import score_groups

MADE_UP = ("", "I do not know.", "It is so. \\boxed{1}")
LOGPROB = -1.0  # of every token that nobody sampled, in nats


@dataclass(frozen=True, slots=True)
class MadeUpPolicy:
    """What stands for the policy where a reward asks it something: every token has the same probability."""

    def after(self, prompt: Prompt) -> MadeUpPolicy:
        return self

    def logprobs(self, continuations: Sequence[tuple[str, str]]) -> list[list[float]]:
        return [[LOGPROB] * max(1, len(text)) for _, text in continuations]

    def with_statistics(self, groups: Sequence[Group]) -> list[Group]:
        return list(groups)


def rehearse(rewards: RewardSum, prompts: Sequence[Prompt], group_size: int) -> list[str]:
    """Score one question of each set of columns; what each reward gave to the first one's completions, a line each.

    Raises RewardError where a reward does something wrong."""
    kinds: dict[frozenset[str], Prompt] = {}
    for prompt in prompts:
        kinds.setdefault(frozenset(prompt.question.columns), prompt)
    scored = score_groups(rewards, [made_up_group(prompt, group_size) for prompt in kinds.values()], MadeUpPolicy())
    shown = scored[0]  # of the first question
    lines = [f"{name:<24}{', '.join(f'{value:g}' for value in values)}" for name, values in shown.scores.items()]
    return [*lines, *(["the group could not be judged, and would not train"] if shown.skipped else [])]


def made_up_group(prompt: Prompt, size: int) -> Group:
    """`size` completions of one question: empty, without an answer, with one, and, where there is a gold answer, with
    that."""
    answer = prompt.question.answer
    texts = [*MADE_UP, *([f"So it is \\boxed{{{answer}}}"] if answer is not None else [])]
    chosen = [texts[i % len(texts)] for i in range(size)]
    return Group(prompt, tuple(_rollout(text) for text in chosen), votes=MADE_UP)


def _rollout(text: str) -> Rollout:
    tokens = tuple(range(max(1, len(text))))
    numbers = (LOGPROB,) * len(tokens)
    return Rollout(tokens, numbers, text, "stop", policy_version=0, seed=0, entropies=tuple(1.0 for _ in tokens),
                   self_certainties=tuple(1.0 for _ in tokens))
