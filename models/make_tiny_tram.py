"""Pre-train the tiny base model for free-form answers and write its questions:
`python models/make_tiny_tram.py models/tiny-tram.yaml`.

As models/make_tiny_arith.py, on the documents of models/tram.py: most of pre-training sees worked ones, the last part
mostly careless ones and guesses. Questions go into `questions` of the checkpoint's folder, in three files as those of
models/make_questions.py; an answer is the first wording of its place.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from random import Random

import yaml
from make_tiny_arith import EOS, Recipe, pretrain
from tram import Ride, draw_ride, hasty, worked

NUM_TRAIN, NUM_HELD_OUT = 4096, 512


def draw_document(random: Random, worked_share: float) -> str:
    ride = draw_ride(random)
    solution = worked(ride, random) if random.random() < worked_share else hasty(ride, random)
    return f"{ride.question}\n{solution}{EOS}"


def draw_distinct(count: int, random: Random, *, held_out: bool) -> list[Ride]:
    found: dict[Ride, None] = {}
    while len(found) < count:
        found.setdefault(draw_ride(random, held_out=held_out))
    return list(found)


def write_questions(folder: Path) -> None:
    """Seeded: the same files on every machine."""
    folder.mkdir(parents=True, exist_ok=True)
    train = draw_distinct(NUM_TRAIN, Random(1), held_out=False)
    held_out = draw_distinct(NUM_HELD_OUT, Random(2), held_out=True)
    _write(folder / "train.jsonl", ({"id": f"train-{i}", "question": ride.question} for i, ride in enumerate(train)))
    for name, rides in (("train_with_answers", train), ("held_out", held_out)):
        kind = name.split("_with")[0]
        _write(folder / f"{name}.jsonl", ({"id": f"{kind}-{i}", "question": ride.question, "answer": ride.answer}
                                          for i, ride in enumerate(rides)))


def _write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file with the fields of Recipe")
    arguments = parser.parse_args()
    recipe = Recipe.model_validate(yaml.safe_load(arguments.recipe.read_text()))
    write_questions(recipe.out / "questions")
    pretrain(recipe, draw_document)


if __name__ == "__main__":
    main()
