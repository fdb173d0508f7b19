"""`--dry-run`: everything a run checks before it loads weights, each reward called once, and what its steps will look
like. Trains nothing. `--dry-run --gpu-memory GB`: whether the run fits into a card, from the model's shapes alone.
"""

from __future__ import annotations

import torch

from rl.config import RunConfig
from rl.configuration.loading import to_yaml
from rl.evaluation.benchmarks import BuildBenchmarks, LiveBenchmarks, build_benchmarks
from rl.generate.build import check_generator
from rl.memory.estimate import MemoryEstimate, available_memory, check_memory
from rl.memory.nearest_settings import enough, estimator, render_fit
from rl.planning.shapes import planned_config
from rl.policy.ends import describe_ends
from rl.policy.policy import dtype_name, plan_policy, resolve_dtype
from rl.questions.inputs import Inputs, read_inputs
from rl.questions.splits import describe as describe_splits
from rl.runs.progress import format_counts
from rl.scoring.rehearsal import rehearse
from rl.teacher.teacher import check_run_teacher


def describe(config: RunConfig, build: BuildBenchmarks | None = None) -> None:
    """Print the resolved configuration, one prompt, the step's sizes, what each reward made of made-up completions and
    the memory estimate, each before what may be refused next. build: what makes the configured benchmarks.

    Raises what `read_inputs`, `check_run_teacher`, `build_benchmarks`, `rehearse`, `plan_policy`, `check_generator`
    and `check_memory` raise."""
    inputs = read_inputs(config)
    check_run_teacher(config, inputs)
    live = build_benchmarks(config, inputs, build)
    longest = inputs.longest_prompt
    first = inputs.prompts[0]
    _say("configuration", to_yaml(config).rstrip())
    _say("prompt of the first question", f"{first.text!r}\n{len(first.token_ids)} tokens")
    _say("sizes", _sizes(config, inputs, longest))
    if config.selection.low is not None or config.selection.high is not None:
        _say("which groups train, by the split of their answers (H / ln G)",
             describe_splits(config.sampling.group_size, config.selection.low, config.selection.high,
                             config.selection.min_votes))
    if live is not None:
        _say("benchmarks", _benchmarks(live))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype, available = resolve_dtype(config.model.dtype, device), available_memory(device)
    estimate = estimator(
        inputs.model_config, config, longest, bytes_per_weight=dtype.itemsize, on_gpu=device.type == "cuda",
        benchmark_tokens=0 if live is None else live.max_tokens)
    needed = estimate(config)
    _say("memory", f"{_memory(needed, str(device), dtype)}\n{render_fit(config, estimate, available, str(device))}")
    _say("rewards, called on made-up completions", _rehearsal(config, inputs))
    policy = plan_policy(config.model, config.lora, inputs.model_config, inputs.tokenizer, device)
    check_generator(config.generator, config.sampling, policy, on_gpu=device.type == "cuda")
    check_memory(config, needed, available, str(device), enough=lambda: enough(config, estimate, available))
    _say("not checked", _not_checked(config))
    print("Everything was read and all else checked; nothing was trained.")


def plan(config: RunConfig, gpu_memory_gb: float) -> None:
    """Print the memory that the run needs on one card with so many GB (1e9 bytes), all of them free, and the nearest
    settings that fit. Reads no questions: prompts count with data.max_prompt_tokens.

    Raises ConfigError where the model's shapes are not known, or the run does not fit."""
    model_config, available = planned_config(config.model), int(gpu_memory_gb * 1e9)
    dtype = torch.float32 if config.model.dtype == "float32" else torch.bfloat16
    estimate = estimator(model_config, config, config.data.max_prompt_tokens, bytes_per_weight=dtype.itemsize,
                         on_gpu=True)
    needed, card = estimate(config), f"a GPU with {gpu_memory_gb:g} GB"
    _say("memory", f"{_memory(needed, card, dtype)}\n{render_fit(config, estimate, available, card)}")
    print("Planned from the model's shapes, with prompts of data.max_prompt_tokens; nothing else was checked.")
    check_memory(config, needed, available, card, enough=lambda: enough(config, estimate, available))


def _say(title: str, body: str) -> None:
    print(f"--- {title} ---\n{body}\n", flush=True)


def _sizes(config: RunConfig, inputs: Inputs, longest: int) -> str:
    sampling, optim = config.sampling, config.optim
    completions = sampling.questions_per_step * sampling.group_size
    rows = completions * (longest + sampling.max_completion_tokens)
    passes = config.steps * sampling.questions_per_step / len(inputs.prompts)
    with_answer = sum(prompt.question.answer is not None for prompt in inputs.prompts)
    facts = {
        "training questions":
            f"{len(inputs.prompts)} ({with_answer} with an answer), longest prompt {longest} tokens",
        **({} if config.anchors is None else {
            "anchors": f"{len(inputs.anchors)} labelled questions, {config.anchors.mixed_in} in each step"}),
        "held-out questions": len(inputs.held_out),
        "left out": format_counts(inputs.dropped) or "none",
        "each step":
            f"{sampling.questions_per_step} questions x {sampling.group_size} = {completions} completions of at most "
            f"{sampling.max_completion_tokens} tokens",
        **({} if config.votes is None else {
            "and votes": f"{config.votes.samples} of an average for each question without a label"}),
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


def _rehearsal(config: RunConfig, inputs: Inputs) -> str:
    """What each reward, and the grader of held-out completions, gave."""
    lines = rehearse(inputs.rewards, inputs.prompts, config.sampling.group_size)
    if inputs.anchor_rewards is not None:
        judged = rehearse(inputs.anchor_rewards, inputs.anchors, config.sampling.group_size)
        lines += [f"anchors: {line}" for line in judged]
    if inputs.grader is not None:
        graded = rehearse(inputs.grader, inputs.held_out, config.sampling.group_size)
        lines += [f"held out: {line}" for line in graded]
    return "\n".join(lines) or "none"


def _memory(estimate: MemoryEstimate, where: str, dtype: torch.dtype) -> str:
    head = (
        f"{estimate.num_parameters:,} parameters in the base, {estimate.num_trained:,} trained; one process on "
        f"{where}, {dtype_name(dtype)}")
    return "\n".join([head, *estimate.lines()])


def _not_checked(config: RunConfig) -> str:
    """What only the start finds."""
    items = ["that the weights load, and what is in them"]
    if config.model.adapter is not None:
        items.append(f"that the adapter in {config.model.adapter} fits them")
    if config.generator.backend == "vllm":
        items.append("that vLLM starts with this model")
    if config.generator.backend == "vllm_server":
        items.append(f"that servers answer at {', '.join(config.generator.urls)}, with this model and these flags")
    if config.teacher is not None:
        items.append("that the teacher loads" if config.teacher.backend == "local" else
                     f"that the teacher's servers answer at {', '.join(config.teacher.urls)}")
    if config.tracking.trackers:
        items.append(f"that {', '.join(config.tracking.trackers)} may be written to")
    items.append("rewards on what the model writes, and on other questions than one of each kind")
    return "\n".join(items)
