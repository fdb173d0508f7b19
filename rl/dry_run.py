"""`--dry-run`: everything a run checks before it loads weights, and what its steps will look like. Trains nothing."""

from __future__ import annotations

import torch

from rl.config import RunConfig
from rl.configuration.loading import to_yaml
from rl.evaluation.benchmarks import BuildBenchmarks, LiveBenchmarks, build_benchmarks
from rl.generate.build import check_backend
from rl.memory import MemoryEstimate, available_memory, check_memory, estimate_memory
from rl.policy.ends import describe_ends
from rl.policy.policy import resolve_dtype
from rl.questions.inputs import Inputs, read_inputs
from rl.runs.progress import format_counts
from rl.teacher.teacher import check_run_teacher


def describe(config: RunConfig, build: BuildBenchmarks | None = None) -> str:
    """The resolved configuration, one prompt, the step's sizes and the memory estimate. build: what makes the
    configured benchmarks.

    Raises what `read_inputs`, `check_run_teacher`, `build_benchmarks` and `check_backend` raise."""
    inputs = read_inputs(config)
    check_run_teacher(config, inputs)
    live = build_benchmarks(config, inputs, build)
    check_backend(config.generator, config.sampling)
    longest = max(len(prompt.token_ids) for prompt in inputs.prompts)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_dtype(config.model.dtype, device)
    estimate = estimate_memory(
        config, inputs.model_config, longest, bytes_per_weight=dtype.itemsize, on_gpu=device.type == "cuda",
        benchmark_tokens=0 if live is None else live.max_tokens)
    first = inputs.prompts[0]
    sections = {
        "configuration": to_yaml(config).rstrip(),
        "prompt of the first question": f"{first.text!r}\n{len(first.token_ids)} tokens",
        "sizes": _sizes(config, inputs, longest)}
    if live is not None:
        sections["benchmarks"] = _benchmarks(live)
    sections["memory"] = _memory(estimate, device, dtype)
    check_memory(config, estimate, available_memory(device), str(device))
    parts = [f"--- {title} ---\n{body}" for title, body in sections.items()]
    return "\n\n".join([*parts, "Everything was read and checked; nothing was trained."])


def _sizes(config: RunConfig, inputs: Inputs, longest: int) -> str:
    sampling, optim = config.sampling, config.optim
    completions = sampling.questions_per_step * sampling.group_size
    rows = completions * (longest + sampling.max_completion_tokens)
    passes = config.steps * sampling.questions_per_step / len(inputs.prompts)
    with_answer = sum(prompt.question.answer is not None for prompt in inputs.prompts)
    facts = {
        "training questions":
            f"{len(inputs.prompts)} ({with_answer} with an answer), longest prompt {longest} tokens",
        "held-out questions": len(inputs.held_out),
        "left out": format_counts(inputs.dropped) or "none",
        "each step":
            f"{sampling.questions_per_step} questions x {sampling.group_size} = {completions} completions of at most "
            f"{sampling.max_completion_tokens} tokens",
        "a completion ends at":
            describe_ends(
                config.model, inputs.tokenizer, inputs.turn_end_ids, sampling.stop_token_ids, inputs.stop_strings),
        "at most":
            f"{rows} tokens to train on, {-(-rows // optim.micro_batch_tokens)} micro-batches of "
            f"{optim.micro_batch_tokens} tokens, {optim.epochs * optim.minibatches} update(s)",
        "in all": f"{config.steps} steps, {passes:.2f} passes over the questions"}
    return "\n".join(f"{name:<24}{fact}" for name, fact in facts.items())


def _benchmarks(live: LiveBenchmarks) -> str:
    when = [
        f"{name:<24}before, after" + (f" and every {every} steps" if every else "")
        for name, every in live.every.items()]
    return "\n".join([*when, *live.notes])


def _memory(estimate: MemoryEstimate | None, device: torch.device, dtype: torch.dtype) -> str:
    if estimate is None:
        return "unknown: the checkpoint's safetensors files are not on this machine yet"
    head = (
        f"{estimate.num_parameters:,} parameters in the base, {estimate.num_trained:,} trained; one process on "
        f"{device}, {str(dtype).removeprefix('torch.')}")
    return "\n".join([head, *estimate.lines()])
