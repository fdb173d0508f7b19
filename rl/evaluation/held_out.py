"""Held-out questions -> avg@k with its interval: the same prompts and grader as training, on questions that never
train.

The seeds depend on the question and the sample index alone, so that all evaluations of a run share their random
numbers: what changes between two of them is the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.scoring import RewardSum
from rl.generate.protocol import Generator, Request, SamplingParameters, request_seed
from rl.ranks import gather_shares, share_of_rank
from rl.records import Prompt, ScoredGroup
from rl.runs.intervals import Interval, mean_with_interval
from rl.scoring.rewarding import score_groups


@dataclass(frozen=True, slots=True)
class Evaluation:
    """accuracy: mean over questions of the mean over k samples, with a 95% bootstrap interval over questions.

    comparable: the same over the first `comparable_samples` of them alone, which have the same random numbers in every
    evaluation of the run: what checkpoints are ranked by."""

    samples: int
    accuracy: Interval
    comparable_samples: int
    comparable: float
    semantic_entropy: float
    unparsable_share: float
    truncated_share: float
    mean_completion_tokens: float

    @property
    def intervals(self) -> dict[str, Interval]:
        return {f"avg@{self.samples}": self.accuracy}

    def metrics(self) -> dict[str, float]:
        return {
            "held_out/accuracy": self.accuracy.value,
            "held_out/low": self.accuracy.low,
            "held_out/high": self.accuracy.high,
            "held_out/samples": float(self.samples),
            "held_out/semantic_entropy": self.semantic_entropy,
            "held_out/unparsable_share": self.unparsable_share,
            "held_out/truncated_share": self.truncated_share,
            "held_out/completion_length": self.mean_completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out questions with what it takes to grade them. seed: the run's. comparable_samples: how many samples of
    each question every evaluation has at least."""

    prompts: Sequence[Prompt]
    grader: RewardSum
    parameters: SamplingParameters
    seed: int
    rank: int
    num_ranks: int
    comparable_samples: int = 1

    def requests(self, samples: int) -> list[Request]:
        """This rank's requests for k = `samples` completions of each of its questions."""
        return [
            Request(
                prompt, tuple(request_seed(self.seed, "held_out", 0, prompt.question.id, i) for i in range(samples)))
            for prompt in share_of_rank(self.prompts, self.rank, self.num_ranks)
        ]

    def evaluate(self, generator: Generator, samples: int) -> Evaluation:
        """Sample k = `samples` completions of each question and grade them; collective over ranks."""
        groups = generator.generate(self.requests(samples), self.parameters)
        scored = gather_shares(score_groups(self.grader, groups), self.num_ranks, "answer held-out questions")
        return summarise(scored, samples, self.comparable_samples)


def summarise(scored: Sequence[ScoredGroup], samples: int, comparable_samples: int) -> Evaluation:
    """avg@k over the groups of one evaluation; comparable_samples <= samples = k."""
    common = min(comparable_samples, samples)
    rollouts = [rollout for group in scored for rollout in group.group.rollouts]
    answers = [answer for group in scored for answer in group.answers]
    return Evaluation(
        samples=samples,
        accuracy=mean_with_interval([sum(group.rewards) / samples for group in scored]),
        comparable_samples=common,
        comparable=sum(sum(group.rewards[:common]) for group in scored) / (common * len(scored)),
        semantic_entropy=sum(group.entropy for group in scored) / len(scored),
        unparsable_share=sum(answer is None for answer in answers) / len(answers),
        truncated_share=sum(rollout.is_truncated for rollout in rollouts) / len(rollouts),
        mean_completion_tokens=sum(len(rollout.token_ids) for rollout in rollouts) / len(rollouts),
    )
