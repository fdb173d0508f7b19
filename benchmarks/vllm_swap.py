"""Seconds to bring a new policy version to vLLM, in this process or on a running server, by adapter and by merged
weights.

    python benchmarks/vllm_swap.py [--config configs/vllm_tiny.yaml] [--way adapter merge] [--rounds 7] [--json]
    [key=value ...] python benchmarks/vllm_swap.py generator.backend=vllm_server
    'generator.urls=[http://localhost:8000]' --way adapter

The policy is changed a little before each round. After it one completion of one token is sampled, and then one of the
same prompt backwards, which no prefix cache knows: what the first takes longer than the second is what the engine had
put off. The first round is a warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sampler_side import SamplerSide, open_sampler

from rl.configuration.loading import load
from rl.generate.protocol import Request


@dataclass(frozen=True, slots=True)
class Swap:
    """Medians in seconds: of take_over, its slowest, of the first token after it, and of a token after that."""

    take_over_s: float
    slowest_s: float
    first_token_s: float
    next_token_s: float

    def as_json(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


def measure(side: SamplerSide, rounds: int) -> Swap:
    swaps, firsts, nexts = [], [], []
    prompt = side.inputs.prompts[0]
    backwards = replace(prompt, token_ids=prompt.token_ids[::-1])
    one_token = replace(side.parameters, max_completion_tokens=1)
    for version in range(1, rounds + 2):
        side.nudge()
        started = time.perf_counter()
        side.generator.take_over(side.policy, version)
        taken_over = time.perf_counter()
        side.generator.generate([Request(prompt, (version,))], one_token)
        sampled = time.perf_counter()
        side.generator.generate([Request(backwards, (version,))], one_token)
        swaps.append(taken_over - started)
        firsts.append(sampled - taken_over)
        nexts.append(time.perf_counter() - sampled)
    return Swap(
        statistics.median(swaps[1:]), max(swaps[1:]), statistics.median(firsts[1:]), statistics.median(nexts[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/vllm_tiny.yaml"))
    parser.add_argument("--way", nargs="+", choices=["adapter", "merge"], default=["adapter", "merge"])
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    arguments = parser.parse_args()
    found: dict[str, Swap] = {}
    for way in arguments.way:
        config = load(arguments.config, [f"generator.sync={way}", *arguments.overrides])
        with open_sampler(config) as side:
            found[way] = measure(side, arguments.rounds)
    if arguments.json:
        print(json.dumps({way: swap.as_json() for way, swap in found.items()}))
        return
    print(f"{config.model.path}, LoRA r{config.lora.rank}, medians of {arguments.rounds} rounds, seconds")
    print(f"{'way':<10}{'take over':>11}{'slowest':>11}{'first token after':>20}{'next token':>13}")
    for way, swap in found.items():
        print(
            f"{way:<10}{swap.take_over_s:11.3f}{swap.slowest_s:11.3f}{swap.first_token_s:20.3f}{swap.next_token_s:13.3f}"
        )


if __name__ == "__main__":
    main()
