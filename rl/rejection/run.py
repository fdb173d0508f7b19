"""A validated configuration of rejection sampling -> solutions.jsonl, which a warm-up learns from, and the report of
what was kept.

Sampling and choosing are apart. What is sampled and scored is written chunk by chunk; the choice is made at the end,
from the files, so that a run that was killed ends as the uninterrupted one, and other settings of `keep` and `mix` can
be tried without sampling again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from transformers.utils import logging as transformers_logging

from rewards.errors import Problem
from rl.config import Occasion
from rl.configuration.loading import to_yaml
from rl.configuration.resuming import conflicts_with_folder
from rl.errors import ConfigError
from rl.generate.frozen import open_frozen_generator, open_frozen_servers
from rl.generate.protocol import Generator, Request, request_seed
from rl.policy.ends import describe_ends
from rl.questions.run_prompt import with_day
from rl.records import Group, Json, Prompt, ScoredGroup
from rl.rejection.config import RejectConfig
from rl.rejection.inputs import RejectInputs, read_reject_inputs
from rl.rejection.keep import choose
from rl.rejection.mix import draw
from rl.rejection.report import MixedIn, Report, Tally, to_json, to_markdown
from rl.rejection.samples import TURN_ENDS, SampledQuestion, SampleStore, sampled_question
from rl.runs.folder import RunFolder, prepare, write_atomically
from rl.runs.progress import Progress, format_counts, format_duration, open_progress
from rl.runs.stop_signals import StopSignals
from rl.runs.tracking import KEPT_SHARE, REWARD, TOKENS_PER_S
from rl.scoring.rewarding import score_groups
from rl.scoring.thread import ScoringThread

SOLUTIONS, REPORT, REPORT_TEXT = "solutions.jsonl", "report.json", "report.md"


def run(config: RejectConfig, resume: Path | None) -> int:
    """Sample, score, choose and write as configured; returns the exit code. resume: the folder of the run to go on
    with, config.run_dir.

    Raises what `read_reject_inputs` raises, PolicyError, GeneratorError, RunFolderError, OSError, and ConfigError where
    nothing is kept or a file to mix in is too small; the samples are then kept, and no result is written."""
    transformers_logging.disable_progress_bar()
    started = time.perf_counter()
    config = with_day(config, resume=resume is not None)
    inputs = read_reject_inputs(config)
    store = SampleStore(RunFolder(config.run_dir).samples, _prompts_of_chunks(inputs), config.sampling.samples)
    if resume is not None:
        inputs = _with_ends_of(store, inputs)
    with contextlib.ExitStack() as stack:
        # Before the folder: a model that cannot be had must not move an earlier run aside.
        generator = stack.enter_context(_open_generator(config, inputs)) if resume is None or store.missing else None
        folder = stack.enter_context(prepare(config.run_dir, resume=resume is not None))
        if resume is not None:
            _check_same_run(folder, config)
        else:
            write_atomically(folder.config_file, to_yaml(config))
        store.begin(inputs.identity)
        stop_signals = StopSignals()
        stack.callback(stop_signals.close)
        if generator is not None and not _sample_all(config, inputs, store, generator, stop_signals):
            return 0
        report = _conclude(config, inputs, store, folder, started)
    print(_summary(report, config, folder))
    return 0


def _check_same_run(folder: RunFolder, config: RejectConfig) -> None:
    """Raises ConfigError where the run in the folder was sampled by other settings."""
    if changed := conflicts_with_folder(folder, config, Occasion.SAMPLING | Occasion.CHOICE):
        raise ConfigError(
            *changed,
            Problem(remedy="--resume with the run's own configuration (keep and mix may differ), or a new run_dir"))


def _with_ends_of(store: SampleStore, inputs: RejectInputs) -> RejectInputs:
    """The inputs with completions that end where those of the run's samples do."""
    there = store.identity()
    if there is None or TURN_ENDS in there:
        return inputs
    if inputs.turn_ends and store.missing:
        tokens = inputs.tokenizer.convert_ids_to_tokens(list(inputs.turn_ends))
        warnings.warn(
            f"the run was begun by a version that let completions go on behind {' and '.join(map(str, tokens))}, which "
            "ends a turn of the chat template, and so it goes on. Remedy: a new run_dir", stacklevel=2)
    return inputs.without_turn_ends()


def _prompts_of_chunks(inputs: RejectInputs) -> list[list[Prompt]]:
    return [[inputs.prompts[position] for position in chunk] for chunk in inputs.chunks]


@contextlib.contextmanager
def _open_generator(config: RejectConfig, inputs: RejectInputs) -> Iterator[Generator]:
    """The sampler, closed at the end. What it needs of disk is taken beside the run's folder, which is not made yet."""
    scratch = config.run_dir.parent / f".{config.run_dir.name}.scratch"
    parts = config.model, config.generator, inputs.tokenizer, inputs.model_config
    try:
        if config.generator.backend == "vllm_server":
            generator = open_frozen_servers(
                *parts, max_tokens=inputs.max_tokens, text=inputs.prompts[0].token_ids, scratch=scratch)
        else:
            generator = open_frozen_generator(*parts, max_tokens=inputs.max_tokens, scratch=scratch)
        try:
            yield generator
        finally:
            generator.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sample_all(
    config: RejectConfig, inputs: RejectInputs, store: SampleStore, generator: Generator, stop_signals: StopSignals
) -> bool:
    """Sample, score and write the chunks that are missing. False where a signal asked to stop before the last."""
    missing = store.missing
    total = len(inputs.chunks)
    with open_progress(
        config.tracking.progress, config.run_dir.name, total, first_step=total - len(missing)
    ) as progress:
        if generator.description:
            progress.message(generator.description)
        if left_out := format_counts(inputs.dropped):
            progress.message(f"left out: {left_out}")
        if len(missing) < total:
            progress.message(f"{total - len(missing)} of {total} chunks are there already")
        for done, number in enumerate(missing, start=total - len(missing) + 1):
            started = time.perf_counter()
            prompts = [inputs.prompts[position] for position in inputs.chunks[number]]
            questions = [
                sampled_question(scored, inputs.is_exact)
                for scored in _sample_and_score(config, inputs, generator, prompts)]
            store.write(number, questions)
            _show(progress, done, config, questions, time.perf_counter() - started)
            if (signal := stop_signals()) is not None and done < total:
                progress.message(
                    f"stopped by {signal} after chunk {done} of {total}; what was sampled is kept, and nothing chosen "
                    f"yet. Go on with --resume {config.run_dir}")
                return False
    return True


def _sample_and_score(
    config: RejectConfig, inputs: RejectInputs, generator: Generator, prompts: Sequence[Prompt]
) -> list[ScoredGroup]:
    """The scored groups of the prompts, in their order; scored while others decode, where the rewards allow it."""
    samples = range(config.sampling.samples)
    requests = [Request(prompt, tuple(request_seed(config.seed, "reject", 0, prompt.question.id, i) for i in samples))
                for prompt in prompts]
    if not inputs.rewards.any_thread:
        return score_groups(inputs.rewards, generator.generate(requests, inputs.parameters))

    def score(groups: Sequence[Group]) -> list[ScoredGroup]:
        return score_groups(inputs.rewards, groups)

    with ScoringThread(score) as scoring:
        generator.generate(requests, inputs.parameters, scoring.take)
        found = scoring.results()
    return [found[index] for index in range(len(requests))]


def _show(
    progress: Progress, done: int, config: RejectConfig, questions: Sequence[SampledQuestion], seconds: float
) -> None:
    completions = [completion for question in questions for completion in question.completions]
    progress.step(
        done,
        {
            REWARD: sum(completion.reward for completion in completions) / len(completions),
            KEPT_SHARE: (
                sum(len(choose(question, config.keep, config.seed).kept) for question in questions) / len(completions)),
            TOKENS_PER_S: sum(completion.num_tokens for completion in completions) / seconds})


def _conclude(
    config: RejectConfig, inputs: RejectInputs, store: SampleStore, folder: RunFolder, started: float
) -> Report:
    """Choose from the samples and write solutions and report, or raise and leave the folder as it is."""
    tally = Tally(config.keep)
    kept: dict[int, list[str]] = {}
    for number, chunk in enumerate(inputs.chunks):
        for position, question in zip(chunk, store.read(number), strict=True):
            choice = choose(question, config.keep, config.seed)
            tally.add(question, choice)
            kept[position] = [question.completions[index].text for index in choice.kept]
    tally.check(f"--resume {folder.path}")
    rows = [solution_row(prompt, text) for position, prompt in enumerate(inputs.prompts) for text in kept[position]]
    mixed = []
    for file in inputs.mix:
        drawn = draw(file, tally.kept, config.seed)
        mixed.append(MixedIn(file.section.path, len(drawn), len(file.solutions)))
        rows += drawn
    report = tally.report(mixed, config.seed, time.perf_counter() - started)
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows]
    # The file that others read comes last, and an earlier choice's goes first: it never stands beside another choice's
    # report.
    (folder.path / SOLUTIONS).unlink(missing_ok=True)
    write_atomically(folder.config_file, to_yaml(config))
    write_atomically(folder.path / REPORT, to_json(report))
    write_atomically(folder.path / REPORT_TEXT, to_markdown(report, f"Rejection sampling: {folder.path.name}"))
    write_atomically(
        folder.path / SOLUTIONS, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
    return report


def solution_row(prompt: Prompt, text: str) -> dict[str, Json]:
    """A row of solutions.jsonl as a warm-up reads it, with the columns that the prompt's template may need. The gold
    answer is no part of it."""
    question = prompt.question
    others = {
        name: value
        for name, value in question.columns.items()
        if name not in ("id", "question", "solution", "messages")}
    return {"id": question.id, "question": question.text, "solution": text, **others}


def _summary(report: Report, config: RejectConfig, folder: RunFolder) -> str:
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items() if count)
    mixed = "".join(f" + {entry.rows:,} of {entry.path}" for entry in report.mix)
    facts = {
        "kept": (
            f"{report.kept:,} of {report.completions:,} completions ({report.kept_share:.1%}), of "
            f"{report.questions_kept:,} of {report.questions:,} questions"),
        "dropped": dropped or "none",
        "file": f"{folder.path / SOLUTIONS}: {report.rows:,} rows{f' ({report.kept:,} kept{mixed})' if mixed else ''}",
        "report": folder.path / REPORT_TEXT,
        "cost": format_duration(report.wall_s),
        "go on with": (
            f"rl/warmup.py data={folder.path / SOLUTIONS} prompt={config.prompt.template} model={config.model.path}")}
    return "\n".join(["", *(f"{name:<12}{fact}" for name, fact in facts.items())])


def describe(config: RejectConfig) -> str:
    """`--dry-run`: reads and checks everything but the model, and shows the first prompt. Samples nothing."""
    inputs = read_reject_inputs(config)
    first, n = inputs.prompts[0], config.sampling.samples
    facts = {
        "prompt of the first question": f"{first.text!r}, {len(first.token_ids)} tokens",
        "questions": f"{len(inputs.prompts):,}, the longest with its completion {inputs.max_tokens:,} tokens",
        "left out": format_counts(inputs.dropped) or "none",
        "a completion ends at": describe_ends(
            config.model, inputs.tokenizer, inputs.renderer.turn_end_ids, config.sampling.stop_token_ids,
            inputs.parameters.stop_strings),
        "completions": (
            f"{len(inputs.prompts) * n:,}, in {len(inputs.chunks):,} chunks of at most "
            f"{config.sampling.questions_per_chunk} questions x {n}")}
    facts |= {
        file.key: (
            f"{len(file.solutions):,} rows of {file.section.path}, {file.section.ratio:g} for each kept completion")
        for file in inputs.mix}
    return "\n".join(
        [
            to_yaml(config),
            *(f"{name:<30}{fact}" for name, fact in facts.items()),
            "Everything but the model was read and checked; nothing was sampled."])
