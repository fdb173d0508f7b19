"""`evaluation.benchmarks`: benchmarks evaluated as a run trains, on its generator. Tasks, grading and results are those
of `python -m eval.run`.

The run's prompt is the benchmarks' too. Each evaluation leaves result.json and completions.jsonl in
evaluations/step-000050/ of the run's folder, one per step and benchmark, which `python -m eval.compare` and
`eval.grade` read.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.benchmarks import find_benchmark, load_benchmark
from eval.evaluation import sample_and_grade
from eval.records import GradedQuestion
from eval.result import benchmark_result, write_result
from eval.store import write_completions
from eval.tasks import Asked, EvaluationError, Task, build_task
from rewards.contract import RewardError
from rewards.errors import UserError, as_configured
from rl.config import BenchmarkSection, RunConfig
from rl.errors import ConfigError
from rl.evaluation.benchmarks import BenchmarkValues
from rl.generate.protocol import Generator
from rl.policy.ends import model_end_ids
from rl.questions.inputs import Inputs, context_of
from rl.ranks import gather_shares, share_of_rank
from rl.runs.intervals import Interval

_KEYS = {
    "-k": "samples", "--samples": "samples", "--max-tokens": "max_tokens", "--grader": "grader", "--limit": "limit",
    "--temperature": "temperature", "--top-p": "top_p", "--benchmarks": "name"}
"""Options that the evaluation's messages name -> keys of a benchmark's section."""
_RUN_KEYS = {"--data-dir": "evaluation.data_dir", "--prompt": "prompt.template"}


@dataclass(frozen=True, slots=True)
class LiveTasks:
    """rl.evaluation.benchmarks.LiveBenchmarks."""

    tasks: Mapping[str, Task]
    every: Mapping[str, int]
    config: RunConfig

    @property
    def max_tokens(self) -> int:
        return max(task.max_tokens for task in self.tasks.values())

    @property
    def metrics(self) -> Sequence[str]:
        return [f"{name}/{kind}@{task.samples}" for name, task in self.tasks.items() for kind in _kinds(task)]

    @property
    def digests(self) -> Mapping[str, str]:
        return {
            f"evaluation.benchmarks: {name}": str(task.protocol["questions_digest"])
            for name, task in self.tasks.items()}

    @property
    def notes(self) -> Sequence[str]:
        return [note for task in self.tasks.values() for note in task.notes]

    def evaluate(
        self, name: str, generator: Generator, step: int, *, folder: Path, rank: int, num_ranks: int
    ) -> BenchmarkValues:
        task, started = self.tasks[name], time.perf_counter()
        problem: str | None = None
        share: list[GradedQuestion] = []
        try:
            share = sample_and_grade(task, share_of_rank(task.prompts, rank, num_ranks), generator)
        except (EvaluationError, RewardError) as error:
            # A grader's service that does not answer ends no training; all ranks must still meet.
            problem = str(error)
        problems = [text for text in gather_shares([problem], num_ranks, f"evaluate {name}") if text is not None]
        questions = gather_shares(share, num_ranks, f"evaluate {name}") if not problems else []
        if problems:
            return BenchmarkValues({}, {}, problems[0])
        entry = benchmark_result(questions, task.ks, task.protocol)
        if rank == 0:
            out = folder / "evaluations" / f"step-{step:06d}" / name.replace("/", "_").replace(":", "_")
            out.mkdir(parents=True, exist_ok=True)
            write_completions(out, questions)
            head = {
                "model": self.config.model.path, "adapter": f"{folder} at step {step}",
                "settings": {"run": str(folder), "step": step}, "seed": task.seed,
                "wall_s": time.perf_counter() - started}
            write_result(out, head, {name: entry})
        intervals = {f"{kind}@{task.samples}": Interval(**entry[f"{kind}@{task.samples}"]) for kind in _kinds(task)}
        others = {
            key: entry[key] for key in ("truncated_share", "unparsable_share", "timed_out_share", "semantic_entropy")}
        return BenchmarkValues(intervals, others | {"completion_length": entry["mean_completion_tokens"] or 0.0})


def _kinds(task: Task) -> tuple[str, ...]:
    """What is reported: of one sample avg, pass and maj are equal."""
    return ("avg", "pass", "maj") if task.samples > 1 else ("avg",)


def build_live_tasks(config: RunConfig, inputs: Inputs) -> LiveTasks:
    """The benchmarks of the configuration, read and rendered. Raises ConfigError that names the key."""
    tasks: dict[str, Task] = {}
    every: dict[str, int] = {}
    for index, section in enumerate(config.evaluation.benchmarks):
        place = f"evaluation.benchmarks.{index}"
        try:
            task = _task(config, section, inputs)
        except UserError as error:
            message = error.in_words(lambda option, value: as_configured(_key_of(option, place), value))  # noqa: B023
            raise ConfigError(message if place in message else f"{place}: {message}") from error
        if task.name in tasks:
            raise ConfigError(f"{place}.name: {task.name} is named twice; name each benchmark once")
        tasks[task.name], every[task.name] = task, section.every
    return LiveTasks(tasks, every, config)


def _key_of(option: str, place: str) -> str:
    """The configuration's key for an option of `python -m eval.run`; place: the benchmark's section."""
    return f"{place}.{_KEYS[option]}" if option in _KEYS else _RUN_KEYS.get(option, option)


def _task(config: RunConfig, section: BenchmarkSection, inputs: Inputs) -> Task:
    data_dir = None if config.evaluation.data_dir is None else Path(config.evaluation.data_dir)
    benchmark = find_benchmark(section.name, data_dir)
    loaded = load_benchmark(benchmark, data_dir, section.limit)
    asked = Asked(
        samples=section.samples, temperature=section.temperature, top_p=section.top_p,
        max_tokens=section.max_tokens or config.sampling.max_completion_tokens, prompt=config.prompt.template,
        chat_template=config.prompt.chat_template, chat_template_kwargs=config.prompt.chat_template_kwargs,
        date=config.prompt.date, stop_strings=tuple(config.sampling.stop_strings),
        stop_token_ids=tuple(config.sampling.stop_token_ids), grader=section.grader, seed=config.seed,
        head_dtype=config.model.head_dtype, quantization=config.model.quantization)
    context, end_ids = context_of(inputs.model_config), model_end_ids(config.model, inputs.tokenizer)
    return build_task(benchmark, loaded, asked, inputs.tokenizer, context, end_ids=end_ids)
