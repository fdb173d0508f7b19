"""What `model.gradient_checkpointing` costs in time and saves in memory: the update of a real model with off, selective
and full, in turn, in one process.

    make smollm2
    python benchmarks/recomputation.py [--json] [--rounds 3] [--prompt 150] [key=value ...]

Completions are made up, as in update_speed.py, of which one micro-batch is measured after a short update of each: its
memory first, with every freed block given back to the system, then its time, with what a run gives back. --json prints
one object a line: `extent`, `update_s` (the fastest round), `ratio_to_off`, `peak_gb` (growth of the resident memory
during the update, in 10^9 bytes; Linux). See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from memory_peaks import EVERY_BLOCK, peak_bytes, restart_peak
from random_models import drawn_lengths, made_up_groups
from update_speed import CONFIG, MAX_TOKENS, MEAN_TOKENS, MICRO_BATCH_TOKENS, VOCABULARY, Side, our_update, run_once

from rl.configuration.loading import load
from rl.memory.estimate import give_back_freed_memory

EXTENTS = ("off", "selective", "full")


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, object]]:
    sides: dict[str, Side] = {}
    for extent in EXTENTS:
        run, _ = our_update(load(CONFIG, [
            "generator=transformers", "evaluation.path=null", "watchdog.enabled=false",
            f"optim.micro_batch_tokens={MICRO_BATCH_TOKENS}", f"sampling.max_completion_tokens={MAX_TOKENS}",
            f"model.gradient_checkpointing={extent}", f"run_dir={folder / extent}", *arguments.overrides]))
        sides[extent] = Side(run, [])
        run(made_up_groups(1, 2, 20, [30, 20], VOCABULARY))
    lengths = drawn_lengths(16, mean_tokens=MEAN_TOKENS, max_tokens=MAX_TOKENS)
    groups = made_up_groups(2, 8, arguments.prompt, lengths, VOCABULARY)
    grown: dict[str, int] = {}
    for extent, side in sides.items():
        before = restart_peak()
        side.run(groups)
        grown[extent] = peak_bytes() - before
    give_back_freed_memory()
    for _ in range(arguments.rounds):
        for side in sides.values():
            run_once(side, groups)
    fastest = {extent: min(side.seconds) for extent, side in sides.items()}
    return [{"extent": extent, "update_s": round(fastest[extent], 2),
             "ratio_to_off": round(fastest[extent] / fastest["off"], 3), "peak_gb": round(grown[extent] / 1e9, 2)}
            for extent in EXTENTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--prompt", type=int, default=150, help="tokens of a prompt (default 150)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the three in turn (default 3)")
    parser.add_argument("overrides", nargs="*", help="key=value of the configuration")
    arguments = parser.parse_args()
    give_back_freed_memory(EVERY_BLOCK)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(arguments, Path(folder))
    if arguments.json:
        print("\n".join(map(json.dumps, found)))
        return
    for values in found:
        print(*(f"{name} {value!s:<10}" for name, value in values.items()))


if __name__ == "__main__":
    main()
