"""How long is the update of a real model, how much of the machine does it use, and how long are the same completions in
padded rows and in a plain PEFT forward and backward?

    make smollm2
    python benchmarks/update_speed.py [--json] [--prompts 150 400] [--questions 4] [--group-size 8] [--rounds 1]

Completions are made up: geometric lengths of 94 tokens on average, at most 256. Sides are measured in turn, after a
short update of each. --json prints one object a line, for each prompt length: `update_s` (the fastest round),
`different_tokens_per_s` (each prompt and completion once), `useful_share` (FLOPs of different tokens, 4 x body + 4 x
output layer where a token is predicted, by seconds and measured matrix speed), `ratio_to_padded` and `ratio_to_peft`
(our seconds by theirs). See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from random_models import drawn_lengths, made_up_groups, num_different_tokens
from transformers import AutoModelForCausalLM, PreTrainedModel

from rl.config import RunConfig
from rl.configuration.loading import load
from rl.memory.estimate import give_back_freed_memory
from rl.optimizer import make_optimizer
from rl.paths import resolve_path
from rl.policy.forward import PolicyForward
from rl.policy.policy import Policy
from rl.questions.inputs import read_inputs
from rl.records import TrainingGroup
from rl.run import load_run_policy
from rl.update import Updater

CONFIG = Path("configs/smollm2_grpo.yaml")
MEAN_TOKENS, MAX_TOKENS = 100, 256
MICRO_BATCH_TOKENS = 2048
VOCABULARY = 49_000  # ids that are used


@dataclass(frozen=True, slots=True)
class Side:
    """run: one update of the groups. seconds: of each round."""

    run: Callable[[Sequence[TrainingGroup]], object]
    seconds: list[float]


def our_update(config: RunConfig) -> tuple[Callable[[Sequence[TrainingGroup]], object], Policy]:
    accelerator = Accelerator(mixed_precision="no", cpu=True)
    policy = load_run_policy(config, read_inputs(config), accelerator)
    forward, optimizer = accelerator.prepare(
        PolicyForward(policy, temperature=1.0),
        make_optimizer(policy.trainable_parameters().values(), config.optim))
    updater = Updater(config, accelerator, forward, optimizer, pad_token_id=policy.eos_token_ids[0])
    return lambda groups: updater.update(groups, step=0, policy_version=0), policy


def peft_update(config: RunConfig) -> Callable[[Sequence[TrainingGroup]], None]:
    """As TRL runs it: a group a batch, prompt and completions padded, the model's own logits of the completions."""
    base = AutoModelForCausalLM.from_pretrained(str(resolve_path(config.model.path)), dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(
        r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = make_optimizer([p for p in model.parameters() if p.requires_grad], config.optim)

    def update(groups: Sequence[TrainingGroup]) -> None:
        num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.group.rollouts)
        for item in groups:
            prompt, completions = item.group.prompt.token_ids, [r.token_ids for r in item.group.rollouts]
            longest = max(map(len, completions))
            ids_BL, mask_BL = (torch.tensor([[*start, *row, *[0] * (longest - len(row))] for row in completions])
                               for start, completions in ((prompt, completions),
                                                          ((1,) * len(prompt), [(1,) * len(c) for c in completions])))
            logits = model(input_ids=ids_BL, attention_mask=mask_BL, logits_to_keep=longest + 1, use_cache=False).logits
            logprobs_BT = logits[:, :-1].log_softmax(-1).gather(2, ids_BL[:, -longest:, None]).squeeze(2)
            ratio_BT = torch.exp(logprobs_BT - logprobs_BT.detach())
            weights_BT = torch.tensor(item.advantages)[:, None] * mask_BL[:, -longest:]
            (-(ratio_BT * weights_BT).sum() / num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def run_once(side: Side, groups: Sequence[TrainingGroup]) -> None:
    started_s = time.perf_counter()
    side.run(groups)
    side.seconds.append(time.perf_counter() - started_s)


def matrix_flops_per_s() -> list[float]:
    """Five times: a product of the sizes of SmolLM2's layers in float32, on as many threads as torch has."""
    left, right = torch.randn(2048, 576), torch.randn(576, 1536)

    def once() -> float:
        started_s = time.perf_counter()
        for _ in range(40):
            torch.mm(left, right)
        return 40 * 2 * 2048 * 576 * 1536 / (time.perf_counter() - started_s)

    once()
    return [once() for _ in range(5)]


def useful_flops(model: PreTrainedModel, groups: Sequence[TrainingGroup]) -> int:
    """Of the linear layers of a frozen model with small adapters, forward and backward: 4 a weight and token."""
    body = sum(parameter.numel() for name, parameter in model.named_parameters()
               if not any(part in name for part in ("lora_", "embed", "lm_head")))
    predicted = sum(len(rollout.token_ids) for item in groups for rollout in item.group.rollouts)
    head: int = model.get_output_embeddings().weight.numel()
    return 4 * body * num_different_tokens(groups) + 4 * head * predicted


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    settings = [
        "generator=transformers", "lora.rank=32", "model.dtype=float32", "evaluation.path=null",
        "watchdog.enabled=false", f"optim.micro_batch_tokens={MICRO_BATCH_TOKENS}",
        f"sampling.max_completion_tokens={MAX_TOKENS}"]
    shared, policy = our_update(load(CONFIG, [*settings, f"run_dir={folder / 'shared'}"]))
    padded_config = load(CONFIG, [*settings, "model.attention=sdpa", f"run_dir={folder / 'padded'}"])
    runs = [shared, our_update(padded_config)[0], peft_update(padded_config)]
    count = arguments.questions * arguments.group_size
    lengths = drawn_lengths(count, mean_tokens=MEAN_TOKENS, max_tokens=MAX_TOKENS)
    for run in runs:
        run(made_up_groups(1, 2, 20, [30, 20], VOCABULARY))
    found: list[dict[str, object]] = []
    for prompt_tokens in arguments.prompts:
        groups = made_up_groups(arguments.questions, arguments.group_size, prompt_tokens, lengths, VOCABULARY)
        sides = [Side(run, []) for run in runs]
        matrix = []  # before and after each of ours, since the machine's speed changes by the minute
        for _ in range(arguments.rounds):
            for number, side in enumerate(sides):
                matrix += matrix_flops_per_s() if number == 0 else []
                run_once(side, groups)
                matrix += matrix_flops_per_s() if number == 0 else []
        ours, padded, peft = (min(side.seconds) for side in sides)
        useful = useful_flops(policy.causal_lm, groups) / ours / statistics.median(matrix)
        found.append({
            "model": "smollm2-135m", "prompt_tokens": prompt_tokens, "update_s": round(ours, 3),
            "different_tokens_per_s": round(num_different_tokens(groups) / ours, 1), "useful_share": round(useful, 3),
            "ratio_to_padded": round(ours / padded, 3), "ratio_to_peft": round(ours / peft, 3),
            "threads": torch.get_num_threads()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--prompts", type=int, nargs="+", default=[150, 400], help="tokens of the prompts")
    parser.add_argument("--questions", type=int, default=4, help="groups of one update (default 4)")
    parser.add_argument("--group-size", type=int, default=8, help="completions of each (default 8)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of the three sides in turn (default 1)")
    arguments = parser.parse_args()
    give_back_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    if arguments.json:
        print("\n".join(map(json.dumps, found)))
        return
    width = max(map(len, found[0]))
    for name in found[0]:
        print(f"{name:<{width}}", *(f"{values[name]!s:>14}" for values in found))


if __name__ == "__main__":
    main()
