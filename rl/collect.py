"""One step's questions -> sampled, scored and selected groups.

Under `selection.mode: refill` further questions are sampled until the batch is full, at most `max_refills` rounds; groups
beyond a full batch are kept for the next step, which then trains them with the importance ratio of the version that sampled them.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewards.scoring import RewardSum
from rl.config import RunConfig
from rl.data_order import QuestionOrder
from rl.generate.protocol import Generator, Request, SamplingParameters, request_seed
from rl.ranks import gather_shares, share_of_rank
from rl.records import Prompt, ScoredGroup
from rl.rewarding import Scorer, score_groups
from rl.selection import Selection, select


@dataclass(frozen=True, slots=True)
class Collected:
    """sampled: every group sampled in this step, over all ranks, in the order of the draw. selection: which of those were kept and refused.

    batch: the groups that train now: those left over by the step before, then newly kept ones. Times in seconds, this rank's."""

    sampled: tuple[ScoredGroup, ...]
    selection: Selection
    batch: tuple[ScoredGroup, ...]
    num_refills: int
    generate_s: float
    reward_s: float


class Collector:
    """Draws questions in order and returns groups; the same on every rank. State: the order and the surplus."""

    def __init__(
        self, config: RunConfig, prompts: Sequence[Prompt], generator: Generator, parameters: SamplingParameters, rewards: RewardSum, *,
        rank: int, num_ranks: int, scorer: Scorer | None = None,
    ) -> None:
        self.order = QuestionOrder(len(prompts), seed=config.seed, shuffle=config.data.shuffle)
        self.surplus: tuple[ScoredGroup, ...] = ()
        self._config = config
        self._prompts = prompts
        self._generator = generator
        self._rewards = rewards
        self._scorer = scorer
        self._rank, self._num_ranks = rank, num_ranks
        self._parameters = replace(parameters, token_statistics=rewards.needs_token_statistics)

    def collect(self, step: int) -> Collected:
        """The groups of training step `step`; collective over ranks."""
        wanted, selection_config = self._config.sampling.questions_per_step, self._config.selection
        refills = selection_config.max_refills if selection_config.mode == "refill" else 0
        selection, generate_s, reward_s, num_rounds = Selection((), ()), 0.0, 0.0, 0
        sampled: tuple[ScoredGroup, ...] = ()
        missing = wanted - len(self.surplus)
        while missing > 0 and num_rounds <= refills:
            num_questions = wanted if selection_config.mode != "refill" else self._round_size(missing, selection, wanted)
            groups, times = self._sample(num_questions, step, num_rounds)
            sampled += tuple(groups)
            selection += select(groups, selection_config.low, selection_config.high)
            generate_s, reward_s, num_rounds = generate_s + times[0], reward_s + times[1], num_rounds + 1
            missing = wanted - len(self.surplus) - len(selection.kept)
        available = self.surplus + selection.kept
        self.surplus = available[wanted:]
        return Collected(sampled, selection, available[:wanted], max(0, num_rounds - 1), generate_s, reward_s)

    def _round_size(self, missing: int, selection: Selection, wanted: int) -> int:
        """As many questions as fill the batch at this step's rate of acceptance, at most a whole batch."""
        total = len(selection.kept) + len(selection.refused)
        rate = len(selection.kept) / total if total else 1.0
        return min(wanted, math.ceil(missing / max(rate, missing / wanted)))

    def _sample(self, num_questions: int, step: int, round_number: int) -> tuple[list[ScoredGroup], tuple[float, float]]:
        prompts = [self._prompts[i] for i in self.order.next(num_questions)]
        requests = [
            Request(prompt, tuple(
                request_seed(self._config.seed, purpose, step, prompt.question.id, i) for i in range(self._config.sampling.group_size)))
            for prompt, purpose in share_of_rank(_with_purpose(prompts, round_number), self._rank, self._num_ranks)
        ]
        started = time.perf_counter()
        groups = self._generator.generate(requests, self._parameters)
        generated = time.perf_counter()
        scored = score_groups(self._rewards, groups, self._scorer)
        finished = time.perf_counter()
        return gather_shares(scored, self._num_ranks), (generated - started, finished - generated)


def _with_purpose(prompts: Sequence[Prompt], round_number: int) -> list[tuple[Prompt, str]]:
    """What enters the seeds beside step and question: the round, and how often the question came before in it (a step that asks for
    more questions than there are draws some again, and must not sample the same completions)."""
    seen: Counter[str] = Counter()
    pairs = []
    for prompt in prompts:
        again = f"-{seen[prompt.question.id]}" if seen[prompt.question.id] else ""
        pairs.append((prompt, f"train-{round_number}{again}"))
        seen[prompt.question.id] += 1
    return pairs
