"""`python -m eval.run --model M [--adapter A] --benchmarks math500,aime24`: is the policy better, in numbers that
others can compare?

Writes DIR/result.json (avg@k, pass@k and maj@k with 95% intervals over questions), result.md, completions.jsonl (every
completion with its answer and verdict) and plots/. An evaluation that was killed goes on with the same command. `python
-m eval.compare` sets two side by side, `python -m eval.grade` grades the completions again.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.errors import run_command
from eval.options import Parser, add_model, add_prompt, add_sampler, default_out, positive_list
from rl.errors import ConfigError

if TYPE_CHECKING:
    from eval.display import Display
    from eval.records import GradedQuestion
    from eval.store import Completions
    from eval.subject import Subject
    from eval.tasks import Task
    from rl.config import GeneratorSection
    from rl.records import Prompt

    Chunk = tuple[Task, tuple[Prompt, ...]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises ConfigError."""
    parser = Parser("python -m eval.run", __doc__ or "")
    add_model(parser)
    group = parser.add_argument_group("what is evaluated")
    group.add_argument("--benchmarks", help="names (--list), reasoning_gym:TASK, or JSONL files, joined by commas")
    group.add_argument(
        "--data-dir", type=Path, help="read the benchmarks from JSONL files in this folder, not from the hub")
    group.add_argument("--limit", type=int, help="only the first so many questions of each benchmark")
    group.add_argument("--list", action="store_true", help="the benchmarks, with licence and protocol")
    group = parser.add_argument_group("how (where left out, the benchmark's protocol of the literature)")
    group.add_argument("-k", help="the k of avg@k, pass@k and maj@k; several joined by commas")
    group.add_argument(
        "-n", "--samples", type=int, help="completions per question, at least the largest k (default: that)")
    group.add_argument("--temperature", type=float, help="0 is greedy")
    group.add_argument("--top-p", type=float)
    group.add_argument("--max-tokens", type=int, help="completions are cut at this length")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--grader", help="a reward with values in [0, 1], package.module:name or file.py:name")
    group.add_argument(
        "--best-of", help="a reward; best@k is the accuracy of the completion that it likes best among k")
    add_prompt(parser, several=True)
    add_sampler(parser)
    group = parser.add_argument_group("the result")
    group.add_argument("--out", type=Path, help="folder (default: evaluations/NAME)")
    group.add_argument(
        "--restart", action="store_true", help="throw away what an earlier evaluation left in the folder")
    group.add_argument("--no-plots", action="store_true")
    return parser.parse_args(arguments)


def check_words(arguments: Sequence[str]) -> None:
    """Are these words right, and the benchmarks known? Loads no model and no data. Raises ConfigError."""
    from eval.benchmarks import BenchmarkError, find_benchmark

    options = parse(arguments)
    try:
        for name in _asked(options):
            find_benchmark(name, options.data_dir)
    except BenchmarkError as error:
        raise ConfigError(str(error)) from None


def _asked(options: argparse.Namespace) -> list[str]:
    """The benchmarks' names. Raises ConfigError."""
    if not options.benchmarks:
        raise ConfigError(
            "--benchmarks: missing; expected names joined by commas, such as math500,aime24 (--list shows them)")
    return [name.strip() for name in options.benchmarks.split(",") if name.strip()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code (see run_command)."""
    return run_command(parse, _main, arguments)


def _main(options: argparse.Namespace) -> int:
    from eval.benchmarks import list_benchmarks
    from eval.result import terminal_table

    if options.list:
        print(list_benchmarks())
        return 0
    result, out = evaluate(options)
    print(
        f"{result['model']}{' with ' + result['adapter'] if result['adapter'] else ''}\n\n"
        f"{terminal_table(result['benchmarks'])}\n\n"
        f"{'result':<14}{out / 'result.json'}\n{'completions':<14}{out / 'completions.jsonl'}")
    return 0


def evaluate(options: argparse.Namespace) -> tuple[dict[str, Any], Path]:
    """The result as in result.json, and its folder."""
    from eval.store import Completions, add_seconds, day_begun, open_settings
    from eval.subject import generator_section, subject_of

    subject = subject_of(options)
    out = options.out or default_out(options.model, options.adapter)
    tasks = build_tasks(options, subject, None if options.restart else day_begun(out))
    total = sum(task.samples * len(task.prompts) for task in tasks)
    # No room for more sequences than there are.
    section = generator_section(options.generator, min(options.max_sequences, total))
    settings = {"subject": subject.identity(), "generator": section.backend, "max_sequences": options.max_sequences,
                "tasks": {task.name: dict(task.protocol) for task in tasks}}
    goes_on = open_settings(out, settings, restart=options.restart)

    from eval.display import Display

    plan = _plan_chunks(tasks, section)
    completions = Completions(
        out, [tuple((task.name, prompt.question.id) for prompt in prompts) for task, prompts in plan],
        {task.name: task.samples for task in tasks})
    try:
        display = Display(total, sum(len(question.samples) for question in completions.questions))
        for note in (note for task in tasks for note in task.notes):
            display.message(f"note: {note}")
        if goes_on and completions.questions:
            display.message(f"going on after {len(completions.questions)} questions that {out} holds already")
        if remaining := plan[completions.num_chunks :]:
            _sample(remaining, subject, section, max(task.max_tokens for task in tasks), completions, display)
    finally:
        completions.close()
    return _conclude(options, subject, settings, tasks, completions.questions, out, add_seconds(out, 0.0)), out


def _plan_chunks(tasks: Sequence[Task], section: GeneratorSection) -> list[Chunk]:
    """What is sampled together and recorded together, in order."""
    from eval.evaluation import chunks_of

    # A batch of the embedded sampler is as large as a chunk; an engine fills its batch from the questions that follow.
    at_once = section.max_sequences * (1 if section.backend == "transformers" else 4)
    return [(task, prompts) for task in tasks for prompts in chunks_of(task, at_once)]


def _sample(
    chunks: Sequence[Chunk], subject: Subject, section: GeneratorSection, max_tokens: int, completions: Completions,
    display: Display,
) -> None:
    """Sample, grade, record and show chunk by chunk; the time that each took, the first with the loading of the model,
    is recorded beside it. max_tokens: of the longest prompt with the longest completion."""
    from eval.evaluation import sample_and_grade
    from eval.store import add_seconds
    from eval.subject import open_generator

    out, started = completions.path.parent, time.monotonic()
    with open_generator(subject, section, max_tokens=max_tokens, scratch=out) as generator:
        if generator.description:
            display.message(generator.description)
        display.start()
        for task, prompts in chunks:
            display.begin(task.name)
            completions.append(sample_and_grade(task, prompts, generator, display.sampled))
            so_far = [question.accuracy for question in completions.questions if question.benchmark == task.name]
            display.graded(sum(so_far) / len(so_far))
            now = time.monotonic()
            add_seconds(out, now - started)
            started = now


def build_tasks(options: argparse.Namespace, subject: Subject, began: datetime.date | None = None) -> list[Task]:
    """Every benchmark under every prompt that is asked for. began: the day on which an evaluation that goes on began.
    Raises what names the option that is wrong."""
    from eval.benchmarks import find_benchmark, load_benchmark
    from eval.prompt import tell_differences, with_prompt
    from eval.tasks import Asked, EvaluationError, build_task

    benchmarks = [find_benchmark(name, options.data_dir) for name in _asked(options)]
    tell_differences(options, subject.run, [(benchmark.name, benchmark.prompt) for benchmark in benchmarks])
    prompts: list[str | None] = [name.strip() for name in options.prompt.split(",")] if options.prompt else [None]
    tasks: list[Task] = []
    for benchmark in benchmarks:
        loaded = load_benchmark(benchmark, options.data_dir, options.limit)
        for prompt in prompts:
            asked = Asked(
                ks=() if options.k is None else positive_list(options.k, "-k"), samples=options.samples,
                temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens, prompt=prompt,
                grader=options.grader, best_of=options.best_of, seed=options.seed,
                head_dtype=subject.model.head_dtype, quantization=subject.model.quantization)
            asked = with_prompt(asked, options, subject.run, began)
            name = benchmark.name if prompt is None or len(prompts) == 1 else f"{benchmark.name}/{Path(prompt).stem}"
            if name in [task.name for task in tasks]:
                raise EvaluationError(
                    f"--benchmarks: {name} is named twice; name each benchmark (and file of that name) once")
            tasks.append(
                build_task(benchmark, loaded, asked, subject.tokenizer, subject.context, name, subject.end_ids))
    return tasks


def _conclude(options: argparse.Namespace, subject: Subject, settings: dict[str, Any], tasks: Sequence[Task],
              questions: Sequence[GradedQuestion], out: Path, wall_s: float) -> dict[str, Any]:
    from eval.result import benchmark_result, write_result

    by_task = {task.name: [question for question in questions if question.benchmark == task.name] for task in tasks}
    head = {
        "model": subject.model.path, "adapter": subject.model.adapter, "settings": settings, "seed": options.seed,
        "wall_s": wall_s}
    result = write_result(
        out, head, {task.name: benchmark_result(by_task[task.name], task.ks, task.protocol) for task in tasks})
    if not options.no_plots:
        from eval.plots import draw_all

        draw_all(by_task, out / "plots")
    return result


if __name__ == "__main__":
    sys.exit(main())
