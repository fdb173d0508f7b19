"""Three full steps of SmolLM2-135M-Instruct through vLLM on a CPU: seconds of each part and peak memory, which must
stay below 6 GB.

    python benchmarks/smollm2_steps.py [--config configs/smollm2_grpo.yaml] [key=value ...]

The configuration's steps, but smaller: 6 questions x 8 and 32 sequences at a time. Needs `make smollm2`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.runs.summary import read_summary

MAX_GB = 6.0
SMALLER = ("steps=3", "sampling.questions_per_step=6", "generator.max_sequences=32", "optim.micro_batch_tokens=1024",
           "optim.warmup_steps=0", "evaluation.path=null", "tracking.progress=lines")
PARTS = ("generate", "reward", "train", "sync", "step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/smollm2_grpo.yaml"))
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        folder = RunFolder(Path(parent) / "run")
        command = [sys.executable, "-m", "rl.train", "--config", str(arguments.config), *SMALLER, *arguments.overrides,
                   f"run_dir={folder.path}"]
        subprocess.run(command, cwd=project_root(), check=True)
        lines = [json.loads(line) for line in folder.metrics_file.read_text().splitlines()]
        peak_gb, wall_s = (summary := read_summary(folder)).peak_rss_gb, summary.wall_s
    print(
        "\n| step | "
        + " | ".join(f"{part}, s" for part in PARTS)
        + " | sampled tokens | groups trained |\n"
        + "|---" * 8
        + "|")
    for number, line in enumerate(lines, start=1):
        print(f"| {number} | " + " | ".join(f"{line[f'{part}_s']:.2f}" for part in PARTS)
              + f" | {line['tokens/sampled']:.0f} | {line['groups/trained']:.0f} |")
    print(f"\nrun {wall_s:.0f} s, peak memory {peak_gb:.2f} GB (at most {MAX_GB:g})")
    if peak_gb > MAX_GB:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
