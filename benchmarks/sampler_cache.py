"""The embedded sampler with completions that share their prompt's cache, and with a copy of it for each: seconds of
processor time (other processes on the machine disturb it least), in turn in one process, and the growth of resident
memory, in a process each.

    python benchmarks/sampler_cache.py [--threads 1]
    python benchmarks/sampler_cache.py --model models/smollm2-135m-instruct --questions 4 --prompts 180,400 --tokens 94

Linux, on the CPU. Prompts are random tokens, completions go to the length limit; with --ends they end, and leave the
batch, where the model ends them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from dataclasses import replace

import torch
from memory_peaks import EVERY_BLOCK, _load, peak_bytes, restart_peak
from transformers.utils import logging as transformers_logging

from rl.configuration.loading import load
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.memory.estimate import give_back_freed_memory
from rl.records import Prompt, Question

GROUP = 8


def opened(arguments: argparse.Namespace) -> TransformersGenerator:
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()
    config = load(None, [f"model.path={arguments.model}", f"model.dtype={arguments.dtype}"])
    policy = _load(config)
    policy = policy if arguments.ends else replace(policy, eos_token_ids=())
    return TransformersGenerator(policy, merge=True, max_sequences=arguments.questions * GROUP)


def requests(questions: int, length: int) -> list[Request]:
    """Prompts of up to `length` tokens, not all of the same number."""
    ids = torch.randint(3, 90, (questions, length), generator=torch.Generator().manual_seed(0)).tolist()
    return [Request(Prompt(Question(str(i), "", None, {}), "", tuple(row[: length - i % 4])), tuple(range(GROUP)))
            for i, row in enumerate(ids)]


def sample(generator: TransformersGenerator, questions: int, length: int, tokens: int, shares: bool) -> float:
    generator.shares_cache = shares
    before = time.process_time()
    generator.generate(requests(questions, length), SamplingParameters(1.0, 1.0, 0, tokens))
    return time.process_time() - before


def growth(arguments: argparse.Namespace, length: int, shares: bool) -> int:
    """Bytes, to the length limit."""
    give_back_freed_memory(EVERY_BLOCK)
    generator = opened(arguments)
    sample(generator, 1, 8, 1, shares)
    before = restart_peak()
    sample(generator, arguments.questions, length, arguments.tokens, shares)
    return peak_bytes() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/tiny-arith", help="folder of a checkpoint (default: %(default)s)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=32, help=f"with {GROUP} completions each")
    parser.add_argument("--prompts", default="40", help="lengths to try (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=48, help="of a completion")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ends", action="store_true")
    arguments = parser.parse_args()
    print("| prompt | copied, s | shared, s | of its time | copied, MB | shared, MB |\n|---|---|---|---|---|---|")
    for length in map(int, arguments.prompts.split(",")):
        context = multiprocessing.get_context("fork")
        sizes = []
        for shares in (False, True):
            with context.Pool(1) as pool:
                sizes.append(pool.apply(growth, (arguments, length, shares)) / 1e6)
        with context.Pool(1) as pool:
            times = pool.apply(in_turn, (arguments, length))
        print(f"| {length} | {times[0]:.3f} | {times[1]:.3f} | {times[1] / times[0]:.2f} | {sizes[0]:.0f} "
              f"| {sizes[1]:.0f} |", flush=True)


def in_turn(arguments: argparse.Namespace, length: int) -> tuple[float, float]:
    """Medians of both ways, after a short round of each."""
    generator = opened(arguments)
    for shares in (False, True):
        sample(generator, 1, 8, 4, shares)
    rounds = [[sample(generator, arguments.questions, length, arguments.tokens, shares) for shares in (False, True)]
              for _ in range(arguments.rounds)]
    copied, shared = (sorted(times)[arguments.rounds // 2] for times in zip(*rounds, strict=True))
    return copied, shared


if __name__ == "__main__":
    main()
