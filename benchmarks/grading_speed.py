"""How long 512 completions take to be extracted, graded and clustered, beside math-verify called in a loop.

    OTHERHALF_DATA=... python benchmarks/grading_speed.py [--json] [--repeats 3] [--skip-plain]

The completions are recorded model samples, each once, graded against the gold answer of its own question: 16 groups
join the 8 samples of two MATH questions, 16 groups the 4 samples of four GSM8K questions. No recorded group has 16
samples; a joined group has more different answers than a real one, which makes clustering more work, not less. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from rewards.accuracy import grade_many
from rewards.clustering import cluster
from rewards.extraction import extract_answers
from rewards.processes.pool import WorkerPool, total_counts

GROUP_SIZE = 16
DEADLINE_S = 5.0
# Each runs for longer than the deadline in computer algebra: powers, factorials, expansions, sums, integrals.
HANGING = (
    ("9^{9^{9^{9}}}", "1"), ("3^{3^{3^{3}}}", "2"), ("(10^7)!", "1"), ("99999999!", "3"),
    (r"\binom{10^8}{5\cdot 10^7}", "1"), ("x^{10^{9}}", "(x+1)^{10^9}"), ("(x+y+z)^{200}", "(x+y+z)^{199}"),
    (r"\prod_{k=1}^{10^8} k", "1"), (r"\sum_{k=1}^{10^9} \frac{1}{k^2+1}", "2"), (r"\int_0^1 \sin(x^x) dx", "1"))


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion and the gold answer of its question."""

    completion: str
    gold: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """seconds: wall-clock, the median where repeated. algebra: items sent to workers, None without workers.
    num_correct: of the items."""

    name: str
    seconds: float
    items: int
    algebra: int | None = None
    num_correct: int | None = None
    num_timed_out: int | None = None

    @property
    def items_per_s(self) -> float:
        return self.items / self.seconds


def read_groups(folder: Path) -> list[list[Sampled]]:
    """32 groups of 16; raises ValueError if the files hold too few questions."""
    groups: list[list[Sampled]] = []
    for name, per_question in (("math100_n8_dev", 8), ("gsm8k_gpt3_n4_dev", 4)):
        questions = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        joined = GROUP_SIZE // per_question
        needed = 16 * joined
        if len(questions) < needed or any(len(question["samples"]) != per_question for question in questions):
            raise ValueError(f"{name}.jsonl: expected at least {needed} questions with {per_question} samples each, "
                             f"found {len(questions)} questions")
        step = len(questions) // needed  # spread over the file
        chosen = questions[::step][:needed]
        for start in range(0, needed, joined):
            groups.append([Sampled(sample["text"], question["answer"])
                           for question in chosen[start:start + joined] for sample in question["samples"]])
    return groups


def ours(groups: list[list[Sampled]]) -> int:
    """Extracts, grades and clusters everything through the public functions; the number of correct completions."""
    verdicts = grade_many([(sampled.completion, sampled.gold) for group in groups for sampled in group])
    for group in groups:
        cluster(extract_answers([sampled.completion for sampled in group]))
    return sum(verdict.correct for verdict in verdicts)


def plain(groups: list[list[Sampled]], *, with_clusters: bool) -> int:
    """math-verify as its documentation calls it, one after the other in this process: parse the completion and the
    gold, verify; clusters by `verify` against each cluster's first member."""
    from math_verify import parse, verify

    num_correct = 0
    for group in groups:
        founders: list[object] = []
        for sampled in group:
            answer = parse(sampled.completion)
            num_correct += verify(parse(f"${sampled.gold}$"), answer)
            if with_clusters and not any(verify(founder, answer) for founder in founders):
                founders.append(answer)
    return num_correct


def empty_caches() -> None:
    """Forgets all verdicts and everything else that the package has cached about answers; the workers stay."""
    equivalence = importlib.import_module("rewards.equivalence")
    if hasattr(equivalence, "clear_cache"):
        equivalence.clear_cache()
    else:
        equivalence._verdicts.clear()
    for name, module in list(sys.modules.items()):
        if name.startswith("rewards.") and isinstance(module, ModuleType):
            for cached in vars(module).values():
                # A function without parameters caches no answer but something like the pool of workers.
                if isinstance(cached, functools._lru_cache_wrapper) and cached.__wrapped__.__code__.co_argcount:
                    cached.cache_clear()


def measure(
    name: str, work: Callable[[], int], num_items: int, *, repeats: int = 1, before: Callable[[], None] | None = None,
    has_workers: bool = True,
) -> Measurement:
    seconds, num_correct, algebra = [], 0, 0
    for _ in range(repeats):
        if before is not None:
            before()
        gc.collect()
        sent = total_counts()["items"]
        start = time.perf_counter()
        num_correct = work()
        seconds.append(time.perf_counter() - start)
        algebra = total_counts()["items"] - sent
    return Measurement(name, statistics.median(seconds), num_items, algebra if has_workers else None, num_correct)


def measure_hanging() -> Measurement:
    """Ten pairs that hang, each before three short ones `k + x = x + k`, straight to a pool whose workers run."""
    pool = WorkerPool("rewards.answers.symbolic:algebraically_equal", deadline_s=DEADLINE_S)
    pool.call([("x", "x"), ("x+1", "1+x")])
    pairs = [
        pair
        for k, hanging in enumerate(HANGING)
        for pair in (hanging, *((f"{k + 10 * i}+x", f"x+{k + 10 * i}") for i in range(3)))]
    start = time.perf_counter()
    outcomes = pool.call(pairs)
    seconds = time.perf_counter() - start
    pool.close()
    return Measurement(
        f"workers alone: ten items that hang and 30 short ones, deadline {DEADLINE_S:g} s", seconds, len(pairs),
        len(pairs), sum(outcome.value is True for outcome in outcomes),
        sum(outcome.status == "timed_out" for outcome in outcomes))


def run(groups: list[list[Sampled]], *, repeats: int, with_plain: bool) -> list[Measurement]:
    num_items = sum(map(len, groups))
    rows = [
        measure("ours, cold: first call", lambda: ours(groups), num_items),
        measure("ours, warm, caches emptied", lambda: ours(groups), num_items, repeats=repeats, before=empty_caches),
        measure("ours, warm, verdicts cached", lambda: ours(groups), num_items, repeats=repeats)]
    if with_plain:
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)
        plain([groups[0][:2]], with_clusters=True)  # its imports are not on the clock
        rows += [
            measure(
                "math-verify in a loop, graded only", lambda: plain(groups, with_clusters=False), num_items,
                has_workers=False),
            measure(
                "math-verify in a loop, graded and clustered", lambda: plain(groups, with_clusters=True), num_items,
                has_workers=False)]
    return [*rows, measure_hanging()]


def table(rows: list[Measurement]) -> str:
    lines = [
        "| 32 groups of 16 | seconds | items/s | sent to workers | correct | timed out |", "|---|---|---|---|---|---|"]
    for row in rows:
        counts = ["" if count is None else str(count) for count in (row.algebra, row.num_correct, row.num_timed_out)]
        lines.append(f"| {row.name} | {row.seconds:.3f} | {row.items_per_s:.0f} | {' | '.join(counts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Speed of extraction, grading and clustering on 512 recorded completions.")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the warm rows are the medians")
    parser.add_argument("--skip-plain", action="store_true", help="without the math-verify rows")
    options = parser.parse_args()
    if "OTHERHALF_DATA" not in os.environ:
        parser.error("OTHERHALF_DATA must name the folder that holds samples/")
    groups = read_groups(Path(os.environ["OTHERHALF_DATA"]) / "samples")
    rows = run(groups, repeats=options.repeats, with_plain=not options.skip_plain)
    if options.json:
        print(json.dumps([asdict(row) | {"items_per_s": round(row.items_per_s, 1)} for row in rows]))
    else:
        distinct = len({sampled.completion for group in groups for sampled in group})
        print(
            f"{sum(map(len, groups))} completions, {distinct} different ones, {os.cpu_count()} cores\n\n{table(rows)}")


if __name__ == "__main__":
    main()
