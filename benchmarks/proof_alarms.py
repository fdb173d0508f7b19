"""How often the proof that the sampler has the policy is wrong: false alarms of runs in which it has, and the step in
which a run is stopped where it has not.

    python benchmarks/proof_alarms.py [--generator transformers vllm] [--steps 63] [--folder runs/proof_alarms]

Runs of the tiny model with a proof in every step, for each dtype, learning rate and way of bringing versions. `deaf`
takes the numbers of new versions and not their weights, `stuck` takes the first update and none after it. What is run
already is not run again. One Markdown row per setting.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.train import main as train

DTYPES, RATES = ("float32", "bfloat16"), ("1e-6", "1e-5", "1e-4", "5e-4")
WAYS = {"transformers": ("shared", "merge"), "vllm": ("adapter", "merge")}
SMALL = (
    "sampling.questions_per_step=8", "sampling.group_size=8", "sampling.max_completion_tokens=48", "data.limit=4096",
    "evaluation.path=null", "checkpoint.every=1000", "tracking.progress=lines", "optim.schedule=constant",
    "generator.proof_every=1", "selection.low=null", "selection.high=null", "watchdog.enabled=false")
TakeOver = Callable[[TransformersGenerator, Policy, int], None]


@contextmanager
def broken(last_version: int) -> Iterator[None]:
    """Embedded samplers are copies that take no version's weights after `last_version`, and say that they do."""
    real: TakeOver = TransformersGenerator.take_over
    make = TransformersGenerator.__init__

    def copied(self: TransformersGenerator, policy: Policy, *, merge: bool, max_sequences: int) -> None:
        make(self, policy, merge=True, max_sequences=max_sequences)

    def take_over(self: TransformersGenerator, policy: Policy, version: int) -> None:
        if version <= last_version:
            real(self, policy, version)
        self.policy_version = version

    with (patch.object(TransformersGenerator, "__init__", copied),
          patch.object(TransformersGenerator, "take_over", take_over)):
        yield


def run(folder: Path, steps: int, *words: str) -> dict[str, Any]:
    """What one run's proofs said; the step before which it was stopped, None where it came to its end."""
    record = folder / "proofs.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        code = train([*SMALL, f"steps={steps}", f"run_dir={folder}", *words])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        proofs = [line for line in lines if "proof/agreement" in line]
        record.write_text(json.dumps({
            "stopped": None if code == 0 else len([line for line in lines if line["kind"] == "train"]),
            "num_proofs": len(proofs), "num_open": sum(line["proof/inconclusive"] for line in proofs),
            "moved": proofs[-1].get("proof/moved"), "agreement": proofs[-1]["proof/agreement"],
            "survives": proofs[-1].get("proof/survives")}))
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def row(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def told(found: dict[str, Any]) -> str:
    return "never" if found["stopped"] is None else f"{found['stopped']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", nargs="+", choices=list(WAYS), default=["transformers"])
    parser.add_argument("--steps", type=int, default=63)
    parser.add_argument("--folder", type=Path, default=Path("runs/proof_alarms"))
    options = parser.parse_args()
    print(row("sampler", "dtype", "lr", "proofs", "stopped", "open", "moved, at the end", "deaf: updates until stopped",
              "stuck: updates until stopped"), flush=True)
    print(row(*["---"] * 9), flush=True)
    for generator in options.generator:
        for way in WAYS[generator]:
            for dtype in DTYPES:
                for rate in RATES:
                    name, words = f"{generator}-{way}-{dtype}-{rate}", (
                        f"generator={generator}", f"generator.sync={way}", f"model.dtype={dtype}", f"optim.lr={rate}")
                    good = run(options.folder / name, options.steps, *words)
                    deaf = stuck = "-"
                    if (generator, way) == ("transformers", "shared"):
                        with broken(0):
                            deaf = told(run(options.folder / f"{name}-deaf", options.steps, *words))
                        with broken(1):
                            stuck = told(run(options.folder / f"{name}-stuck", options.steps, *words))
                    print(row(f"{generator}, {way}", dtype, rate, good["num_proofs"], told(good),
                              int(good["num_open"]), f"{good['moved']:.2g}", deaf, stuck), flush=True)


if __name__ == "__main__":
    main()
