"""A validated configuration -> a run: builds every part, trains, writes the summary and the picture."""

from __future__ import annotations

import contextlib
import datetime
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers.utils import logging as transformers_logging

from rewards.contract import RewardError
from rl.checkpoint import check_same_run, list_checkpoints, read_state, recover, verify
from rl.collect import Collector
from rl.config import RunConfig
from rl.configuration.loading import load, to_yaml
from rl.configuration.resuming import moved
from rl.errors import GeneratorError
from rl.evaluation.benchmarks import BuildBenchmarks, LiveBenchmarks, build_benchmarks
from rl.evaluation.held_out import HeldOut
from rl.generate.base_probe import measure_base
from rl.generate.build import check_generator, open_generator
from rl.generate.generator_plan import GeneratorPlan, cache_bytes_per_token, logprobs_mode
from rl.generate.protocol import Generator, sampling_parameters
from rl.memory.estimate import available_memory, check_memory, estimate_memory, give_back_freed_memory, longest_groups
from rl.memory.nearest_settings import enough, estimator
from rl.optimizer import make_optimizer
from rl.paths import resolve_path
from rl.picture import draw_curves
from rl.policy.ends import describe_ends
from rl.policy.forward import PolicyForward, check_head
from rl.policy.layout import layout_of, use_padded_rows
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.moving_average import MovingAverage
from rl.policy.policy import Policy, explain_loading, load_policy, resolve_dtype
from rl.proof.proof import GeneratorMismatchError, mismatch_bound
from rl.questions.inputs import Inputs, read_inputs
from rl.questions.run_prompt import check_same_day, with_day
from rl.ranks import LONGEST_WAIT, RanksApartError, check_distribution, gather, meet, process_group, telling_others
from rl.runs.callbacks import NOBODY, Callbacks
from rl.runs.folder import RunFolder, prepare, write_atomically
from rl.runs.progress import format_counts, open_progress
from rl.runs.stop_signals import StopSignals
from rl.runs.summary import Summary, render_summary, write_summary
from rl.runs.trackers import Trackers, places_of
from rl.runs.tracking import MetricsLog, RolloutsLog, TokenTexts
from rl.runs.watchdog import REWARD_GOAL, TEACHER_GOAL, Watchdog
from rl.teacher.advantages import Teacher
from rl.teacher.teacher import check_run_teacher, open_teacher, teacher_digests
from rl.trainer import Parts, Trainer
from rl.trainer_state import TrainerState
from rl.update import Updater

OUTAGE = datetime.timedelta(days=7)
"""How long a process waits for one that waits for its sampler's servers, or has more of a benchmark to do."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run begins with; its other parts are built from it. benchmarks: evaluated as it goes. teacher: of
    on-policy distillation. callbacks: told of each step."""

    config: RunConfig
    inputs: Inputs
    accelerator: Accelerator
    policy: Policy
    folder: RunFolder
    benchmarks: LiveBenchmarks | None = None
    teacher: Teacher | None = None
    callbacks: Callbacks = NOBODY


def run(
    config: RunConfig, resume: Path | None, build: BuildBenchmarks | None = None, callbacks: Callbacks = NOBODY
) -> Summary:
    """Train as configured (in `resume`, the folder of an earlier run, from its newest checkpoint). build: what makes
    the benchmarks of the configuration, where it names some. callbacks: told of each step; what one of them raised is
    raised when the run is saved."""
    transformers_logging.disable_progress_bar()
    config = _as_begun(config, resume)
    inputs, benchmarks = _read(config, build)
    accelerator = _make_accelerator(config, benchmarks)
    check_same_day(config.prompt, accelerator.num_processes)
    with telling_others(accelerator.process_index, accelerator.num_processes), contextlib.ExitStack() as stack:
        # Before the folder: a model, an engine or a server that cannot be had must not move an earlier run aside.
        policy = load_run_policy(config, inputs, accelerator, benchmarks)
        check_generator(config.generator, config.sampling, policy, on_gpu=accelerator.device.type == "cuda")
        teacher = open_teacher(config, inputs, accelerator.device)
        if teacher is not None:
            stack.callback(teacher.close)
        folder = RunFolder(config.run_dir)
        setup = Setup(config, inputs, accelerator, policy, folder, benchmarks, teacher, callbacks)
        generator = _open_generator(setup, stack) if resume is None else None
        if accelerator.is_main_process:
            stack.enter_context(prepare(folder.path, resume=resume is not None, brought=_brought(config, folder)))
        meet("prepare the run's folder", accelerator.num_processes)
        resumed = _checkpoint_to_resume(setup) if resume is not None else None
        # Behind the comparison with the checkpoint, which moves nothing: an engine takes a minute.
        generator = generator or _open_generator(setup, stack)
        if accelerator.is_main_process:
            write_atomically(folder.config_file, to_yaml(config))
        trainer, parts = build_trainer(setup, generator, stack, None if resumed is None else resumed[1])
        _introduce(setup, parts)
        if resumed is not None:
            trainer.restore(*resumed)
            parts.progress.message(f"going on from {resumed[0].name}")
        summary = _run_to_its_end(trainer, folder)
        parts.generator.close()  # before the process group, which a sampler may share, is gone
        accelerator.end_training()
    if accelerator.is_main_process:
        _conclude(folder, summary, config, callbacks)
    return summary


def release_memory() -> None:
    """Behind a run in a process that goes on: its model stands in reference cycles, and what samples or trains next
    counts what is free."""
    gc.collect()
    torch.cuda.empty_cache()


def _as_begun(config: RunConfig, resume: Path | None) -> RunConfig:
    """With the day on which the run begins, or began, and with what lies in the folder of a run that goes on."""
    config = with_day(config, resume=resume is not None)
    return config if resume is None else moved(
        config, load(RunFolder(resume).config_file, []).run_dir, config.run_dir)


def _brought(config: RunConfig, folder: RunFolder) -> list[Path]:
    """What was written into the run's folder before the run began: a program's own data and model."""
    named = (config.data.path, config.evaluation.path, config.anchors and config.anchors.path, config.model.path)
    return [Path(path) for path in named if path and Path(path).parent == folder.inputs]


def _conclude(folder: RunFolder, summary: Summary, config: RunConfig, callbacks: Callbacks) -> None:
    """Write and show the result; raises what a callback raised."""
    write_summary(folder, summary)
    draw_curves(folder.metrics_file, folder.curve_file, title=config.run_dir.name)
    print("\n" + render_summary(
        summary, folder, merges=config.model.quantization is None,
        services=places_of(folder) if config.tracking.trackers else {}))
    with _told_what_is_saved(folder, Exception):
        callbacks.raise_kept()


def _read(config: RunConfig, build: BuildBenchmarks | None) -> tuple[Inputs, LiveBenchmarks | None]:
    """Everything but the models, with the digests of all that a resumed run must find unchanged."""
    inputs = read_inputs(config)
    check_run_teacher(config, inputs)
    inputs = replace(inputs, digests={**inputs.digests, **teacher_digests(config.teacher, "teacher")})
    benchmarks = build_benchmarks(config, inputs, build)
    if benchmarks is not None:
        inputs = replace(inputs, digests={**inputs.digests, **benchmarks.digests})
    return inputs, benchmarks


def _make_accelerator(config: RunConfig, benchmarks: LiveBenchmarks | None) -> Accelerator:
    waits_on_servers = config.generator.backend == "vllm_server" or (
        config.teacher is not None and config.teacher.backend == "vllm_server")
    waits_long = waits_on_servers or benchmarks is not None
    accelerator = Accelerator(
        mixed_precision="no", kwargs_handlers=[process_group(OUTAGE if waits_long else LONGEST_WAIT)])
    check_distribution(accelerator.distributed_type)
    if accelerator.device.type == "cpu":
        give_back_freed_memory()
    return accelerator


def _introduce(setup: Setup, parts: Parts) -> None:
    """What people should know before the run."""
    say = parts.progress.message
    if parts.generator.description:
        say(parts.generator.description)
    if setup.teacher is not None:
        say(f"teacher: {setup.teacher.description}")
    if left_out := format_counts(setup.inputs.dropped):
        say(f"questions left out: {left_out}")
    if set(setup.inputs.turn_end_ids) - set(setup.policy.eos_token_ids):
        ends = describe_ends(setup.config.model, setup.inputs.tokenizer, setup.inputs.turn_end_ids)
        say(f"a completion ends at {ends}")
    for note in setup.benchmarks.notes if setup.benchmarks is not None else ():
        say(f"note: {note}")


def _run_to_its_end(trainer: Trainer, folder: RunFolder) -> Summary:
    # All that a step can fail with and the user can mend; a checkpoint that cannot be written says by itself what is
    # kept.
    with _told_what_is_saved(folder, RewardError, GeneratorError, GeneratorMismatchError, RanksApartError,
                             FloatingPointError, OSError, torch.OutOfMemoryError, KeyboardInterrupt):
        return trainer.run()


@contextlib.contextmanager
def _told_what_is_saved(folder: RunFolder, *kinds: type[BaseException]) -> Iterator[None]:
    """Errors of these kinds that leave the block tell up to where the run is saved."""
    try:
        yield
    except kinds as error:
        if saved := list_checkpoints(folder.checkpoints):
            error.add_note(f"The run is saved up to {saved[-1].name}: go on with --resume {folder.path}")
        raise


def _checkpoint_to_resume(setup: Setup) -> tuple[Path, TrainerState] | None:
    """The newest checkpoint, verified; None where the run was killed before its first one."""
    accelerator, checkpoints = setup.accelerator, setup.folder.checkpoints
    if accelerator.is_main_process:
        recover(checkpoints)
    meet("read the checkpoints", accelerator.num_processes)
    found = list_checkpoints(checkpoints)
    if not found:
        return None
    newest = found[-1]
    verify(newest)
    state = read_state(newest)
    stored = load(newest / "config.yaml", [])
    check_same_run(newest, moved(stored, stored.run_dir, setup.config.run_dir), setup.config, state,
                   accelerator.num_processes, setup.inputs.digests)
    return newest, state


def _benchmark_tokens(benchmarks: LiveBenchmarks | None) -> int:
    return 0 if benchmarks is None else benchmarks.max_tokens


def load_run_policy(
    config: RunConfig, inputs: Inputs, accelerator: Accelerator, benchmarks: LiveBenchmarks | None = None
) -> Policy:
    """The policy of the run's start, if the run fits into memory. Raises ConfigError or PolicyError."""
    bytes_per_weight = resolve_dtype(config.model.dtype, accelerator.device).itemsize
    estimate = estimator(
        inputs.model_config, config, inputs.longest_prompt, bytes_per_weight=bytes_per_weight,
        on_gpu=accelerator.device.type == "cuda", benchmark_tokens=_benchmark_tokens(benchmarks))
    available = available_memory(accelerator.device, accelerator.num_processes)
    check_memory(config, estimate(config), available, str(accelerator.device),
                 enough=lambda: enough(config, estimate, available))
    with explain_loading(config.model.path):
        policy = load_policy(
            config.model, config.lora, inputs.tokenizer, seed=config.seed, device=accelerator.device,
            keep_reference=config.loss.kl_weight > 0)
    # Ranks plan the same micro-batches, each by itself.
    layouts = set(gather(layout_of(policy.causal_lm), accelerator.num_processes, "load the model"))
    if len(layouts) > 1:
        use_padded_rows(policy.causal_lm)
    return policy


def generator_plan(setup: Setup) -> GeneratorPlan:
    """The sizes that the sampler needs to know: the longest prompt of training and evaluation, and what the rest of the
    run will need."""
    config, inputs, policy = setup.config, setup.inputs, setup.policy
    longest = max([inputs.longest_prompt, *(len(prompt.token_ids) for prompt in inputs.held_out)])
    on_gpu = next(policy.model.parameters()).device.type == "cuda"
    estimate = estimate_memory(
        config, inputs.model_config, longest, bytes_per_weight=policy.dtype.itemsize, on_gpu=on_gpu,
        benchmark_tokens=_benchmark_tokens(setup.benchmarks))
    is_probed = config.generator.backend == "vllm_server" and config.generator.proof_every > 0
    is_embedded = config.generator.backend == "transformers"
    return GeneratorPlan(
        max_tokens=max(longest + config.sampling.max_completion_tokens, _benchmark_tokens(setup.benchmarks)),
        cache_bytes_per_token=cache_bytes_per_token(inputs.model_config, policy.dtype.itemsize),
        trainer_bytes=estimate.trainer_bytes, kept_bytes=estimate.kept_bytes,
        base_path=str(resolve_path(config.model.path)), revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        logprobs_mode="processed_logprobs" if is_embedded else logprobs_mode(config.sampling),
        num_ranks=setup.accelerator.num_processes, seed=config.seed, run_dir=setup.folder.path,
        float32_head=policy.has_float32_head,
        base_probe=(
            measure_base(policy, inputs.prompts[0].token_ids, bound=mismatch_bound(config, policy))
            if is_probed else None))


def _open_generator(setup: Setup, stack: contextlib.ExitStack) -> Generator:
    generator = open_generator(setup.config.generator, setup.policy, generator_plan(setup))
    stack.callback(generator.close)
    return generator


def build_trainer(
    setup: Setup, generator: Generator, stack: contextlib.ExitStack, state: TrainerState | None = None
) -> tuple[Trainer, Parts]:
    """generator: without weights yet. stack: closes what is opened, the generator too. state: of the checkpoint that
    the run goes on from."""
    config, inputs, accelerator, policy, folder = (
        setup.config, setup.inputs, setup.accelerator, setup.policy, setup.folder)
    set_seed(config.seed)
    forward = PolicyForward(policy, temperature=config.sampling.temperature)
    check_head(forward, policy, inputs.prompts[0].token_ids, config.sampling.temperature)
    optimizer = make_optimizer(policy.trainable_parameters().values(), config.optim)
    prepared_forward, prepared_optimizer = accelerator.prepare(forward, optimizer)
    stack.callback(generator.close)  # before the run's folder is given back
    generator.take_over(policy, 0)
    updater = Updater(config, accelerator, prepared_forward, prepared_optimizer, pad_token_id=policy.eos_token_ids[0])
    if accelerator.device.type == "cuda":
        generator.rest()  # as it will while training
        updater.rehearse(longest_groups(config, inputs.longest_prompt))
    stop_signals = StopSignals()
    stack.callback(stop_signals.close)
    metrics, rollouts = _open_logs(setup, stack, None if state is None else state.step)
    progress = stack.enter_context(open_progress(
        config.tracking.progress, config.run_dir.name, config.steps, first_step=state.step if state else 0,
        is_main=accelerator.is_main_process))
    average = None if config.votes is None else MovingAverage(policy, config.votes.decay)
    collector = Collector(
        config, inputs, generator, rank=accelerator.process_index, num_ranks=accelerator.num_processes,
        policy=LogprobCalculator(policy, forward, max_tokens=config.optim.micro_batch_tokens), average=average)
    parts = Parts(
        accelerator=accelerator, policy=policy, generator=generator, teacher=setup.teacher,
        optimizer=prepared_optimizer, updater=updater, collector=collector, held_out=_held_out(setup),
        benchmarks=setup.benchmarks,
        watchdog=Watchdog(config.watchdog, REWARD_GOAL if config.rewards else TEACHER_GOAL), data=inputs.digests,
        folder=folder, metrics=metrics, rollouts=rollouts, progress=progress,
        stop_requested=lambda: stop_signals() or setup.callbacks(), average=average, callbacks=setup.callbacks)
    trainer = Trainer(config, parts)
    stop_signals.call_when_late(trainer.save_late)
    return trainer, parts


def _held_out(setup: Setup) -> HeldOut | None:
    """None without held-out questions."""
    config, inputs, accelerator = setup.config, setup.inputs, setup.accelerator
    if inputs.grader is None:
        return None
    parameters = replace(
        sampling_parameters(config.sampling, inputs.stop_strings, inputs.turn_end_ids),
        temperature=config.evaluation.temperature or config.sampling.temperature)
    return HeldOut(
        inputs.held_out, inputs.grader, parameters, config.seed, accelerator.process_index, accelerator.num_processes,
        min(config.evaluation.samples, config.evaluation.samples_during))


def _open_logs(
    setup: Setup, stack: contextlib.ExitStack, resumed_step: int | None
) -> tuple[MetricsLog | None, RolloutsLog | None]:
    """metrics.jsonl and rollouts.jsonl of the main rank, and the services beside them. In a resumed folder they are cut
    to its checkpoint by Trainer.restore; where there was none they start empty.

    resumed_step: the checkpoint's."""
    if not setup.accelerator.is_main_process:
        return None, None
    if resumed_step is None:
        for file in (setup.folder.metrics_file, setup.folder.rollouts_file):
            file.unlink(missing_ok=True)
    trackers = stack.enter_context(Trackers(
        setup.config.tracking, setup.folder, setup.config.model_dump(mode="json"),
        first_step=0 if resumed_step is None else resumed_step + 1))
    return (stack.enter_context(MetricsLog(setup.folder, [trackers.log])),
            stack.enter_context(RolloutsLog(setup.folder, [trackers.note_group], _token_texts(setup))))


def _token_texts(setup: Setup) -> TokenTexts | None:
    """Each token behind the one before it: decoded alone, a word of some tokenizers loses its space."""
    if not setup.config.tracking.token_logprobs:
        return None
    decode = setup.inputs.tokenizer.decode

    def texts(token_ids: Sequence[int]) -> list[str]:
        before = [[], *([token] for token in token_ids[:-1])]
        return [decode([*one, token])[len(decode(one)):] for one, token in zip(before, token_ids, strict=True)]

    return texts
