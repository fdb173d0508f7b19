"""One rank's part of tests/integration/test_two_ranks.py. `updated`, called in one process, gives what the ranks
together have to give."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from rl.generate.transformers_generator import TransformersGenerator
from rl.proof.proof import GeneratorMismatchError, Proof
from rl.ranks import gather_shares, share_of_rank
from tests.reference.tiny_run import (
    as_collected,
    make_updater,
    sampled_groups,
    tiny_config,
    tiny_policy,
    trained,
    with_advantages,
)

SCALE = 0.02
# Adam's step is g / (|g| + eps): with a larger eps, rounding in a gradient near zero is not blown up to a whole step.
COMMON = ("optim.eps=1e-4", "optim.max_grad_norm=0.05")
CASES: dict[str, tuple[str, ...]] = {
    "even": ("optim.micro_batch_tokens=50",), "odd": ("optim.micro_batch_tokens=60",),
    "one micro-batch, dealt out in two": ("optim.micro_batch_tokens=100000",),
    "sequence": ("optim.micro_batch_tokens=135", "loss.aggregation=sequence"),
    "constant": ("optim.micro_batch_tokens=135", "loss.aggregation=constant"),
    "several updates": ("optim.micro_batch_tokens=135", "optim.epochs=2", "optim.minibatches=2"),
    "all terms": (
        "optim.micro_batch_tokens=135", "loss.kl_weight=0.1", "loss.entropy_bonus=0.01", "loss.top_entropy_share=0.5"),
    "covariance": (
        "optim.micro_batch_tokens=60", "loss.covariance=clip", "loss.covariance.low=0", "loss.covariance.share=0.2"),
    "full parameters": ("optim.micro_batch_tokens=80", "lora.enabled=false")}


def updated(
    accelerator: Accelerator, overrides: tuple[str, ...]
) -> tuple[dict[str, torch.Tensor], dict[str, float], int]:
    """(trained weights, metrics, this rank's micro-batches) after one batch from the same start."""
    config = tiny_config(*COMMON, *overrides)
    policy = tiny_policy(config, adapter_scale=SCALE)
    batch = with_advantages(sampled_groups(tiny_policy(adapter_scale=SCALE), 4, max_tokens=16), zero=[2])
    updater = make_updater(config, policy, accelerator)
    num_micro_batches = len(list(updater.micro_batches_of(batch)))
    report = updater.update(batch, step=0, policy_version=0)
    return trained(policy), report.metrics, num_micro_batches


def proofs(accelerator: Accelerator) -> tuple[dict[str, float], str]:
    """What this rank gets of a proof where all samplers have the policy, and the error where the second rank's has the
    base."""
    config = tiny_config("generator.proof_completions=7")
    policy, rank = tiny_policy(config, adapter_scale=SCALE), accelerator.process_index
    good, bad = (
        TransformersGenerator(sampled, merge=True, max_sequences=64) for sampled in (policy, tiny_policy(config)))
    good.take_over(policy, 1)
    bad.policy_version = 1
    # Of an earlier version: each rank's sampler has to score them itself.
    step = as_collected(sampled_groups(policy, 5, version=0))
    found = Proof(config, policy, good, rank=rank, num_ranks=2).check(1, 1, step)
    try:
        Proof(config, policy, bad if rank == 1 else good, rank=rank, num_ranks=2).check(1, 1, step)
    except GeneratorMismatchError as error:
        return found, str(error)
    return found, ""


def main(out: Path) -> int:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    counts, metrics = {}, {}
    for name, overrides in CASES.items():
        weights, metrics[name], counts[name] = updated(accelerator, overrides)
        save_file(weights, out / f"{name}-{rank}.safetensors")
    gathered = {n: gather_shares(share_of_rank(range(n), rank, 2), 2, "share") for n in range(6)}
    (out / f"{rank}.json").write_text(json.dumps({
        "metrics": metrics, "counts": counts, "gathered": gathered, "proofs": proofs(accelerator)}))
    accelerator.end_training()
    return 0
