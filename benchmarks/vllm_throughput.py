"""Tokens a second of the sampler `generator: vllm` beside plain vllm.LLM.generate: the same requests and seeds, in
turn, in one process.

    python benchmarks/vllm_throughput.py [--config configs/vllm_tiny.yaml] [--rounds 5] [--json] [key=value ...]

Each side has an engine of its own with the same settings. Ours is timed from requests to whole groups of decoded
rollouts, plain from prompts to its outputs; one round of each is a warm-up. The script fails if the two sides do not
sample the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sampler_side import SamplerSide, num_tokens, open_sampler

from rl.configuration.loading import load
from rl.generate.vllm_engine import CPU_BATCH_TOKENS

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
Tokens = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Round:
    """tokens sampled and the seconds of each side."""

    tokens: int
    ours_s: float
    plain_s: float


def plain_side(side: SamplerSide, max_tokens: int) -> Callable[[int], tuple[float, Tokens]]:
    """A function that samples a round with vllm.LLM.generate: seconds, and the completions in the order of ours."""
    import vllm

    config, parameters = side.config, side.parameters
    arguments: dict[str, Any] = dict(
        model=config.model.path, dtype=str(side.policy.dtype).removeprefix("torch."), max_model_len=max_tokens,
        max_num_seqs=config.generator.max_sequences, logprobs_mode="processed_logprobs", generation_config="vllm",
        disable_log_stats=True, use_tqdm_on_load=False)
    if next(side.policy.model.parameters()).device.type == "cpu":
        arguments |= dict(enforce_eager=True, kv_cache_memory_bytes=int((config.generator.cache_gb or 1) * 1e9),
                          enable_chunked_prefill=False, max_num_batched_tokens=max(CPU_BATCH_TOKENS, max_tokens))
    else:
        arguments["gpu_memory_utilization"] = config.generator.memory_share
    llm = vllm.LLM(**arguments)
    stop_ids = sorted({*side.policy.eos_token_ids, *parameters.stop_token_ids})

    def sample(round_number: int) -> tuple[float, Tokens]:
        requests = side.requests(round_number)
        prompts = [{"prompt_token_ids": list(request.prompt.token_ids)} for request in requests for _ in request.seeds]
        settings = [
            vllm.SamplingParams(
                temperature=parameters.temperature, seed=seed, max_tokens=parameters.max_completion_tokens,
                stop_token_ids=stop_ids, stop=list(parameters.stop_strings), logprobs=0)
            for request in requests
            for seed in request.seeds]
        started = time.perf_counter()
        outputs = llm.generate(prompts, settings, use_tqdm=False)
        return time.perf_counter() - started, [tuple(output.outputs[0].token_ids) for output in outputs]

    return sample


def measure(side: SamplerSide, rounds: int) -> list[Round]:
    longest = max(len(prompt.token_ids) for prompt in (*side.inputs.prompts, *side.inputs.held_out))
    plain = plain_side(side, longest + side.parameters.max_completion_tokens)
    measured: list[Round] = []
    for number in range(rounds + 1):
        # Who begins alternates: what comes second finds a warmer machine.
        if number % 2:
            plain_s, theirs = plain(number)
        started = time.perf_counter()
        groups = side.generator.generate(side.requests(number), side.parameters)
        ours_s = time.perf_counter() - started
        if not number % 2:
            plain_s, theirs = plain(number)
        ours = [rollout.token_ids for group in groups for rollout in group.rollouts]
        same = sum(mine == other for mine, other in zip(ours, theirs, strict=True))
        lengths = sum(map(len, theirs)) / num_tokens(groups)
        # In bfloat16 the order in which requests share batches may turn a token; the work stays the same within a
        # hundredth.
        if same < 0.5 * len(ours) or not 0.98 < lengths < 1.02:
            raise RuntimeError(
                f"round {number}: {same} of {len(ours)} completions are the same, tokens {lengths:.3f}: not the same "
                "work")
        measured.append(Round(num_tokens(groups), ours_s, plain_s))
    return measured[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/vllm_tiny.yaml"))
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each side (default 5)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    arguments = parser.parse_args()
    # On a GPU two engines share the memory.
    share = ["generator.memory_share=0.35"] if torch.cuda.is_available() else []
    config = load(arguments.config, ["generator.sync=merge", *share, *arguments.overrides])
    with open_sampler(config) as side:
        rounds = measure(side, arguments.rounds)
    ours = statistics.median(each.tokens / each.ours_s for each in rounds)
    plain = statistics.median(each.tokens / each.plain_s for each in rounds)
    ratio = statistics.median(each.plain_s / each.ours_s for each in rounds)
    if arguments.json:
        print(
            json.dumps(
                {"ours_tokens_per_s": round(ours, 1), "plain_tokens_per_s": round(plain, 1), "ratio": round(ratio, 4)}))
        return
    sampling = config.sampling
    print(f"{config.model.path}, {sampling.questions_per_step} questions x {sampling.group_size}, about "
          f"{statistics.mean(each.tokens for each in rounds):.0f} tokens a round, medians of {len(rounds)} rounds")
    print(f"ours {ours:,.0f} tokens/s, vllm.LLM.generate {plain:,.0f} tokens/s, ratio {ratio:.3f} "
          f"({', '.join(f'{each.plain_s / each.ours_s:.3f}' for each in rounds)})")


if __name__ == "__main__":
    main()
