"""One reward function and a batch of groups -> checked numbers, or a RewardError that says who did what to which
question.

Two styles. `group`: called once per group, sees that group's G completions. `trl`: a function written for TRL's
trainers, called once on the flat batch of all groups. Both may be `async`; the calls of one function then run
concurrently. Add a style as a function (reward, groups) -> [CheckedScore], one per group, and put it into STYLES.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import math
import numbers
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewards.contract import GroupScore, PolicyLike, RewardError
from rewards.loading import user_line


class RolloutLike(Protocol):
    """What rewards may read of a rollout; rl.records.Rollout is one. All are [T].

    entropies (nats) and self_certainties (KL from uniform, nats): None unless a reward of the run has
    `needs_token_statistics`."""

    @property
    def token_ids(self) -> Sequence[int]: ...

    @property
    def logprobs(self) -> Sequence[float]: ...

    @property
    def entropies(self) -> Sequence[float] | None: ...

    @property
    def self_certainties(self) -> Sequence[float] | None: ...


@dataclass(frozen=True, slots=True)
class GroupInput:
    """One question with its G completions, as rewards see it.

    answer: gold answer or None. columns: the question's other columns. prompt: rendered prompt, for TRL's functions
    ("": the question). rollouts: [G], for rewards whose signature names `rollouts`. policy: for rewards with
    `needs_policy`.
    """

    question_id: str
    question: str
    completions: Sequence[str]
    answer: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)
    prompt: str = ""
    rollouts: Sequence[RolloutLike] | None = None
    policy: PolicyLike | None = None


@dataclass(frozen=True, slots=True)
class CheckedScore:
    """scores: [G], finite; None means that the function has no score for this completion. skipped: as in GroupScore."""

    scores: tuple[float | None, ...]
    metrics: Mapping[str, float]
    labels: tuple[int, ...] | None = None
    answers: tuple[str | None, ...] | None = None
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Reward:
    """A loaded function with its name in metrics, the `use` it was loaded by, and its configured arguments."""

    name: str
    use: str
    function: Callable[..., Any]
    arguments: Mapping[str, object]

    @property
    def needs_answer(self) -> bool:
        return bool(getattr(self.function, "needs_answer", False))

    @property
    def needs_token_statistics(self) -> bool:
        return bool(getattr(self.function, "needs_token_statistics", False))

    @property
    def needs_policy(self) -> bool:
        return bool(getattr(self.function, "needs_policy", False))

    @property
    def any_thread(self) -> bool:
        """Whether it may be called outside the main thread: this package's may, others say so. Time-outs by alarm,
        which many graders have, work in the main thread only; some then score 0 without a word."""
        module = str(getattr(self.function, "__module__", type(self.function).__module__))
        return bool(getattr(self.function, "any_thread", module.partition(".")[0] == __name__.partition(".")[0]))

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of this name."""
        return name in (_parameters(self.function) or {})

    def check_arguments(self, style: str) -> None:
        """Raises RewardError for a configured argument, or a required parameter, that the other side does not have."""
        if style != "group" and (self.needs_policy or self.needs_token_statistics):
            raise RewardError(f"{self.label} needs the policy or token statistics, which only style: group hands over")
        parameters = _parameters(self.function)
        if parameters is None:
            return
        named = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        for argument in self.arguments:
            if argument not in named:
                own = [
                    name for name in named if name not in ("question", "completions", "answer", "rollouts", "policy")]
                close = difflib.get_close_matches(argument, own, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"its parameters: {', '.join(own) or 'none'}"
                raise RewardError(f"{self.label} has no parameter {argument!r}, which its arguments set; {hint}")
        state = parameters.get("trainer_state") if style == "trl" else None
        if state is not None and state.default is inspect.Parameter.empty:
            raise RewardError(
                f"{self.label} asks for trainer_state, which only TRL's trainer has; give the parameter a default")

    @property
    def label(self) -> str:
        return f"reward {self.name!r} ({self.use})"

    def error(self, group: GroupInput | None, what: str) -> RewardError:
        question = f", question {group.question_id!r}" if group is not None else ""
        return RewardError(what, where=self.label + question)

    def raised(self, group: GroupInput | None, error: Exception) -> RewardError:
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        place = user_line(error, code.co_filename if code is not None else None)
        return self.error(group, f"raised {type(error).__name__}: {error} at {place}")


def score_per_group(reward: Reward, groups: Sequence[GroupInput]) -> list[CheckedScore]:
    """Style `group`: fn(question=, completions=, answer=, **columns, **arguments) for each group."""
    parameters = _parameters(reward.function)
    takes_rollouts = parameters is not None and "rollouts" in parameters
    calls = []
    for group in groups:
        keywords = {
            **group.columns, "question": group.question, "completions": list(group.completions), "answer": group.answer,
            **reward.arguments}
        if takes_rollouts:
            keywords["rollouts"] = group.rollouts
        if reward.needs_policy:
            keywords["policy"] = group.policy
        _check_signature(reward, group, keywords)
        calls.append((group, keywords))
    if (prepare := getattr(reward.function, "prepare", None)) is not None:
        prepare([keywords for _, keywords in calls])
    results = _call_all(reward, calls)
    return [_checked(reward, group, result) for group, result in zip(groups, results, strict=True)]


def score_flat(reward: Reward, groups: Sequence[GroupInput]) -> list[CheckedScore]:
    """Style `trl`: fn(prompts=, completions=, completion_ids=, **columns) over all groups' completions.

    Each is a list over the completions. Prompts and completions are strings. `question` and `answer` are columns too; a
    column that a group lacks is None there. `log_metric(name, value)` becomes a metric, `log_extra` is accepted and has
    no table to write to.
    """
    logged: dict[str, list[float]] = {}
    keywords = {**_flat_columns(groups), **reward.arguments,
                "log_metric": lambda name, value: logged.setdefault(str(name), []).append(float(value)),
                "log_extra": lambda column, values: None}
    parameters = _parameters(reward.function)
    if parameters is not None and inspect.Parameter.VAR_KEYWORD not in [item.kind for item in parameters.values()]:
        keywords = {name: value for name, value in keywords.items() if name in parameters}
    _check_signature(reward, None, keywords)
    only = groups[0] if len(groups) == 1 else None
    values = _values(reward, only, _call_all(reward, [(only, keywords)])[0])
    total = sum(len(group.completions) for group in groups)
    if len(values) != total:
        raise reward.error(
            only, f"returned {len(values)} values for {total} completions; return one number or None for each")
    metrics = {name: math.fsum(items) / len(items) for name, items in logged.items()}
    scores, at = [], 0
    for group in groups:
        part = values[at:at + len(group.completions)]
        at += len(group.completions)
        scores.append(CheckedScore(tuple(None if value is None else _finite(reward, group, i, value)
                                         for i, value in enumerate(part)), _checked_metrics(reward, group, metrics)))
    return scores


STYLES: dict[str, Callable[[Reward, Sequence[GroupInput]], list[CheckedScore]]] = {
    "group": score_per_group, "trl": score_flat}


def _flat_columns(groups: Sequence[GroupInput]) -> dict[str, object]:
    def repeat(value_of: Callable[[GroupInput], object]) -> list[object]:
        return [value_of(group) for group in groups for _ in group.completions]

    names = dict.fromkeys(name for group in groups for name in group.columns)
    columns: dict[str, object] = {name: repeat(lambda group, name=name: group.columns.get(name)) for name in names}  # type: ignore[misc]
    columns["question"] = repeat(lambda group: group.question)
    columns["answer"] = repeat(lambda group: group.answer)
    columns["prompts"] = repeat(lambda group: group.prompt or group.question)
    columns["completions"] = [completion for group in groups for completion in group.completions]
    rollouts = [group.rollouts for group in groups]
    columns["completion_ids"] = (None if any(item is None for item in rollouts) else
                                 [list(rollout.token_ids) for item in rollouts if item is not None for rollout in item])
    return columns


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature to read
        return None


def _check_signature(reward: Reward, group: GroupInput | None, keywords: Mapping[str, object]) -> None:
    try:
        signature = inspect.signature(reward.function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        raise reward.error(
            group, f"cannot be called: {error}; its signature is {signature}, it is called with "
            f"{', '.join(keywords)}; take keywords by name and add **columns for the rest") from error


def _call_all(reward: Reward, calls: Sequence[tuple[GroupInput | None, Mapping[str, object]]]) -> list[object]:
    results: list[object] = []
    for group, keywords in calls:
        try:
            results.append(reward.function(**keywords))
        except Exception as error:  # whatever a user's function raises is reported with its question and line
            raise reward.raised(group, error) from error
    if not any(inspect.isawaitable(result) for result in results):
        return results
    finished = _run_concurrently([result for result in results if inspect.isawaitable(result)])
    settled = iter(finished)
    for i, result in enumerate(results):
        if inspect.isawaitable(result):
            results[i] = next(settled)
            if isinstance(results[i], Exception):
                raise reward.raised(calls[i][0], results[i]) from results[i]  # type: ignore[arg-type, misc]
    return results


def _run_concurrently(awaitables: Sequence[Awaitable[object]]) -> list[object]:
    """Results or exceptions, in order; in a thread of its own where a loop runs already (a notebook)."""
    async def gather() -> list[object]:
        return list(await asyncio.gather(*awaitables, return_exceptions=True))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(gather())
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.extend(asyncio.run(gather())))
    thread.start()
    thread.join()
    return results


def _checked(reward: Reward, group: GroupInput, result: object) -> CheckedScore:
    size = len(group.completions)
    score = result if isinstance(result, GroupScore) else GroupScore(())
    values = _values(reward, group, score.scores if isinstance(result, GroupScore) else result)
    if len(values) != size:
        raise reward.error(
            group, f"returned {len(values)} values for {size} completions; return one number or None for each")
    for what, items in (("labels", score.labels), ("answers", score.answers)):
        if items is not None and len(items) != size:
            raise reward.error(group, f"gave {len(items)} {what} for {size} completions; give one for each")
    if score.answers is not None:
        for i, answer in enumerate(score.answers):
            if answer is not None and not isinstance(answer, str):
                raise reward.error(group, f"answer {i} is {answer!r} ({type(answer).__name__}), expected text or None")
    labels = None if score.labels is None else tuple(
        _label(reward, group, i, label) for i, label in enumerate(score.labels))
    return CheckedScore(
        tuple(None if value is None else _finite(reward, group, i, value) for i, value in enumerate(values)),
        _checked_metrics(reward, group, score.metrics), labels, None if score.answers is None else tuple(score.answers),
        bool(score.skipped))


def _label(reward: Reward, group: GroupInput, i: int, label: object) -> int:
    if not isinstance(label, numbers.Integral):
        raise reward.error(group, f"label {i} is {label!r} ({type(label).__name__}), expected an integer")
    return int(label)


def _checked_metrics(reward: Reward, group: GroupInput, metrics: Mapping[str, object]) -> dict[str, float]:
    checked = {}
    for name, value in metrics.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise reward.error(group, f"metric {name!r} is {value!r}, expected a finite number")
        checked[name] = float(value)
    return checked


def _values(reward: Reward, group: GroupInput | None, result: object) -> list[object]:
    tolist = getattr(result, "tolist", None)  # numpy arrays and tensors
    values = tolist() if tolist is not None else result
    if not isinstance(values, (list, tuple)):
        raise reward.error(group, f"returned {type(result).__name__} {_short(result)}, expected a list with one number "
                           "for each completion, or a GroupScore")
    return list(values)


def _finite(reward: Reward, group: GroupInput, i: int, value: object) -> float:
    item = getattr(value, "item", None)  # a numpy or torch scalar
    number = item() if item is not None else value
    if not isinstance(number, numbers.Real):
        raise reward.error(group, f"value {i} is {_short(value)} ({type(value).__name__}), expected a finite number")
    if not math.isfinite(number):
        raise reward.error(group, f"value {i} is {float(number)}, expected a finite number")
    return float(number)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
