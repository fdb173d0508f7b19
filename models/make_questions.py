"""Write the quick start's questions: `python models/make_questions.py models/tiny-arith/questions`.

train.jsonl holds questions alone (for label-free rewards: there is no answer to read), train_with_answers.jsonl the
same questions with answers, held_out.jsonl questions that neither training file nor the pre-training documents contain
(see models/arith.py for the rule). Seeded: the files are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from arith import Sum, draw_sum


def draw_distinct(count: int, random: Random, *, held_out: bool) -> list[Sum]:
    """`count` different sums, all held out or none."""
    found: dict[str, Sum] = {}
    while len(found) < count:
        candidate = draw_sum(random)
        if candidate.is_held_out == held_out:
            found.setdefault(candidate.question, candidate)
    return list(found.values())


def write(path: Path, sums: list[Sum], *, with_answers: bool) -> None:
    with path.open("w") as stream:
        for index, problem in enumerate(sums):
            row = {"id": f"{path.stem.split('_with')[0]}-{index}", "question": problem.question}
            if with_answers:
                row["answer"] = str(problem.answer)
            stream.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4096, help="number of training questions (default: 4096)")
    parser.add_argument("--held-out", type=int, default=512, help="number of held-out questions (default: 512)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    train = draw_distinct(arguments.train, Random(1), held_out=False)
    write(arguments.folder / "train.jsonl", train, with_answers=False)
    write(arguments.folder / "train_with_answers.jsonl", train, with_answers=True)
    write(
        arguments.folder / "held_out.jsonl", draw_distinct(arguments.held_out, Random(2), held_out=True),
        with_answers=True)


if __name__ == "__main__":
    main()
