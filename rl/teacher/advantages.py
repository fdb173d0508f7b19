"""On-policy distillation: the student samples, a teacher gives the log-probabilities of the same tokens, and minus the
per-token reverse KL is the advantage.

A_t = A_i + weight * (ln pi_teacher(o_t) - ln pi_old(o_t)), without a gradient through it, with A_i the advantage of
completion i among its group (0 where there is no reward). The expected policy gradient of the second term, at the
contexts that were sampled, is minus the gradient of weight * KL(pi || pi_teacher) (Thinking Machines Lab, "On-Policy
Distillation", 2025; MiniLLM, arXiv:2306.08543; GKD, arXiv:2306.13649): a discount of 0, no token is credited with what
the teacher thinks of later ones.

Which distributions. ln pi_old is the trainer's log-probability at the start of the batch, at the sampling temperature:
of the very distribution that was sampled from and whose gradient is taken. The sampler's own number would add its
rounding to each advantage; how the sampler's numerics bias which tokens are sampled is what loss.correction is for. The
teacher's is at temperature 1: the student, sampled at its temperature, is to become the teacher as it is. Tokens that
an older version sampled (rl/collect.py) get the present policy's log-probability, and the importance ratio of the loss
does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rl.kl import k1
from rl.ranks import gather_shares, share_of_rank
from rl.records import PromptCompletion, TrainingGroup


class Teacher(Protocol):
    """A frozen model with the student's vocabulary: local, or behind a server (rl/teacher/teacher.py). description: one
    line for people."""

    description: str

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        """Log-probabilities of the completions' tokens at temperature 1, in order."""
        ...

    def close(self) -> None:
        """Free what it holds; safe to call twice."""
        ...


def distilled_advantages(
    advantages_T: Tensor, logprobs_T: Tensor, teacher_logprobs_T: Tensor, *, weight: float, cap: float | None = None
) -> Tensor:
    """A_t = A_i + bound(weight * (ln pi_teacher - ln pi_old)): [T], detached; bound: to [-cap, cap], None: none.

    teacher_logprobs_T: NaN where the teacher was not asked, which adds nothing."""
    added_T = -weight * k1(logprobs_T, teacher_logprobs_T)
    if cap is not None:
        added_T = added_T.clamp(-cap, cap)
    return (advantages_T + torch.where(teacher_logprobs_T.isnan(), 0.0, added_T)).detach()


def with_teacher(
    teacher: Teacher | None, batch: Sequence[TrainingGroup], trained: Sequence[bool], *, rank: int, num_ranks: int
) -> list[TrainingGroup]:
    """The groups with the teacher's log-probabilities of their completions' tokens, on every rank; collective over
    ranks.

    trained: whether each group trains; the teacher is not asked about the others. About equal completions of a question
    it is asked once. Raises: FloatingPointError where the teacher gives a number that is not finite; what the teacher
    raises."""
    if teacher is None:
        return list(batch)
    pairs = list(dict.fromkeys(
        pair for item, trains in zip(batch, trained, strict=True) if trains for pair in _pairs(item)))
    computed = gather_shares(
        teacher.logprobs(share_of_rank(pairs, rank, num_ranks)), num_ranks, "ask the teacher")
    found = dict(zip(pairs, computed, strict=True))
    for (_, completion), logprobs in found.items():
        assert len(logprobs) == len(completion)
        if not all(map(math.isfinite, logprobs)):
            raise FloatingPointError(
                f"the teacher ({teacher.description}) gives a token the log-probability "
                f"{next(value for value in logprobs if not math.isfinite(value))}; expected finite numbers. Remedy: "
                "teacher.dtype=float32 (of a server: --dtype float32), or another teacher")
    return [
        replace(item, teacher_logprobs=tuple(found[pair] for pair in _pairs(item))) if trains else item
        for item, trains in zip(batch, trained, strict=True)]


def _pairs(item: TrainingGroup) -> list[PromptCompletion]:
    return [(item.group.prompt.token_ids, rollout.token_ids) for rollout in item.group.rollouts]
