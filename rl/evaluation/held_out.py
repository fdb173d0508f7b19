"""Held-out questions -> avg@k with its interval: the same prompts and grader as training, on questions that never
train.

The seeds depend on the question and the sample index alone, so that all evaluations of a run share their random
numbers: what changes between two of them is the policy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rewards.scoring import RewardSum
from rl.generate.protocol import Generator, Request, SamplingParameters, request_seed
from rl.ranks import gather_shares, share_of_rank
from rl.records import Prompt, ScoredGroup
from rl.runs.intervals import Interval, mean_with_interval
from rl.scoring.rewarding import score_groups


@dataclass(frozen=True, slots=True)
class Evaluation:
    """accuracy: mean over questions of the mean over k samples, with a 95% bootstrap interval over questions. each: the
    same of every question, by its id. majority_right: ids of those whose one largest cluster of answers is right.
    length_right, length_wrong: mean tokens of right and wrong completions; None where there are none.

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
    each: Mapping[str, float]
    majority_right: frozenset[str]
    length_right: float | None
    length_wrong: float | None

    @property
    def intervals(self) -> dict[str, Interval]:
        return {f"avg@{self.samples}": self.accuracy}

    def metrics(self) -> dict[str, float]:
        lengths = {"held_out/length_right": self.length_right, "held_out/length_wrong": self.length_wrong}
        return {
            "held_out/accuracy": self.accuracy.value,
            "held_out/low": self.accuracy.low,
            "held_out/high": self.accuracy.high,
            "held_out/samples": float(self.samples),
            "held_out/semantic_entropy": self.semantic_entropy,
            "held_out/unparsable_share": self.unparsable_share,
            "held_out/truncated_share": self.truncated_share,
            "held_out/completion_length": self.mean_completion_tokens,
            "held_out/majority_right": len(self.majority_right) / len(self.each),
            **{name: value for name, value in lengths.items() if value is not None},
        }

    def since(self, right_before: Collection[str]) -> dict[str, float]:
        """What became of the questions whose majority was right before training (their ids), and of the others, whose
        majority was wrong, a tie or no answer: accuracy of either part, missing where it is empty, and the shares of
        all questions whose majority is no longer right, or is right now."""
        right = [value for question, value in self.each.items() if question in right_before]
        wrong = [value for question, value in self.each.items() if question not in right_before]
        parts = {"held_out/accuracy_where_majority_was_right": right,
                 "held_out/accuracy_where_majority_was_wrong": wrong}
        return {name: sum(values) / len(values) for name, values in parts.items() if values} | {
            "held_out/majority_lost": len(set(right_before) - self.majority_right) / len(self.each),
            "held_out/majority_gained": len(self.majority_right - set(right_before)) / len(self.each)}


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
        each={group.group.question.id: sum(group.rewards) / samples for group in scored},
        majority_right=frozenset(group.group.question.id for group in scored if _is_majority_right(group)),
        length_right=_mean_length(scored, is_right=True), length_wrong=_mean_length(scored, is_right=False),
    )


RIGHT = 0.5
"""A grader's value above which a completion counts as right, where it has to be one or the other."""


def _is_majority_right(group: ScoredGroup) -> bool:
    values = [reward for reward, label in zip(group.rewards, group.labels, strict=True) if label == group.majority]
    return bool(values) and sum(values) / len(values) > RIGHT


def _mean_length(scored: Sequence[ScoredGroup], *, is_right: bool) -> float | None:
    lengths = [len(rollout.token_ids) for group in scored
               for rollout, reward in zip(group.group.rollouts, group.rewards, strict=True)
               if (reward > RIGHT) == is_right]
    return sum(lengths) / len(lengths) if lengths else None
