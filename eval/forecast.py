"""`python -m eval.forecast --model M --data FILE`: what training has to work with, before it begins.

Samples k completions of each question, as training would, and prints avg@k, maj@k and pass@k (over the questions with
an answer), the share of completions that state one, the semantic entropy, what entropy bounds would do with such
groups, and from these which kind of training is for this model. With --probe STEPS a short run without labels is
tried (eval/probe.py).
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from eval.errors import run_command
from eval.options import Parser, add_model, add_prompt, add_sampler, add_votes

if TYPE_CHECKING:
    import contextlib

    from eval.benchmarks import Benchmark, LoadedBenchmark
    from eval.probe import Probe
    from eval.readiness import Figures
    from eval.records import GradedQuestion
    from eval.subject import Subject
    from eval.tasks import Asked, Task
    from rl.config import RunConfig
    from rl.runs.intervals import Interval


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigError."""
    parser = Parser("python -m eval.forecast", __doc__ or "")
    add_model(parser)
    group = parser.add_argument_group("the questions")
    group.add_argument(
        "--data", help="JSONL or parquet file of questions like those to train on, some of them with an answer; "
        "reasoning_gym:TASK, or a benchmark of eval.run, too")
    group.add_argument("--limit", type=int, default=64, help="only the first so many questions (default 64)")
    group.add_argument("--grader", help="of the answers: a reward with values in [0, 1] (default: accuracy)")
    group = parser.add_argument_group("the groups of a run")
    group.add_argument(
        "--group-size", type=int, default=8, help="completions of a group, at most -k (sampling.group_size; default 8)")
    group.add_argument("--low", type=float, default=0.2, help="entropy bound, exclusive (selection.low; default 0.2)")
    group.add_argument("--high", type=float, default=0.9, help="entropy bound, exclusive (selection.high; default 0.9)")
    add_votes(parser)
    group = parser.add_argument_group("the probe")
    group.add_argument("--probe", type=int, default=0, metavar="STEPS",
                       help="train so many steps on the questions after --limit, then measure again (default: none)")
    group.add_argument("--probe-set", nargs="+", default=[], metavar="KEY=VALUE",
                       help="settings of that run, such as optim.lr=1e-4 (rl.train --help)")
    group.add_argument("--probe-out", metavar="FOLDER", help="keep the run there (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_prompt(parser, several=False)
    add_sampler(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command)."""
    return run_command(parse, _main, arguments, own={"--benchmarks": "--data"})


def _main(options: argparse.Namespace) -> int:
    import contextlib

    from eval.readiness import CASES, case_of, measure, notes_on
    from eval.subject import subject_of

    _check(options)
    subject = subject_of(options)
    loaded = _questions(options)
    asked = _asked(options, subject, loaded.benchmark)
    tasks = _tasks(options, subject, loaded, asked)
    with contextlib.ExitStack() as stack:
        config = _prepare_probe(options, subject, tasks, asked, stack) if options.probe else None
        labelled, others = before = _sample(options, subject, tasks)
        figures = measure(labelled, others, min(options.group_size, options.k), options.low, options.high)
        if not options.json:
            adapter = f" with {subject.model.adapter}" if subject.model.adapter else ""
            print(f"{subject.model.path}{adapter} on {tasks[0].protocol['source']}\n\n{render(figures)}", flush=True)
        probe = _probe(options, config, tasks, before) if config is not None else None
    case = case_of(figures)
    if options.json:
        found = {
            "model": subject.model.path, "adapter": subject.model.adapter, **asdict(figures), "case": case,
            **asdict(CASES[case]), "notes": notes_on(figures), "protocol": dict(tasks[0].protocol),
            **({} if probe is None else {"probe": {**asdict(probe), "verdict": probe.verdict}})}
        print(json.dumps(found, ensure_ascii=False))
    return 0


def _prepare_probe(options: argparse.Namespace, subject: Subject, tasks: tuple[Task, Task], asked: Asked,
                   stack: contextlib.ExitStack) -> RunConfig:
    """Before anything is sampled: what is wrong with it is met at once. Its folder goes with the stack unless it is
    asked for."""
    import tempfile
    from pathlib import Path

    from eval.probe import QUESTIONS_PER_STEP, prepare

    task = tasks[0] if tasks[0].prompts else tasks[1]
    measured = {prompt.question.text for task in tasks for prompt in task.prompts}
    there = _questions(options, options.limit + options.probe * QUESTIONS_PER_STEP).questions
    folder = Path(options.probe_out or stack.enter_context(tempfile.TemporaryDirectory()))
    return prepare(
        options, subject, task, asked, [question for question in there if question.text not in measured], folder)


def _probe(options: argparse.Namespace, config: RunConfig, tasks: Sequence[Task],
           before: Sequence[Sequence[GradedQuestion]]) -> Probe:
    from eval.probe import compare, render, train

    trained, summary = train(config)
    probe = compare(before, _sample(options, trained, tasks), summary,
                    str(config.run_dir) if options.probe_out else None)
    if not options.json:
        print("\n" + "\n".join(render(probe)))
    return probe


def _check(options: argparse.Namespace) -> None:
    """Raises EvaluationError for what would be met only when all is sampled, or never."""
    from eval.tasks import EvaluationError
    from rewards.errors import named

    if not options.data:
        raise EvaluationError("missing", where=named("--data"), expected="a JSONL or parquet file with questions")
    for option, value in (("-k", options.k), ("--group-size", options.group_size)):
        if value < 2:
            raise EvaluationError(
                where=named(option), seen=str(value), expected="a whole number >= 2: one completion agrees with itself")
    if options.probe < 0:
        raise EvaluationError(where=named("--probe"), seen=str(options.probe), expected="a number of steps, 0 for none")
    if not 0 <= options.low < options.high <= 1:
        raise EvaluationError(
            where=f"{named('--low')}, {named('--high')}", seen=f"{options.low:g}, {options.high:g}",
            expected="0 <= low < high <= 1")


def _questions(options: argparse.Namespace, limit: int | None = None) -> LoadedBenchmark:
    """The first --limit, or `limit`; of a file also those without an answer."""
    from eval.benchmarks import find_benchmark, load_benchmark
    from rl.questions.files import FILE_SUFFIXES

    benchmark = find_benchmark(options.data)
    if options.data.lower().endswith(FILE_SUFFIXES):
        benchmark = replace(benchmark, rows=lambda row, columns: dict(row))
    return load_benchmark(benchmark, limit=options.limit if limit is None else limit)


def _asked(options: argparse.Namespace, subject: Subject, benchmark: Benchmark) -> Asked:
    """With the prompt's template."""
    from eval.prompt import tell_differences, with_prompt
    from eval.tasks import Asked

    asked = with_prompt(
        Asked(ks=(options.k,), temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens,
              prompt=options.prompt, seed=options.seed, head_dtype=subject.model.head_dtype,
              quantization=subject.model.quantization),
        options, subject.run)
    tell_differences(options, subject.run, [(benchmark.name, benchmark.prompt)])
    return replace(asked, prompt=asked.prompt or benchmark.prompt)


def _tasks(options: argparse.Namespace, subject: Subject, loaded: LoadedBenchmark, asked: Asked
           ) -> tuple[Task, Task]:
    """The questions with an answer, and those without, which nobody grades; asked alike."""
    from eval.benchmarks import Grader
    from eval.tasks import build_task
    from rewards.scoring import RewardSpec, RewardSum
    from rl.questions.generated import is_generated

    benchmark = loaded.benchmark
    last_number = {"last_number": True} if options.last_number else {}
    agreement = Grader("rewards.semantic_entropy:semantic_entropy", last_number)  # reads answers, and needs none

    def task(of: LoadedBenchmark, grader: Grader, name: str | None = None) -> Task:
        return build_task(replace(benchmark, grader=grader), of, replace(asked, grader=name), subject.tokenizer,
                          subject.context, end_ids=subject.end_ids)

    whole = task(loaded, agreement)
    is_labelled = [q.answer is not None or is_generated(options.data) for q in loaded.questions]
    labelled, others = (tuple(prompt for prompt, has_answer in zip(whole.prompts, is_labelled, strict=True)
                              if has_answer == wanted) for wanted in (True, False))
    if not labelled:
        return replace(whole, prompts=()), whole
    own = benchmark.grader
    if own.use == Grader().use:  # a benchmark may count last numbers; the rewards of a run do so on request alone
        own = Grader(arguments=last_number)
    graded = task(replace(loaded, questions=tuple(prompt.question for prompt in labelled)), own, options.grader)
    by = {key: value for key, value in graded.protocol.items() if key.startswith("grader")}
    # Where the grader has no clusters, those of agreement: it reads the same answers of both kinds of questions.
    grader = RewardSum([RewardSpec(options.grader) if options.grader else RewardSpec(own.use, arguments=own.arguments),
                        RewardSpec(agreement.use, weight=0.0, arguments=agreement.arguments)])
    return (replace(whole, prompts=labelled, grader=grader, protocol={**whole.protocol, **by}),
            replace(whole, prompts=others))


def _sample(options: argparse.Namespace, subject: Subject, tasks: Sequence[Task]) -> list[list[GradedQuestion]]:
    """The questions of each task, graded."""
    import tempfile
    from pathlib import Path

    from eval.display import Display
    from eval.evaluation import sample_and_grade
    from eval.subject import generator_section, open_generator

    asked = [task for task in tasks if task.prompts]
    total = sum(task.samples * len(task.prompts) for task in asked)
    section = generator_section(options.generator, min(options.max_sequences, total))
    display = Display(total, 0)
    for note in tasks[0].notes:
        display.message(f"note: {note}")
    with tempfile.TemporaryDirectory() as scratch, open_generator(
            subject, section, max_tokens=max(task.max_tokens for task in asked), scratch=Path(scratch)) as generator:
        display.start()
        display.begin(tasks[0].name)
        try:
            return [sample_and_grade(task, task.prompts, generator, display.sampled) if task.prompts else []
                    for task in tasks]
        finally:
            display.end_line()


def render(figures: Figures) -> str:
    """For people: the figures, the case, what to do."""
    from eval.readiness import CASES, case_of, notes_on
    from rl.questions.splits import in_words

    groups, advice = figures.groups, CASES[case_of(figures)]
    splits = ", ".join(f"{in_words(split)} ({share:.0%})" for split, share in groups.splits)
    facts = {
        "questions": f"{figures.num_questions}, {figures.num_labelled} of them with an answer, {figures.k} completions "
        "each",
        f"avg@{figures.k}": _interval(figures.avg, "one sample is right"),
        f"maj@{figures.k}": _interval(figures.maj, "the majority of all is right"),
        f"maj@{groups.size}": _interval(figures.group_maj, "the majority of a run's group is right"),
        f"pass@{figures.k}": _interval(figures.passed, "at least one is right"),
        "answered": f"{figures.answered:.1%} of the completions; cut before they answered: {figures.cut:.1%}",
        "entropy": f"{figures.entropy:.2f} nats, {figures.normalised_entropy:.2f} of ln {figures.k} (0: all agree, 1: "
        "all differ)",
        f"groups of {groups.size}": f"{groups.too_low:.0%} nearly sure (<= {groups.low:g}), {groups.trained:.0%} "
        f"train, {groups.too_high:.0%} guess (>= {groups.high:g})",
        "commonest": splits}
    lines = [f"{name:<14}{fact}" for name, fact in facts.items()]
    lines += ["", advice.title, textwrap.fill(advice.meaning, 110), "", "what to do",
              *(f"  - {step}" for step in advice.steps)]
    return "\n".join([*lines, *(f"\nnote: {note}" for note in notes_on(figures))])


def _interval(found: Interval | None, meaning: str) -> str:
    return "not known: no question has an answer" if found is None else (
        f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]  {meaning}")


if __name__ == "__main__":
    sys.exit(main())
