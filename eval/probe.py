"""A short training run without labels, and what it does to questions that it does not train on: the probe of
`eval.forecast --probe STEPS`.

The run is EMPO as the forecast describes it: the same model and prompt, groups of the same size, temperature, length
and entropy bounds, on the questions that follow the measured ones. The measured ones are then sampled again from what
was trained, with the same random numbers. `compare` is what changed, `verdict` what that says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.records import GradedQuestion
from eval.scoring import normalised_entropy
from eval.subject import Subject, find_subject
from eval.tasks import Asked, EvaluationError, Task
from rewards.errors import named
from rl.config import RunConfig
from rl.configuration.loading import load
from rl.configuration.yaml_text import write_mapping
from rl.export import find_source
from rl.policy.policy import refuse_other_scale, stored_lora
from rl.records import Question
from rl.run import release_memory, run
from rl.runs.folder import RunFolder
from rl.runs.intervals import Interval, mean_with_interval
from rl.runs.summary import Summary, read_summary

QUESTIONS_PER_STEP = 32


@dataclass(frozen=True, slots=True)
class Change:
    """A mean over questions before and after training, and of their differences; 95% intervals over questions."""

    before: Interval
    after: Interval
    difference: Interval

    @property
    def direction(self) -> int:
        """1 for a rise, -1 for a fall, 0 where the interval of the differences holds 0."""
        return (self.difference.low > 0) - (self.difference.high < 0)


@dataclass(frozen=True, slots=True)
class Probe:
    """steps: done, of those asked for fewer where the run was stopped (stop_reason, message). agreement: share of a
    question's completions in its largest cluster of answers. entropy: normalised. accuracy: over the questions with an
    answer, None where there is none. run: its folder, None where it is not kept."""

    steps: int
    stop_reason: str
    message: str | None
    agreement: Change
    entropy: Change
    answered: Change
    accuracy: Change | None
    run: str | None

    @property
    def verdict(self) -> str:
        return verdict(self)


def prepare(options: argparse.Namespace, subject: Subject, task: Task, asked: Asked, questions: Sequence[Question],
            folder: Path) -> RunConfig:
    """Into `folder`: the questions to train on, and the configuration (probe.yaml). asked.prompt: the template.
    Raises EvaluationError for too few questions, ConfigError or PolicyError for --probe-set."""
    if len(questions) < QUESTIONS_PER_STEP:
        raise EvaluationError(
            f"{options.data} has {len(questions)} other questions than the {len(task.prompts)} that are measured",
            where=named("--probe"), expected=f"{QUESTIONS_PER_STEP} or more to train on",
            remedy=f"a smaller {named('--limit')}, or more questions")
    folder.mkdir(parents=True, exist_ok=True)
    data, config = folder / "questions.jsonl", folder / "probe.yaml"
    data.write_text("".join(
        json.dumps({**question.columns, "id": question.id, "question": question.text}) + "\n"
        for question in questions), encoding="utf-8")
    config.write_text(write_mapping(_settings(options, subject, task, asked, folder.resolve())), encoding="utf-8")
    found = load(config.resolve(), options.probe_set)
    if subject.model.adapter is not None:
        refuse_other_scale(Path(subject.model.adapter), found.lora)
    return found


def train(config: RunConfig) -> tuple[Subject, Summary]:
    """What was trained, and how the run ended. Raises what a run raises."""
    with contextlib.redirect_stdout(sys.stderr):  # what a run says at its end is no part of the forecast
        run(config, None)
    release_memory()
    source = find_source(str(config.run_dir))
    base, adapter = (None, str(config.run_dir)) if source.adapter is not None else (source.base.path, None)
    trained = find_subject(base, adapter, dtype=config.model.dtype, trust_remote_code=config.model.trust_remote_code)
    return trained, read_summary(RunFolder(config.run_dir))


def _settings(options: argparse.Namespace, subject: Subject, task: Task, asked: Asked, folder: Path
              ) -> dict[str, Any]:
    """The run's configuration, as far as it is not the default."""
    parameters = task.parameters
    lora = None if subject.model.adapter is None else stored_lora(Path(subject.model.adapter))
    return {
        **({} if lora is None else {"lora": {"rank": lora.rank, "alpha": lora.alpha}}),
        "seed": options.seed, "steps": options.probe, "run_dir": str(folder / "run"),
        "model": subject.model.model_dump(mode="json"),
        "data": {"path": str(folder / "questions.jsonl"), "columns": {"answer": None},
                 "max_prompt_tokens": task.max_tokens},
        "prompt": {
            "template": asked.prompt, "chat_template": asked.chat_template,
            "chat_template_kwargs": dict(asked.chat_template_kwargs),
            "date": None if asked.date is None else asked.date.isoformat()},
        "sampling": {
            "questions_per_step": QUESTIONS_PER_STEP, "group_size": min(options.group_size, options.k),
            "temperature": parameters.temperature, "top_p": parameters.top_p,
            "max_completion_tokens": parameters.max_completion_tokens,
            "stop_strings": list(parameters.stop_strings), "stop_token_ids": list(parameters.stop_token_ids)},
        "rewards": [{"use": "rewards.semantic_entropy:semantic_entropy",
                     "arguments": {"last_number": True} if options.last_number else {}}],
        "selection": {"low": options.low, "high": options.high, "mode": "zero"},
        "checkpoint": {"every": options.probe, "keep": 1}, "tracking": {"progress": "lines", "rollouts_every": 0}}


def compare(
    before: Sequence[Sequence[GradedQuestion]], after: Sequence[Sequence[GradedQuestion]], summary: Summary,
    run_dir: str | None,
) -> Probe:
    """before, after: the questions with an answer and those without, each in the same order."""
    together = [[*labelled, *others] for labelled, others in (before, after)]

    def change(of: Callable[[GradedQuestion], float], pair: Sequence[Sequence[GradedQuestion]] = together) -> Change:
        first, second = ([of(question) for question in questions] for questions in pair)
        return Change(mean_with_interval(first), mean_with_interval(second),
                      mean_with_interval([two - one for one, two in zip(first, second, strict=True)]))

    accuracy = change(lambda question: question.accuracy, [before[0], after[0]]) if before[0] else None
    return Probe(
        summary.steps, summary.stop_reason, summary.message, change(agreement), change(normalised_entropy),
        change(answered), accuracy, run_dir)


def agreement(question: GradedQuestion) -> float:
    """Share of the completions in the largest cluster of answers; 0 where nothing was answered."""
    sizes = Counter(sample.cluster for sample in question.samples if sample.answer is not None)
    return max(sizes.values(), default=0) / len(question.samples)


def answered(question: GradedQuestion) -> float:
    return sum(sample.answer is not None for sample in question.samples) / len(question.samples)


def verdict(probe: Probe) -> str:
    """What the changes say of training this model without labels."""
    accuracy, agrees = probe.accuracy, probe.agreement.direction
    if probe.answered.direction < 0:
        return ("Fewer completions state an answer than before: training undoes the format at these settings. A lower "
                "optim.lr (--probe-set) first")
    if accuracy is None:
        return ("Answers agree more than before; whether they are right more often is not known: no measured question "
                "has an answer" if agrees > 0 else _NOTHING)
    if accuracy.direction > 0:
        return "Accuracy rose, from questions alone and on questions that were not trained on: this run may be longer"
    if accuracy.direction < 0:
        return ("Accuracy fell: at these settings agreement teaches wrong answers, whatever the case above. Lower "
                "optim.lr, the votes of the start (configs/label_free.yaml), or labels before a longer run")
    return ("Answers agree more, and accuracy changed no more than chance would have it: more steps, or more questions "
            "with an answer (--limit), decide" if agrees > 0 else _NOTHING)


_NOTHING = "Answers agree no more than before: so few steps change nothing here. More of them, or a higher rate"


def render(probe: Probe) -> list[str]:
    """Lines for people."""
    stopped = "" if probe.stop_reason == "completed" else f"; stopped: {probe.message or probe.stop_reason}"
    changes = {"accuracy": probe.accuracy, "agreement": probe.agreement, "entropy": probe.entropy,
               "answered": probe.answered}
    return [f"probe: {probe.steps} steps on other questions{stopped}",
            *(f"  {name:<12}{_shown(change)}" for name, change in changes.items() if change is not None),
            f"  {probe.verdict}.", *([f"  run: {probe.run}"] if probe.run else [])]


def _shown(change: Change) -> str:
    before, after = (f"{end.value:.3f} [{end.low:.3f}, {end.high:.3f}]" for end in (change.before, change.after))
    difference = change.difference
    return (f"{before} to {after}: {difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]")
