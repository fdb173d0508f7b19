"""How far the trainer's log-probabilities are from the sampler's in bfloat16, with the adapter as PEFT computes it and
as we do, and with an output layer in bfloat16 and in float32 (model.head_dtype).

    python benchmarks/mismatch.py [--config configs/smollm2_grpo.yaml] [--scale 0.01] [--json] [key=value ...]

The adapter's B is drawn from N(0, scale) and brought to vLLM by generator.sync=adapter; every row is about the tokens
that it then samples for the first questions of the configuration. Needs vLLM, and `make smollm2` for the default.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from sampler_side import SamplerSide, num_tokens, open_sampler

from rl.configuration.loading import load
from rl.policy.float32_head import set_float32_head
from rl.policy.forward import PolicyForward
from rl.policy.fused_lora import unfused
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.policy import Policy
from rl.records import Group
from rl.update_report import Spread

SMALLER = ("generator.backend=vllm", "generator.sync=adapter", "generator.max_sequences=64", "model.dtype=bfloat16",
           "sampling.questions_per_step=8", "evaluation.path=null")
Row = tuple[str, str, str, Spread]
"""Output layer of the sampler and of the trainer, who computes the trainer's adapter, and how far they are apart."""


def change(policy: Policy, scale: float) -> None:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.trainable_parameters().items():
            if "lora_B" in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=random))


def spread(side: SamplerSide, groups: Sequence[Group]) -> Spread:
    """Of the trainer's log-probabilities of what was sampled from the sampler's own."""
    forward = PolicyForward(side.policy, temperature=side.parameters.temperature)
    calculator = LogprobCalculator(side.policy, forward, max_tokens=side.config.optim.micro_batch_tokens)
    sampled = [(group.prompt, rollout) for group in groups for rollout in group.rollouts]
    found = calculator.logprobs([(prompt.token_ids, rollout.token_ids) for prompt, rollout in sampled])
    ours = torch.cat([one.logprobs_N for one in found])
    differences = ours - torch.tensor([value for _, rollout in sampled for value in rollout.logprobs])
    return Spread.of(differences, differences.double().exp())


@contextlib.contextmanager
def float32_head(policy: Policy) -> Iterator[None]:
    """In the trainer alone."""
    set_float32_head(policy.causal_lm)
    try:
        yield
    finally:
        del vars(policy.causal_lm.get_output_embeddings())["forward"]


def measure(side: SamplerSide, groups: Sequence[Group]) -> list[Row]:
    head = side.config.model.head_dtype or "bfloat16"
    with unfused(side.policy.model):
        rows: list[Row] = [(head, head, "PEFT", spread(side, groups))]
    rows.append((head, head, "ours", spread(side, groups)))
    if head == "bfloat16":
        with float32_head(side.policy):
            rows.append((head, "float32", "ours", spread(side, groups)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/smollm2_grpo.yaml"))
    parser.add_argument("--scale", type=float, default=0.01, help="standard deviation of B (default 0.01)")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each row")
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for head in ("null", "float32"):
        with tempfile.TemporaryDirectory() as folder:
            config = load(arguments.config, [
                *SMALLER, *arguments.overrides, f"model.head_dtype={head}", f"run_dir={folder}/run"])
            with open_sampler(config) as side:
                change(side.policy, arguments.scale)
                side.generator.take_over(side.policy, 1)
                groups = side.generator.generate(side.requests(0), side.parameters)
                rows += measure(side, groups)
    if arguments.json:
        for sampler, trainer, adapter, found in rows:
            print(json.dumps({"sampler": sampler, "trainer": trainer, "adapter": adapter} | asdict(found)))
        return
    print(f"{config.model.path}, {config.generator.backend}, LoRA r{config.lora.rank}, {num_tokens(groups)} tokens\n")
    print("| sampler's output layer | trainer's | trainer's adapter | mean, nats | p99 | max | effective samples |\n"
          + "|---" * 7 + "|")
    for sampler, trainer, adapter, found in rows:
        print(f"| {sampler} | {trainer} | {adapter} | {found.mean:.4f} | {found.p99:.3f} | {found.max:.3f} | "
              f"{found.effective_sample_share:.5f} |")


if __name__ == "__main__":
    main()
