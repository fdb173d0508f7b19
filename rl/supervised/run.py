"""A validated warm-up configuration -> a policy that a training run starts from: adapter/ (LoRA) or model/ in the run
folder.

Both appear whole or not at all, and only once the last step is done: a warm-up that was stopped leaves checkpoints and
no result.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from rewards.errors import Problem, named
from rl.checkpoint import save_weights
from rl.config import GeneratorSection, Occasion
from rl.configuration.loading import to_yaml
from rl.configuration.resuming import conflicts_with_folder
from rl.errors import ConfigError
from rl.evaluation.held_out import HeldOut
from rl.generate.build import build_generator
from rl.generate.protocol import SamplingParameters
from rl.picture import draw_warmup
from rl.policy.adapter_base import write_fingerprint
from rl.policy.ends import describe_ends
from rl.policy.forward import PolicyForward, check_head
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.merging import Source, write_plain
from rl.policy.policy import Policy, PolicyError, default_device, explain_loading, load_policy, plan_policy
from rl.questions.inputs import load_model_config
from rl.questions.run_prompt import check_same_day, prompt_of_run, with_day
from rl.ranks import check_distribution, meet, telling_others
from rl.runs.folder import RunFolder, RunFolderError, prepare, write_atomically
from rl.runs.progress import format_counts, open_progress
from rl.runs.stop_signals import StopSignals
from rl.runs.summary import Summary, held_out_lines, installed_versions, peak_rss_gb, write_summary
from rl.runs.tracking import MetricsLog
from rl.supervised.config import WarmupConfig
from rl.supervised.inputs import WarmupInputs, read_warmup_inputs
from rl.supervised.loop import STATE_FILE, HeldOutResult, LoopParts, Seen, WarmupLoop, WarmupState
from rl.supervised.trainer import make_trainer, trainer_arguments
from rl.teacher.teacher import NUM_PROBED_PROMPTS, check_teacher, load_teacher, teacher_digests

TEACHER = "distillation.teacher"
SCORED_TOKENS = 8192
"""Most tokens, padding included, in one forward pass of the held-out loss."""


@dataclass(frozen=True, slots=True)
class WarmupStart:
    """What a warm-up begins with: everything that can fail before its folder is touched. teacher: of a distillation;
    teacher_weights: digests of its weights."""

    inputs: WarmupInputs
    arguments: Any
    policy: Policy
    teacher: Policy | None
    teacher_weights: dict[str, str]

    @property
    def is_main(self) -> bool:
        return bool(self.arguments.process_index == 0)

    def wait_for_all(self) -> None:
        meet("prepare the run's folder", self.arguments.world_size)


def run_warmup(config: WarmupConfig, *, resume: bool = False) -> int:
    """Train as configured; returns the exit code. resume: from the newest checkpoint in config.run_dir.

    Raises what `read_warmup_inputs` raises, PolicyError, RunFolderError, OSError; the run folder is then as it was, or
    without result."""
    transformers_logging.disable_progress_bar()
    config = with_day(config, resume=resume)
    with contextlib.ExitStack() as stack:
        start = prepare_warmup(config, stack)
        folder = RunFolder(config.run_dir)
        if start.is_main:
            folder = stack.enter_context(prepare(config.run_dir, resume=resume))
        start.wait_for_all()
        checkpoint, state = (
            _checkpoint_to_resume(folder, config, start.inputs, start.teacher_weights) if resume else (None, None))
        if resume and folder.summary_file.is_file():
            raise RunFolderError(
                f"{folder.path} is complete: there is nothing to go on with",
                remedy="without --resume for a new warm-up")
        if start.is_main:
            write_atomically(folder.config_file, to_yaml(config))
        parts = _loop_parts(config, start, folder, state, stack)
        loop = WarmupLoop(config, parts, state)
        trainer = make_trainer(
            config, start.policy, start.inputs.rows, start.inputs.max_tokens, start.arguments, [loop], start.teacher)
        if left_out := format_counts(start.inputs.dropped):
            parts.progress.message(f"left out: {left_out}")
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        wall_s, steps = time.perf_counter() - started, trainer.state.global_step
        if loop.seen.stopped_by is not None:
            parts.progress.message(
                f"stopped by {loop.seen.stopped_by} after step {steps}; saved, and without a result yet. Go on with "
                f"--resume {folder.path}")
            return 0
        if start.is_main:
            _report(config, folder, loop.seen, steps, wall_s, write_result(start.policy, config, folder.path))
        start.wait_for_all()
    return 0


def prepare_warmup(config: WarmupConfig, stack: contextlib.ExitStack) -> WarmupStart:
    """Read, check and load all that the warm-up needs; no folder is made or moved. stack: an error that leaves it is
    told to the other ranks from now on. Raises what `run_warmup` raises."""
    inputs = read_warmup_inputs(config)
    check_warmup_teacher(config, inputs)
    arguments = trainer_arguments(config, RunFolder(config.run_dir).checkpoints)
    check_distribution(arguments.distributed_state.distributed_type)
    check_same_day(config.prompt, arguments.world_size)
    stack.enter_context(telling_others(arguments.process_index, arguments.world_size))
    policy = load_warmup_policy(config, inputs, arguments.device)
    section = None if config.distillation is None else config.distillation.teacher
    teacher = None if section is None else load_teacher(section, TEACHER, inputs.tokenizer, arguments.device)
    return WarmupStart(inputs, arguments, policy, teacher, teacher_digests(section, TEACHER))


def _loop_parts(
    config: WarmupConfig, start: WarmupStart, folder: RunFolder, state: WarmupState | None, stack: contextlib.ExitStack
) -> LoopParts:
    """What the loop works with, closed with the stack. state: of the checkpoint that the warm-up goes on from."""
    policy, inputs = start.policy, start.inputs
    rank, num_ranks = start.arguments.process_index, start.arguments.world_size
    metrics = None
    if start.is_main:
        metrics = stack.enter_context(MetricsLog(folder))
        metrics.truncate_to(0 if state is None else state.position)
    forward = PolicyForward(policy, temperature=1.0)
    check_head(forward, policy, inputs.rows[0].prompt.token_ids, 1.0)
    generator = None
    if inputs.grader is not None:
        # Before the trainer, which changes the model's forward: a copy made later would compute with the changed one.
        generator = build_generator(GeneratorSection(max_sequences=config.evaluation.max_sequences), policy)
        stack.callback(generator.close)
    stop_signals = StopSignals()
    stack.callback(stop_signals.close)
    progress = stack.enter_context(
        open_progress(
            config.tracking.progress, config.run_dir.name, count_steps(config, len(inputs.rows)) or 0,
            first_step=0 if state is None else state.step, is_main=start.is_main))
    return LoopParts(
        policy=policy, generator=generator, held_out=_held_out(config, inputs, rank, num_ranks),
        held_out_rows=inputs.held_out_rows, calculator=LogprobCalculator(policy, forward, max_tokens=SCORED_TOKENS),
        metrics=metrics, progress=progress, digest=inputs.digest, teacher=start.teacher_weights,
        stop_requested=stop_signals, rank=rank, num_ranks=num_ranks)


def load_warmup_policy(config: WarmupConfig, inputs: WarmupInputs, device: torch.device) -> Policy:
    """The policy of the start, as a training run loads it. Raises PolicyError."""
    with explain_loading(config.model.path):
        policy = load_policy(
            config.model, config.lora, inputs.tokenizer, seed=config.seed, device=device, keep_reference=False)
    _refuse_adapted_head(policy)
    _refuse_merge(config)
    return policy


def _refuse_adapted_head(policy: Policy) -> None:
    if isinstance(policy.causal_lm.get_output_embeddings(), LoraLayer):
        raise PolicyError(
            "TRL's trainer reads the output layer's weight without its adapter, which would never train",
            where=named("lora.targets"),
            remedy=f"leave the output layer out of {named('lora.targets')} (all-linear does)")


def _refuse_merge(config: WarmupConfig) -> None:
    """Before it has trained, rather than by rl/policy/merging.py afterwards."""
    if config.merge and config.model.quantization is not None:
        raise PolicyError(
            f"true, but rounded to {config.model.quantization} base + BA would lose most of the adapter's change",
            where="merge", remedy=f"merge=false, or {named('model.quantization', 'null')}")


def check_warmup_teacher(config: WarmupConfig, inputs: WarmupInputs) -> None:
    """Refuse a teacher with another vocabulary or too short a context, before anything is loaded. Raises
    ConfigError."""
    if config.distillation is not None:
        check_teacher(
            config.distillation.teacher, TEACHER, config.model, inputs.tokenizer,
            [row.prompt.text for row in inputs.rows[:NUM_PROBED_PROMPTS]], max(row.num_tokens for row in inputs.rows),
            "distillation=null, which learns from a teacher's solutions by their text alone")


def count_steps(config: WarmupConfig, num_rows: int) -> int | None:
    """Updates of the whole warm-up; None with packing and epochs, where only TRL's packing tells the number of rows."""
    if config.steps is not None:
        return config.steps
    return None if config.packing else config.epochs * -(-num_rows // config.optim.batch_rows)


def write_result(policy: Policy, config: WarmupConfig, folder: Path) -> list[Path]:
    """adapter/ of a LoRA policy, with the fingerprint of its base; model/ of a merged or fully trained one. Returns
    what was written.

    Raises PolicyError when the disk refuses; nothing half-written stays."""
    temporary = folder / f".result.{os.getpid()}.tmp"
    written = []
    try:
        temporary.mkdir()
        prompt = prompt_of_run(config.run_dir, config)
        save_weights(temporary, policy, prompt)
        if policy.is_adapter:
            write_fingerprint(temporary / "adapter", policy.causal_lm)
            if config.merge:
                source = Source(config.model, temporary / "adapter", config.model)
                write_plain(source, temporary / "model", prompt=prompt)
        for name in ("model", "adapter"):
            if (temporary / name).is_dir():
                shutil.rmtree(folder / name, ignore_errors=True)  # of a resumed warm-up that was killed right here
                os.replace(temporary / name, folder / name)
                written.append(folder / name)
    except (OSError, SafetensorError) as error:
        raise PolicyError(
            f"cannot write the result into {folder}: {error}",
            remedy="free some space there and go on with --resume") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def _held_out(config: WarmupConfig, inputs: WarmupInputs, rank: int, num_ranks: int) -> HeldOut | None:
    if inputs.grader is None:
        return None
    evaluation = config.evaluation
    parameters = SamplingParameters(
        evaluation.temperature or 1.0, 1.0, 0, evaluation.max_completion_tokens, inputs.turn_end_ids,
        inputs.stop_strings)
    return HeldOut(inputs.prompts, inputs.grader, parameters, config.seed, rank, num_ranks,
                   min(evaluation.samples, evaluation.samples_during))


def _checkpoint_to_resume(
    folder: RunFolder, config: WarmupConfig, inputs: WarmupInputs, teacher: Mapping[str, str]
) -> tuple[Path | None, WarmupState | None]:
    """The newest whole checkpoint; None where the warm-up was killed before its first. teacher: digests of its weights.
    Raises ConfigError where it belongs to another configuration, other data or another teacher."""
    whole = sorted(
        folder.checkpoints.glob(f"checkpoint-*/{STATE_FILE}"), key=lambda file: int(file.parent.name.partition("-")[2]))
    if not whole:
        return None, None
    state = WarmupState(**json.loads(whole[-1].read_text()))
    changed = conflicts_with_folder(folder, config, Occasion.WARMUP)
    if state.digest != inputs.digest:
        changed.append(Problem("the rows differ from those that the run began with", named("data.path")))
    changed += [
        Problem("the weights differ from those that the run began with", named(name))
        for name, digest in teacher.items()
        if state.teacher.get(name, digest) != digest]
    if changed:
        raise ConfigError(*changed, Problem(remedy="--resume with the run's own configuration, or a new run_dir"))
    return whole[-1].parent, state


def _report(
    config: WarmupConfig, folder: RunFolder, seen: Seen, steps: int, wall_s: float, written: list[Path]
) -> None:
    """Write summary and picture, drop the checkpoints, and tell people. written: the result's folders."""
    before, after = seen.before, seen.after
    summary = Summary(
        steps=steps,
        stop_reason="completed",
        message=None,
        held_out_before=None if before is None else before.intervals,
        held_out_after=None if after is None else after.intervals,
        best=None,
        wall_s=wall_s,
        peak_rss_gb=peak_rss_gb(),
        num_sampled_tokens=0,
        seed=config.seed,
        versions=installed_versions())
    write_summary(folder, summary)
    draw_warmup(folder.metrics_file, folder.curve_file, title=config.run_dir.name)
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    print("\n" + "\n".join([*held_out_lines(summary), *_result_lines(folder, before, after, wall_s, written)]))


def _result_lines(
    folder: RunFolder, before: HeldOutResult | None, after: HeldOutResult | None, wall_s: float, written: list[Path]
) -> list[str]:
    losses = [] if before is None or after is None else [before.loss, after.loss]
    lines = [f"{'cost':<18}{wall_s:.0f} s, {peak_rss_gb():.2f} GB of memory", f"{'curves':<18}{folder.curve_file}"]
    if losses and None not in losses:
        lines.insert(0, f"{'held-out loss':<18}{losses[0]:.4f} -> {losses[1]:.4f} nats per completion token")
    return lines + [
        f"{'go on with':<18}rl/train.py model{'.adapter' if path.name == 'adapter' else ''}={path}" for path in written]


def describe(config: WarmupConfig) -> str:
    """`--dry-run`: reads and checks everything but the weights, and shows the first row. Trains nothing."""
    inputs = read_warmup_inputs(config)
    check_warmup_teacher(config, inputs)
    _refuse_adapted_head(plan_policy(
        config.model, config.lora, load_model_config(config.model), inputs.tokenizer, default_device()))
    _refuse_merge(config)
    row = inputs.rows[0]
    steps = count_steps(config, len(inputs.rows))
    lengths = [row.num_tokens for row in inputs.rows]
    decode: Any = inputs.tokenizer.decode
    facts = {
        "prompt of the first row": f"{row.prompt.text!r}, {len(row.prompt.token_ids)} tokens",
        "what is learnt after it": f"{decode(list(row.completion_ids))!r}, {len(row.completion_ids)} tokens",
        "a completion ends at": describe_ends(
            config.model, inputs.tokenizer, inputs.turn_end_ids, (), inputs.stop_strings),
        "rows": f"{len(inputs.rows)} train, {len(inputs.held_out_rows)} give the held-out loss",
        "held-out questions": len(inputs.prompts),
        "tokens": f"{sum(lengths):,}, the longest row has {max(lengths)} of at most {inputs.max_tokens}",
        "left out": format_counts(inputs.dropped) or "none",
        "updates": f"{'as many as packed rows make' if steps is None else steps}, of {config.optim.batch_rows} rows"}
    lines = [f"{name:<29}{fact}" for name, fact in facts.items()]
    return "\n".join([to_yaml(config), *lines, "", "Everything was read and checked; nothing was trained."])
