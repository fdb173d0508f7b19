"""What vLLM as the sampler gives on a GPU, in one table: `python benchmarks/gpu.py [PART ...] [--models qwen2.5-1.5b
qwen2.5-7b]`.

Parts (benchmarks/gpu_parts.py, gpu_trl.py):
    decode   tokens a second of vLLM with base weights, merged weights, an adapter of rank 16 and 32, at 64, 256 and 512
    sequences swap     seconds to bring a new policy version: adapter, merged weights
    train    the update alone: different tokens a second, the share of the bfloat16 peak that they use, peak memory;
             LoRA with shared prompts, in padded rows, with selective and full recomputation; all weights
    step     the whole step, 64 questions x 8: generation, reward, training and sync seconds
    trl      the same step with TRL's GRPOTrainer, vLLM in colocate mode, gradient checkpointing off and on; the ratio
    run      SmolLM2-135M-Instruct with GRPO and with EMPO: accuracy before and after, wall time

Every variant of a part runs in a process of its own with a time limit, so that none takes another's memory or time;
what fails or is cut is a line of the table with the reason. --tiny runs everything on small shapes, on a CPU too: it
shows that the script works. The rows are also appended to --out as JSON, one object a line: parts can be run in
separate calls. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

PARTS = {
    "decode": ("merged", "half_rank", "full_rank"), "swap": ("adapter", "merge"),
    "train": ("lora", "padded", "selective", "recomputed", "full"),
    "step": ("",), "trl": ("off", "on"), "run": ("grpo", "empo")}
"""The variants of each part: what is measured in one process."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number: what was measured, of which model, under which setting; problem: why there is no value."""

    part: str
    model: str
    setting: str
    quantity: str
    value: float | None
    problem: str = ""


def measure_apart(part: str, variant: str, model: str, arguments: argparse.Namespace) -> list[Measurement]:
    """The rows of one measurement, from a process of its own; a row with the reason where it fails or is cut."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as rows_file:
        command = [
            sys.executable, str(Path(__file__).with_name("gpu_parts.py")), part, variant, model, rows_file.name,
            str(arguments.work)]
        command += ["--tiny"] if arguments.tiny else []
        process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
        try:
            code = process.wait(arguments.limit_s)
            problem = f"ended with code {code}; see its output above" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"cut after {arguments.limit_s} s"
        finally:
            # Its own children too: what outlives it would keep the memory.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        rows = [Measurement(**json.loads(line)) for line in rows_file.read().splitlines()]
    return [*rows, Measurement(part, model, variant, "", None, problem)] if problem else rows


def table(rows: list[Measurement]) -> str:
    """Markdown."""
    lines = ["| part | model | setting | quantity | value |", "|---|---|---|---|---|"]
    for row in rows:
        value = (
            row.problem if row.value is None else f"{row.value:,.0f}" if abs(row.value) >= 100 else f"{row.value:.3g}")
        lines.append(f"| {row.part} | {row.model} | {row.setting} | {row.quantity} | {value} |")
    return "\n".join(lines)


def ratios(rows: list[Measurement]) -> list[Measurement]:
    """Our step over TRL's, of the same model."""
    ours = {row.model: row.value for row in rows if row.part == "step" and row.quantity == "step, s"}
    return [Measurement("trl", row.model, row.setting, "our step / TRL's", (ours[row.model] or 0.0) / row.value)
            for row in rows if row.part == "trl" and row.quantity == "step, s" and row.value and ours.get(row.model)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which parts (default: {' '.join(PARTS)})")
    parser.add_argument(
        "--models", nargs="+", default=None, help="shapes of benchmarks/random_models.py (default: both Qwen2.5)")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes and sizes, on a CPU too: shows that the script works")
    parser.add_argument("--limit-s", type=int, default=540, help="seconds for each measurement (default 540)")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "otherhalf-gpu",
                        help="folder for the models made here, up to 19 GB (default: in the temporary folder)")
    parser.add_argument(
        "--out", type=Path, default=None, help="file to which the rows are appended as JSON, one object a line")
    parser.add_argument("--table", type=Path, default=None, help="measure nothing: print the table of such a file")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are: {', '.join(PARTS)}")
    if arguments.table is not None:
        rows = [Measurement(**json.loads(line)) for line in arguments.table.read_text().splitlines()]
        print(table([*rows, *ratios(rows)]))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    models = arguments.models or (["tiny"] if arguments.tiny else ["qwen2.5-1.5b", "qwen2.5-7b"])
    rows = []
    for part in arguments.parts or PARTS:
        for model, variant in itertools.product(["smollm2"] if part == "run" else models, PARTS[part]):
            started = time.monotonic()
            found = measure_apart(part, variant, model, arguments)
            rows += found
            if arguments.out is not None:
                with arguments.out.open("a") as stream:
                    stream.writelines(json.dumps(asdict(row)) + "\n" for row in found)
            print(f"{part} {variant} {model}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    print(table([*rows, *ratios(rows)]))


if __name__ == "__main__":
    main()
