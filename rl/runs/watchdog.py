"""Stops a run that collapses: rewards go in, and an alarm comes out when the policy games them.

Every label-free reward is gamed in the end (arXiv:2505.21444, 2603.08660): reward rises, accuracy falls.
`collapse_metrics` measures a step's groups, `Watchdog` judges the numbers by the rules of `watchdog.*` in the
configuration. To add a rule: a method of `Watchdog` that returns an `Alarm`, its setting in rl/config.py, and its name
in `Rule`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

from rl.config import WatchdogSection
from rl.records import Rollout, ScoredGroup
from rl.runs.reasoning import text_before_answer

Rule = Literal["falling_accuracy", "accuracy_drop", "nothing_gained", "one_answer", "unparsable"]

FEWEST_QUESTIONS = 4
"""Batches with fewer different questions say nothing about one answer for all: two questions share an answer by
chance."""

FEWEST_REASONING_CHARACTERS = 3

LEAST_RETURN = 0.1
"""Accuracy that a policy should gain for each unit of reward: a tenth is far below what good runs gain (about one,
where the reward is a share such as agreement), and enough to tell a gain from the noise of evaluations."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What messages say of the number that a run raises. means: what it says when that rises and accuracy falls; other:
    what else could be had; in_vain: why it may rise for nothing, and the remedy; None: it says nothing of how much
    accuracy it should bring."""

    name: str
    means: str
    other: str
    in_vain: str | None


REWARD_GOAL = Goal(
    "the reward",
    "the policy games the reward",
    "another reward, selection.low",
    "The policy learns to please the reward, not to be right: a label-free reward needs a base that is mostly right "
    "where it agrees with itself (maj@k of python -m eval.run). Use a supervised warm-up, a stronger base or gold "
    "answers")
TEACHER_GOAL = Goal(
    "minus the distance to the teacher (distillation/reverse_kl)",
    "the policy comes near a teacher that is less often right than it was",
    "another teacher, rewards beside it",
    None,
)  # nats are no shares, and a student may be as often right as its teacher from the start


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why the run should stop; the message is for people and names the rule's setting and the remedy."""

    rule: Rule
    step: int
    message: str


@dataclass(frozen=True, slots=True)
class StepSignals:
    """What one training step shows. reward: its mean; shares in [0, 1] as in `collapse_metrics`."""

    step: int
    reward: float
    num_questions: int
    majority_answer_share: float
    unparsable_share: float


@dataclass(frozen=True, slots=True)
class JudgedEvaluation:
    """reward: the mean of what the run raises over the steps since the evaluation before; None before the first."""

    step: int
    accuracy: float
    reward: float | None

    def to_json(self) -> list[float | None]:
        return [self.step, self.accuracy, self.reward]


@dataclass(frozen=True, slots=True)
class WatchdogState:
    """evaluations: the last ones, as far as a rule looks back. first, best: of the run. one_answer_steps,
    unparsable_steps: how many steps in a row have shown the sign. majorities: question id -> majority answer at its
    last visit."""

    evaluations: tuple[JudgedEvaluation, ...]
    first: JudgedEvaluation | None
    best: JudgedEvaluation | None
    one_answer_steps: int
    unparsable_steps: int
    majorities: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {
            "evaluations": [evaluation.to_json() for evaluation in self.evaluations],
            "first": None if self.first is None else self.first.to_json(),
            "best": None if self.best is None else self.best.to_json(),
            "one_answer_steps": self.one_answer_steps, "unparsable_steps": self.unparsable_steps,
            "majorities": dict(self.majorities)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of to_json. Raises: KeyError or TypeError where it is not one."""
        first, best = value.get("first"), value["best"]
        return cls(
            evaluations=tuple(JudgedEvaluation(*item) for item in value["evaluations"]),
            first=None if first is None else JudgedEvaluation(*first),
            best=None if best is None else JudgedEvaluation(*best), one_answer_steps=value["one_answer_steps"],
            unparsable_steps=value["unparsable_steps"], majorities=dict(value["majorities"]))


class Watchdog:
    """A state machine over steps and evaluations; with its state a resumed run judges as the uninterrupted one.

    goal: what `observe_evaluation` is given as the mean reward; TEACHER_GOAL for a run without rewards."""

    def __init__(self, settings: WatchdogSection, goal: Goal = REWARD_GOAL) -> None:
        self._settings, self._goal = settings, goal
        self._evaluations: list[JudgedEvaluation] = []
        self._first: JudgedEvaluation | None = None
        self._best: JudgedEvaluation | None = None
        self._one_answer_steps = 0
        self._unparsable_steps = 0
        self._majorities: dict[str, str] = {}

    def measure(self, groups: Sequence[ScoredGroup]) -> dict[str, float]:
        """`collapse_metrics` of a step's groups, remembering each question's majority answer for its next visit."""
        metrics, self._majorities = collapse_metrics(groups, self._majorities)
        return metrics

    def observe_step(self, signals: StepSignals) -> Alarm | None:
        """Judge one training step: one answer for everything, or no answers, over `window` steps in a row.

        A batch with fewer than FEWEST_QUESTIONS different questions neither counts towards the first rule nor breaks
        its row.
        """
        settings = self._settings
        if signals.num_questions >= FEWEST_QUESTIONS:
            collapsed = signals.majority_answer_share > settings.max_answer_share
            self._one_answer_steps = self._one_answer_steps + 1 if collapsed else 0
        unparsable = signals.unparsable_share > settings.max_unparsable_share
        self._unparsable_steps = self._unparsable_steps + 1 if unparsable else 0
        if not settings.enabled:
            return None
        if self._one_answer_steps >= settings.window:
            return Alarm(
                "one_answer",
                signals.step,
                f"step {signals.step}: the policy gives one answer to different questions: for {self._one_answer_steps}"
                f" steps in a row one answer was the majority answer of more than {settings.max_answer_share:.0%} of a "
                f"batch's questions (now {signals.majority_answer_share:.0%} of {signals.num_questions}). Go on from "
                "the best checkpoint with a lower optim.lr or with selection.low set; where the questions truly share "
                "answers (yes/no), raise watchdog.max_answer_share")
        if self._unparsable_steps >= settings.window:
            return Alarm(
                "unparsable",
                signals.step,
                f"step {signals.step}: for {self._unparsable_steps} steps in a row more than "
                f"{settings.max_unparsable_share:.0%} of the completions had no answer (now "
                f"{signals.unparsable_share:.0%}). Look into rollouts.jsonl: are they cut (raise "
                "sampling.max_completion_tokens), does the prompt ask for the answer's form (prompt.template), or is "
                "the text broken (lower optim.lr)? Where that is how training begins, raise "
                "watchdog.max_unparsable_share")
        return None

    def observe_evaluation(
        self, step: int, accuracy: float, mean_reward: float | None, noise: float = 0.0
    ) -> Alarm | None:
        """Judge one evaluation on held-out questions.

        mean_reward: mean training reward of the steps since the evaluation before, None before the first step. noise: a
        fall over `patience` evaluations counts only if it is larger, a gain in any case; the half-width of the
        accuracy's 95% interval is a good value.
        """
        now = JudgedEvaluation(step, accuracy, mean_reward)
        self._evaluations = [*self._evaluations, now][
            -max(self._settings.patience + 1, self._settings.max_vain_evaluations) :]
        if self._first is None:
            self._first = now
        if self._best is None or accuracy > self._best.accuracy:
            self._best = now
        if not self._settings.enabled:
            return None
        return (
            self._dropped(now, self._best)
            or self._fell_while_reward_rose(noise)
            or self._gained_nothing(self._first, noise))

    def _dropped(self, now: JudgedEvaluation, best: JudgedEvaluation) -> Alarm | None:
        # Accuracies are shares of counts: a drop of exactly the bound must not alarm because 0.7 - 0.15 is not 0.55 in
        # binary.
        if best.accuracy - now.accuracy <= self._settings.max_drop + 1e-9:
            return None
        return Alarm(
            "accuracy_drop",
            now.step,
            f"step {now.step}: held-out accuracy is {now.accuracy:.3f}, more than {self._settings.max_drop:g} below the"
            f" best, {best.accuracy:.3f} at step {best.step}. The best checkpoint is kept: use it, or go on from it "
            "with a lower optim.lr. To allow a deeper fall raise watchdog.max_drop")

    def _fell_while_reward_rose(self, noise: float) -> Alarm | None:
        span = self._evaluations[-(self._settings.patience + 1):]
        if len(span) <= self._settings.patience:
            return None
        if any(later.accuracy >= earlier.accuracy for earlier, later in pairwise(span)):
            return None
        first, last = span[0], span[-1]
        # The evaluation before the first step has no reward; the next one's then is where the span begins.
        rewards = [evaluation.reward for evaluation in span if evaluation.reward is not None]
        if len(rewards) < 2 or rewards[-1] <= rewards[0] or first.accuracy - last.accuracy <= noise:
            return None
        return Alarm(
            "falling_accuracy",
            last.step,
            f"step {last.step}: held-out accuracy fell in {self._settings.patience} evaluations in a row "
            f"({' > '.join(f'{evaluation.accuracy:.3f}' for evaluation in span)}) while {self._goal.name} rose from "
            f"{rewards[0]:.3f} to {rewards[-1]:.3f}: {self._goal.means}. Use the best checkpoint, or go on from it "
            f"with {self._goal.other} or a lower optim.lr. To wait longer raise watchdog.patience")

    def _gained_nothing(self, first: JudgedEvaluation, noise: float) -> Alarm | None:
        # A policy that cannot fall far, because it is right by chance only, never meets the two rules above. One that
        # has gained and stays on its height does not meet this one, however its reward creeps up: its accuracy lies
        # above the first.
        if self._goal.in_vain is None:
            return None
        span = self._evaluations[-self._settings.max_vain_evaluations:]
        rewards = [evaluation.reward for evaluation in span if evaluation.reward is not None]
        if len(rewards) < self._settings.max_vain_evaluations or any(
            later <= earlier for earlier, later in pairwise(rewards)
        ):
            return None
        mean = sum(evaluation.accuracy for evaluation in span) / len(span)
        # The bound by noise is for rewards on a larger scale than accuracy's.
        if mean - first.accuracy > min(noise, LEAST_RETURN * (rewards[-1] - rewards[0])):
            return None
        return Alarm(
            "nothing_gained",
            span[-1].step,
            f"step {span[-1].step}: over the last {len(span)} evaluations {self._goal.name} rose each time, from "
            f"{rewards[0]:.3f} to {rewards[-1]:.3f}, and held-out accuracy gained nothing: {mean:.3f} on average, "
            f"{first.accuracy:.3f} before training. {self._goal.in_vain}. To wait longer raise "
            "watchdog.max_vain_evaluations")

    def state(self) -> WatchdogState:
        return WatchdogState(tuple(self._evaluations), self._first, self._best, self._one_answer_steps,
                             self._unparsable_steps, dict(self._majorities))

    def load_state(self, state: WatchdogState) -> None:
        self._evaluations, self._first, self._best = list(state.evaluations), state.first, state.best
        self._one_answer_steps, self._unparsable_steps = state.one_answer_steps, state.unparsable_steps
        self._majorities = dict(state.majorities)


def collapse_metrics(
    groups: Sequence[ScoredGroup], majorities: Mapping[str, str]
) -> tuple[dict[str, float], dict[str, str]]:
    """A step's signs of collapse, and `majorities` (question id -> majority answer at its last visit) brought up to
    date.

    num_questions: different questions. majority_answer_share: of these, the share with the most frequent majority
    answer; answers of different questions are equal when their stripped texts are. num_distinct_answers: over all
    completions.
    unanimous_share: groups whose completions all share one answer. majority_flip_share: of the questions seen before,
    those whose majority answer changed. completion_length: mean tokens. no_reasoning_share: of the answered
    completions, those with fewer than FEWEST_REASONING_CHARACTERS characters before the answer. unparsable_share,
    truncated_share: of all completions. A tie for the largest cluster is no majority. All shares are in [0, 1], 0 where
    there is nothing to count.
    Raises: ValueError without a group.
    """
    if not groups:
        raise ValueError("collapse_metrics needs at least one group")
    current = {group.group.question.id: majority_answer(group) for group in groups}
    found = {question: answer for question, answer in current.items() if answer is not None}
    revisited = [question for question in found if question in majorities]
    most_frequent = max(Counter(found.values()).values(), default=0)
    completions = [(group, rollout, answer) for group in groups
                   for rollout, answer in zip(group.group.rollouts, group.answers, strict=True)]
    answered = [(group, rollout, answer) for group, rollout, answer in completions if answer is not None]
    metrics = {
        "num_questions": float(len(current)),
        "majority_answer_share": most_frequent / len(current),
        "num_distinct_answers": float(len({answer.strip() for _, _, answer in answered})),
        "unanimous_share": sum(_is_unanimous(group) for group in groups) / len(groups),
        "majority_flip_share": _share(
            sum(found[question] != majorities[question] for question in revisited), len(revisited)),
        "completion_length": sum(len(rollout.token_ids) for _, rollout, _ in completions) / len(completions),
        "no_reasoning_share": _share(sum(_has_no_reasoning(*item) for item in answered), len(answered)),
        "unparsable_share": 1 - len(answered) / len(completions),
        "truncated_share": sum(rollout.is_truncated for _, rollout, _ in completions) / len(completions),
    }
    return metrics, {**majorities, **found}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def majority_answer(scored: ScoredGroup) -> str | None:
    """The stripped answer of the founder of the largest answered cluster; None for a tie or without any answer."""
    if scored.majority is None:
        return None
    answer = scored.answers[scored.labels.index(scored.majority)]
    assert answer is not None
    return answer.strip()


def _is_unanimous(scored: ScoredGroup) -> bool:
    return None not in scored.answers and len(set(scored.labels)) == 1


def _has_no_reasoning(scored: ScoredGroup, rollout: Rollout, answer: str) -> bool:
    """Whether the completion begins with its answer."""
    return len(text_before_answer(scored, rollout, answer).strip(" \t\r\n$")) < FEWEST_REASONING_CHARACTERS
