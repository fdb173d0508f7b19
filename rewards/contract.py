"""What a reward is: a function that sees one question and all G completions, and returns G numbers.

    def reward(*, question: str, completions: list[str], answer: str | None, **columns) -> list[float] | GroupScore

A parameter named `rollouts` receives the G rollouts (token_ids, logprobs). An `async def` is awaited, all groups of a
batch at once. `columns` are the other columns of the question's row. Primitives only, so that a plug-in is a plain
function in anybody's file, testable without a GPU. The page for users is docs/rewards.md. Imports neither rl nor torch.

What a function needs beyond that it says by an attribute, which is read before the run:
`needs_answer = True`: it is never called for a question without a gold answer; such questions are refused.
`needs_columns = ("level",)`: likewise for questions without one of these columns.
`needs_token_statistics = True`: the rollouts also have entropies and self_certainties, one number per token (style
group). `needs_policy = True`: a parameter named `policy` receives a PolicyLike, the policy that sampled the completions
(style group). `needs_votes = True`: a parameter named `votes` receives the texts that a moving average of the policy
gave to the same question (the configuration's `votes`). `any_thread = True`: it may be called outside the main thread,
for some groups while others are still sampled (style group). `prepare = function`: called once per batch, before its
groups, with the list of their keyword arguments; for work that is cheaper done together. It returns nothing, and must
not change what the reward gives. A parameter named `max_completion_tokens` that the configuration does not set receives
the run's sampling.max_completion_tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rewards.errors import UserError


@dataclass(frozen=True, slots=True)
class GroupScore:
    """A reward's values with what else it knows about the group.

    scores: [G], finite, or None for a completion that the reward has no score for: it gets the mean of the reward's
    others in the group, hence no advantage. metrics: named numbers, averaged over the groups of a step. labels: [G],
    cluster of each completion (equal label = equivalent answers). answers: [G], extracted final answers, None where
    nothing was found. skipped: the group as a whole could not be judged (a service did not answer); it trains nothing,
    whatever the other rewards say.
    """

    scores: Sequence[float | None]
    metrics: Mapping[str, float] = field(default_factory=dict)
    labels: Sequence[int] | None = None
    answers: Sequence[str | None] | None = None
    skipped: bool = False


class PolicyLike(Protocol):
    """The policy after one question's prompt, as it was when it sampled the completions; no gradient."""

    def logprobs(self, continuations: Sequence[tuple[str, str]]) -> list[list[float]]:
        """For each (beginning, text): ln pi of every token of `text` after prompt + beginning, in order; at least one
        token each.

        A beginning is the beginning of a completion as rewards see completions (it may be empty), and holds the
        template's assistant prefix only where the completion does. Under the distribution that is sampled from: softmax
        of logits / temperature.
        """
        ...


class RewardError(UserError):
    """A reward function could not be loaded, raised, or returned something else than G finite numbers."""
