"""One rank of two that sample from the same servers: `python -m tests.reference.two_rank_sampler RANK PORT WAY FOLDER
URL...`.

Prints a line of JSON per version: rank, version, and the log-probabilities that were found in its samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch import distributed

from rl.config import GeneratorSection
from rl.generate.generator_plan import GeneratorPlan
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.servers.generator import ServerGenerator
from rl.generate.weight_sync import Sync, Way
from tests.reference.tiny_run import prompts, tiny_policy


def main() -> None:
    rank, port, given, folder, *urls = sys.argv[1:]
    way: Way = "adapter" if given == "adapter" else "merge"
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
    plan = GeneratorPlan(200, 1, 0, "models/tiny-arith", None, False, "processed_logprobs", 2, 0, Path(folder))
    section = GeneratorSection(backend="vllm_server", urls=urls, sync=way)
    policy = tiny_policy()
    generator = ServerGenerator(section, policy, plan, Sync(way, "as configured"))
    for version in (0, 1):
        generator.take_over(policy, version)
        groups = generator.generate([Request(prompts(1)[0], (1, 2, 3))], SamplingParameters(1.0, 1.0, 0, 24))
        found = sorted({value for group in groups for rollout in group.rollouts for value in rollout.logprobs})
        print(json.dumps([int(rank), version, found]), flush=True)
        distributed.barrier()
    generator.close()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
