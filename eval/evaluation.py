"""Tasks and a generator -> graded questions, chunk by chunk: the loop that `eval.run` and evaluation during training
share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from eval.records import GradedQuestion, Sample
from eval.tasks import EvaluationError, Task
from rewards.errors import named
from rewards.scoring import GroupInput, GroupResult, RewardSum
from rl.generate.protocol import Generator
from rl.records import Group, Prompt, ScoredGroup
from rl.scoring.rewarding import score_groups
from rl.scoring.thread import ScoringThread


def chunks_of(task: Task, completions_at_once: int) -> list[tuple[Prompt, ...]]:
    """The task's prompts in order, as many together as make about so many completions; at least one."""
    size = max(1, completions_at_once // task.samples)
    return [task.prompts[start:start + size] for start in range(0, len(task.prompts), size)]


def sample_and_grade(task: Task, prompts: Sequence[Prompt], generator: Generator,
                     sampled: Callable[[Group], None] = lambda group: None) -> list[GradedQuestion]:
    """n completions of each prompt, graded, in the order of the prompts. Graders that allow it work while others are
    still decoding.

    sampled: called with each question's completions as soon as it has all of them. Raises GeneratorError, RewardError,
    and EvaluationError where the grader could not judge."""
    requests = task.requests(prompts)
    rewards = [task.grader] if task.ranker is None else [task.grader, task.ranker]
    if not all(reward.any_thread for reward in rewards):
        groups = generator.generate(requests, task.parameters, lambda index, group: sampled(group))
        scored = [score_groups(reward, groups) for reward in rewards]
        return [graded(task.name, *together) for together in zip(*scored, strict=True)]

    def score(groups: Sequence[Group]) -> list[ScoredGroup]:
        return score_groups(task.grader, groups)

    def finished(index: int, group: Group) -> None:
        thread.take(index, group)
        sampled(group)

    with ScoringThread(score) as thread:
        groups = generator.generate(requests, task.parameters, finished)
        results = thread.results()
    judged = [results[index] for index in range(len(requests))]
    ranked = score_groups(task.ranker, groups) if task.ranker is not None else [None] * len(groups)
    return [graded(task.name, scored, ranks) for scored, ranks in zip(judged, ranked, strict=True)]


def graded(task: str, scored: ScoredGroup, ranks: ScoredGroup | None = None) -> GradedQuestion:
    """A scored group as a record. Raises EvaluationError where the grader gave no verdict, or one outside [0, 1]."""
    question = scored.group.question
    _check_verdicts(task, question.id, scored, "grader")
    if ranks is not None:
        _check_verdicts(task, question.id, ranks, "best-of")
    samples = tuple(
        Sample(
            text=rollout.text, answer=answer, correct=correct, cluster=cluster, truncated=rollout.is_truncated,
            num_tokens=len(rollout.token_ids), seed=rollout.seed,
            ranks_by=None if ranks is None else ranks.rewards[index])
        for index, (rollout, answer, correct, cluster) in enumerate(
            zip(scored.group.rollouts, scored.answers, scored.rewards, scored.labels, strict=True)))
    return GradedQuestion(
        task, question.id, question.text, question.answer, question.columns, samples, _timed_out_share(scored))


def regrade(
    questions: Sequence[GradedQuestion], grader: RewardSum, ranker: RewardSum | None = None
) -> list[GradedQuestion]:
    """The questions with their completions judged anew; what needs computer algebra runs in parallel. Raises
    RewardError, EvaluationError."""
    inputs = [
        GroupInput(
            question_id=q.id, question=q.question, completions=[s.text for s in q.samples], answer=q.gold,
            columns=q.columns)
        for q in questions]
    results = grader.score(inputs)
    ranked = ranker.score(inputs) if ranker is not None else [None] * len(inputs)
    anew = []
    for question, result, ranks in zip(questions, results, ranked, strict=True):
        _check_verdicts(question.benchmark, question.id, result, "grader")
        if ranks is not None:
            _check_verdicts(question.benchmark, question.id, ranks, "best-of")
        anew.append(replace(question, timed_out_share=_timed_out_share(result), samples=tuple(
            replace(sample, answer=answer, correct=correct, cluster=cluster,
                    ranks_by=sample.ranks_by if ranks is None else ranks.rewards[index])
            for index, (sample, answer, correct, cluster) in enumerate(
                zip(question.samples, result.answers, result.rewards, result.labels, strict=True)))))
    return anew


def _check_verdicts(task: str, question_id: str, judged: ScoredGroup | GroupResult, option: str) -> None:
    """Raises EvaluationError where the reward judged not every completion (training fills such gaps, which would invent
    verdicts here), or a grader gave something else than a share of a point."""
    if judged.skipped or judged.metrics.get("group/unscored_share", 0.0) > 0.0:
        raise EvaluationError(
            f"{task}: question {question_id!r} has a completion that it could not judge: no verdict is neither right "
            "nor wrong. What is recorded is kept", where=named(f"--{option}"),
            remedy=f"the same command again when its service answers, or another {named(f'--{option}')}")
    if option == "grader" and (outside := [value for value in judged.rewards if not 0.0 <= value <= 1.0]):
        raise EvaluationError(
            where=f"{named('--grader')}: {task}", seen=f"{outside[0]:g} for question {question_id!r}",
            expected="values in [0, 1], 1 for right", remedy=f"another {named('--grader')}")


def _timed_out_share(judged: ScoredGroup | GroupResult) -> float:
    """The grader's own count, where it has one."""
    return max((value for name, value in judged.metrics.items() if name.endswith("/timed_out_share")), default=0.0)
