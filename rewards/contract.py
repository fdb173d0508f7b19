"""What a reward is: a function that sees one question and all G completions, and returns G numbers.

    def reward(*, question: str, completions: list[str], answer: str | None, **columns) -> list[float] | GroupScore

A parameter named `rollouts` receives the G rollouts (token_ids, logprobs). An `async def` is awaited, all groups of a batch at
once. A function with the attribute `needs_answer = True` is never called for a question without a gold answer, and one with
`needs_columns = ("level",)` never for one without these columns: that is refused before the run. `columns` are the other
columns of the question's row. Primitives only, so that a plug-in is a plain function in anybody's file, testable without a GPU.
The page for users is docs/rewards.md. Imports neither rl nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GroupScore:
    """A reward's values with what else it knows about the group.

    scores: [G], finite, or None for a completion that the reward has no score for: it gets the mean of the reward's others in the
    group, hence no advantage. metrics: named numbers, averaged over the groups of a step. labels: [G], cluster of each completion
    (equal label = equivalent answers). answers: [G], extracted final answers, None where nothing was found. skipped: the group as a
    whole could not be judged (a service did not answer); it trains nothing, whatever the other rewards say.
    """

    scores: Sequence[float | None]
    metrics: Mapping[str, float] = field(default_factory=dict)
    labels: Sequence[int] | None = None
    answers: Sequence[str | None] | None = None
    skipped: bool = False


class RewardError(ValueError):
    """A reward function could not be loaded, raised, or returned something else than G finite numbers."""
