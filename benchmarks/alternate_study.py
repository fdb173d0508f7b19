"""RL and supervised training in turn against RL alone, at the same number of sampled tokens, on the tiny model.

    python benchmarks/alternate_study.py --out runs/alternate_study [--seeds 0,1,2]

Runs configs/tiny_sft_rl_alternate.yaml and, with as many steps as its sampled tokens (RL and rejection sampling) pay
for, rounded up, configs/tiny_grpo.yaml; prints a Markdown table of held-out avg@8. Goes on where it was stopped. About
six minutes on one idle core.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

ALTERNATE, ALONE = "configs/tiny_sft_rl_alternate.yaml", "configs/tiny_grpo.yaml"
GROUP_SIZE = 8  # of configs/tiny_grpo.yaml
PILOT_STEPS = 40
"""The pilot tells how many tokens a step of RL alone takes; completions grow as it learns, so it is as long as the run
it stands for."""


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)


def summary(folder: Path) -> Any:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def alternate(seed: int, folder: Path) -> tuple[list[float], int]:
    """(held-out accuracy at the start and behind each stage that trains, tokens sampled)."""
    run("rl.pipeline", "--config", ALTERNATE, f"run_dir={folder}", f"seed={seed}")
    stages = summary(folder)["stages"]
    trained = [stage for stage in stages if stage["after"] is not None]
    return ([trained[0]["before"]["value"], *(stage["after"]["value"] for stage in trained)],
            sum(stage["num_sampled_tokens"] or 0 for stage in stages))


def alone(seed: int, steps: int, folder: Path) -> tuple[float, int]:
    """(held-out accuracy at the end, tokens sampled)."""
    if not (folder / "summary.json").exists():
        run(
            "rl.train", "--config", ALONE, f"run_dir={folder}", f"seed={seed}", f"steps={steps}",
            "tracking.progress=lines")
    found = summary(folder)
    return found["held_out_after"]["avg@8"]["value"], found["num_sampled_tokens"]


def steps_for(tokens: int, seed: int, out: Path) -> int:
    """The fewest steps of RL alone that sample at least so many tokens, by a pilot's first steps."""
    pilot = out / f"pilot-{seed}"
    alone(seed, PILOT_STEPS, pilot)
    counted = 0.0
    lines = [json.loads(line) for line in (pilot / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in (line for line in lines if line["kind"] == "train"):
        counted += GROUP_SIZE * line["groups/sampled"] * line["collapse/completion_length"]
        if counted >= tokens:
            return int(line["step"])
    return math.ceil(PILOT_STEPS * tokens / counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/alternate_study"))
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    print(
        "| seed | RL and SFT in turn: start, behind RL, SFT, RL, SFT | tokens | RL alone | steps | tokens "
        "|\n|---|---|---|---|---|---|", flush=True)
    for seed in map(int, options.seeds.split(",")):
        values, tokens = alternate(seed, options.out / f"alternate-{seed}")
        steps = steps_for(tokens, seed, options.out)
        accuracy, tokens_alone = alone(seed, steps, options.out / f"alone-{seed}-{steps}")
        print(
            f"| {seed} | {', '.join(f'{value:.3f}' for value in values)} | {tokens:,} | {accuracy:.3f} | {steps} | "
            f"{tokens_alone:,} |", flush=True)


if __name__ == "__main__":
    main()
