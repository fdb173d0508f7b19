"""Write the quick start's questions: `python models/make_questions.py models/tiny-arith/questions`.

train.jsonl holds questions alone (for label-free rewards: there is no answer to read), train_with_answers.jsonl the
same questions with answers, held_out.jsonl questions that neither training file nor the pre-training documents contain
(see models/arith.py for the rule). With `--mixed` the sums are of three kinds (KINDS), of which the second and third
are in no pre-training document; the rows say which. Seeded: the files are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

from arith import Sum, draw_sum

KINDS: dict[str, tuple[int, tuple[int, int]]] = {"usual": (30, (2, 4)), "larger": (40, (2, 4)), "longer": (30, (5, 5))}
"""Kind of sum -> largest number, and least and most terms; `usual` is what pre-training sees."""

MIXED = ("usual", "larger", "usual", "longer")
"""The kinds of four sums in a row."""


def draw_distinct(count: int, random: Random, *, held_out: bool, kinds: Sequence[str] = ("usual",)) -> dict[Sum, str]:
    """`count` different sums with their kind, all held out or none, the kinds in turn."""
    found: dict[Sum, str] = {}
    while len(found) < count:
        kind = kinds[len(found) % len(kinds)]
        largest, num_terms = KINDS[kind]
        candidate = draw_sum(random, largest=largest, num_terms=num_terms)
        is_new = kind != "larger" or max(candidate.numbers) > KINDS["usual"][0]
        if is_new and candidate.is_held_out == held_out:
            found.setdefault(candidate, kind)
    return found


def write(path: Path, sums: Mapping[Sum, str], *, with_answers: bool, with_kinds: bool) -> None:
    with path.open("w") as stream:
        for index, (problem, kind) in enumerate(sums.items()):
            row = {"id": f"{path.stem.split('_with')[0]}-{index}", "question": problem.question}
            if with_kinds:
                row["kind"] = kind
            if with_answers:
                row["answer"] = str(problem.answer)
            stream.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=4096, help="number of training questions (default: 4096)")
    parser.add_argument("--held-out", type=int, default=512, help="number of held-out questions (default: 512)")
    parser.add_argument("--mixed", action="store_true", help="sums of three kinds")
    arguments = parser.parse_args()
    folder, is_mixed = arguments.folder, arguments.mixed
    kinds = MIXED if is_mixed else ("usual",)
    folder.mkdir(parents=True, exist_ok=True)
    train = draw_distinct(arguments.train, Random(1), held_out=False, kinds=kinds)
    held_out = draw_distinct(arguments.held_out, Random(2), held_out=True, kinds=kinds)
    write(folder / "train.jsonl", train, with_answers=False, with_kinds=is_mixed)
    write(folder / "train_with_answers.jsonl", train, with_answers=True, with_kinds=is_mixed)
    write(folder / "held_out.jsonl", held_out, with_answers=True, with_kinds=is_mixed)


if __name__ == "__main__":
    main()
