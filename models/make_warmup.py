"""Write solutions for a supervised warm-up: `python models/make_warmup.py models/tiny-arith/questions/warmup.jsonl`.

Each row has a question that is not held out (models/arith.py) and its worked solution, in the format that the tiny
model is rewarded for: the sum carried out line by line, then the boxed answer. Seeded: the file is the same on every
machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from arith import worked_solution
from make_questions import draw_distinct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSONL file to write")
    parser.add_argument(
        "--rows", type=int, default=1024, help="number of solutions, each of another question (default: 1024)")
    parser.add_argument("--seed", type=int, default=3, help="which questions (default: 3)")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w") as stream:
        for problem in draw_distinct(arguments.rows, Random(arguments.seed), held_out=False):
            stream.write(json.dumps({"question": problem.question, "solution": worked_solution(problem)}) + "\n")


if __name__ == "__main__":
    main()
