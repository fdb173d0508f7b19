"""`python -m rewards.explain`: one group, and for each completion what was extracted, what it was compared with, and
what it scored.

The command for a reward that looks wrong. The group is given on the command line, or taken from a run's rollouts.jsonl,
whose rewards are then the run's own. Everything is computed anew by the functions that training calls; recorded values
stand beside it. recorded.py reads runs; a line of the report is a line of `explain`.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from rewards.accuracy import gold_answer
from rewards.answers.description import describe
from rewards.answers.reading import read
from rewards.calling import GroupInput
from rewards.equivalence import explain as explain_pair
from rewards.errors import UserError, report_errors
from rewards.extraction import Extraction, extract
from rewards.loading import load
from rewards.options import add_reward_options, read_object
from rewards.recorded import RecordedGroup, read_group, rewards_of_run
from rewards.scoring import GroupResult, RewardSpec, RewardSum

MAX_SHOWN = 300  # characters of a completion: its end, where the answer is


def explain(specs: Sequence[RewardSpec], group: GroupInput, recorded: RecordedGroup | None = None) -> list[str]:
    """The report's lines. Raises RewardError for whatever the rewards refuse."""
    rewards = RewardSum(specs)
    rewards.check_columns(group.question_id, group.columns)
    (result,) = rewards.score([group])
    last_number = any(spec.arguments.get("last_number") for spec in specs)
    lines = [f"question     {group.question}"]
    gold = None if group.answer is None else gold_answer(group.answer)
    if group.answer is not None:
        lines.append(f"gold answer  {gold}" + (f"   (from {_end(group.answer)})" if gold != group.answer else ""))
    for i, completion in enumerate(group.completions):
        lines += ["", f"completion {i}   {_end(completion)}"]
        found = extract(completion, last_number)
        lines += [f"  {line}" for line in (*_of_answer(found, result.answers[i], gold), *_of_cluster(result, i))]
        lines += [f"  score      {scores[i]:g}   {name}" for name, scores in result.scores.items()]
        if len(specs) > 1 or any(spec.weight != 1 for spec in specs):
            lines.append(f"  reward     {result.rewards[i]:g}   the weighted sum")
        if recorded is not None:
            differs = "" if _as_recorded(result, recorded, i) else "   -- differs from now"
            lines.append(f"  recorded   answer {recorded.answers[i]!r}, cluster {recorded.labels[i]}, reward "
                         f"{recorded.rewards[i]:g}{differs}")
    num_clusters = len(set(result.labels))
    lines += ["", f"group        {num_clusters} clusters of {len(result.labels)}, semantic entropy "
              f"{result.entropy:.4g} nats"]
    lines += [f"  {name:<40} {value:.6g}" for name, value in result.metrics.items()]
    return lines


def _of_answer(found: Extraction, answer: str | None, gold: str | None) -> list[str]:
    """What was extracted, and what it was compared with. answer: the one that the rewards judged."""
    lines = [f"extracted  {_short(found.answer)}   by rule: {found.rule}"
             + (" (see rewards/extraction.py)" if found.answer is None else "")]
    if answer != found.answer:
        lines.append(f"answer     {_short(answer)}   (the reward's own extraction)")
    if answer is not None and gold is not None:
        lines += _headed("against the gold answer", explain_pair(answer, gold))
    elif answer is not None:
        lines.append(f"read as    {describe(read(answer))}")
    return lines


def _of_cluster(result: GroupResult, i: int) -> list[str]:
    """Who else gave the answer, and why it counts as the same."""
    label, answer = result.labels[i], result.answers[i]
    others = [k for k, other in enumerate(result.labels) if other == label and k != i]
    lines = [f"cluster    {label}" + (f", with completion {', '.join(map(str, others))}" if others else ", alone")]
    founder = result.labels.index(label)
    founding = result.answers[founder]
    if founder != i and answer is not None and founding is not None and founding != answer:
        lines += _headed(f"  since {_short(founding)} founded it:", explain_pair(founding, answer))
    return lines


def _headed(head: str, lines: Sequence[str]) -> list[str]:
    return [f"{'' if n else head:<25}{line}" for n, line in enumerate(lines)]


def _as_recorded(result: GroupResult, recorded: RecordedGroup, i: int) -> bool:
    """Labels are compared as partitions: whom the completion is with."""
    def together(labels: Sequence[int]) -> list[bool]:
        return [label == labels[i] for label in labels]

    return (result.answers[i] == recorded.answers[i] and together(result.labels) == together(recorded.labels)
            and abs(result.rewards[i] - recorded.rewards[i]) < 1e-9)


def _end(text: str) -> str:
    return repr(text) if len(text) <= MAX_SHOWN else f"...{text[-MAX_SHOWN:]!r} ({len(text)} characters)"


def _short(text: str | None) -> str:
    if text is None:
        return "nothing"
    return text if len(text) <= 120 else f"{text[:60]} ... {text[-50:]} ({len(text)} characters)"


def main(words: Sequence[str] | None = None) -> int:
    """0, or 2 with one line that says what is wrong."""
    def show() -> int:
        print("\n".join(_explain_given(_parse(words))))
        return 0

    return report_errors(show)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m rewards.explain", description="Why a reward gave what it gave.")
    parser.add_argument(
        "--reward", metavar="REWARD", help="package.module:name or file.py:name; of --rollouts the run's own by default"
    )
    add_reward_options(parser)
    parser.add_argument("--question", default="", help="the question")
    parser.add_argument("--answer", help="its gold answer")
    parser.add_argument("--completion", action="append", default=[], help="a completion; once for each")
    parser.add_argument("--rollouts", type=Path, metavar="PATH", help="a run's folder, or its rollouts.jsonl")
    parser.add_argument("--step", type=int, help="which step of the run; the last one that has the question by default")
    parser.add_argument(
        "--question-id", metavar="ID", help="which question of the run; the first one of the step by default")
    return parser.parse_args(words)


def _explain_given(given: argparse.Namespace) -> list[str]:
    group, recorded = _group_given(given)
    if given.reward is not None:
        specs = [RewardSpec(given.reward, style=given.style, arguments=read_object("--arguments", given.arguments))]
    else:
        specs = rewards_of_run(given.rollouts)
    left_out = [spec for spec in specs if _reads_tokens(spec)]
    specs = [spec for spec in specs if spec not in left_out]
    notes = [
        f"not computed {spec.use}: it reads tokens or asks the policy, which only a training run has"
        for spec in left_out]
    if not specs:
        raise UserError(
            "; ".join(notes)
            + ". Name another with --reward, such as rewards.accuracy:accuracy, to see how answers are read")
    if recorded is None:
        return [*notes, *explain(specs, group)]
    if left_out and given.reward is None:
        notes.append("so the sums below are without it, and differ from the recorded ones")
    title = f"step {recorded.step}, question {recorded.question_id}, rewards: {', '.join(spec.use for spec in specs)}"
    # Another reward than the run's has nothing to be compared with.
    return [title, *notes, *explain(specs, group, recorded if given.reward is None and not left_out else None)]


def _group_given(given: argparse.Namespace) -> tuple[GroupInput, RecordedGroup | None]:
    """The group of the command line, or the one that a run recorded."""
    columns = read_object("--columns", given.columns)
    if given.rollouts is not None:
        recorded = read_group(given.rollouts, given.step, given.question_id)
        answer = recorded.answer if given.answer is None else given.answer
        return GroupInput(recorded.question_id, recorded.question, recorded.completions, answer,
                          {**recorded.columns, **columns}, recorded.prompt), recorded
    if given.reward is None:
        raise UserError(
            "--reward is missing; name one, such as --reward rewards.accuracy:accuracy, or a run with --rollouts")
    if not given.completion:
        raise UserError(
            "there is no completion to explain; give at least one with --completion TEXT, or a run with --rollouts")
    return GroupInput("given here", given.question, given.completion, given.answer, columns), None


def _reads_tokens(spec: RewardSpec) -> bool:
    """Whether the function cannot be called without the tokens that were sampled, the policy, or votes of its
    average."""
    function = load(spec.use)
    if any(getattr(function, name, False) for name in ("needs_policy", "needs_token_statistics", "needs_votes")):
        return True
    parameters = inspect.signature(function).parameters
    return any(
        name in parameters and parameters[name].default is inspect.Parameter.empty
        for name in ("rollouts", "completion_ids"))


if __name__ == "__main__":
    sys.exit(main())
