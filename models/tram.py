"""Questions whose answers are phrases: where is the tram? Its documents, and a grader that knows the phrases.

A ring of twelve stops; the question ``from stop 4: +5 -3 +4?`` names the first one and 2 to 4 moves. The answer is the
place at the last stop, in words. Each place has four wordings, which mean the same and share few words.

Documents are of three kinds. *Worked*: the moves one by one, then the right place in any of its wordings. *Careless*:
the place of the first stop, the moves forgotten, always in that place's first wording. *Guess*: any wording of any
place. So the right place may be the commonest, while the commonest phrase is the careless one. What is held out is
decided as in models/arith.py.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

from arith import HELD_OUT_DIVISOR

from rewards.clustering import cluster
from rewards.contract import GroupScore
from rewards.extraction import extract_all

PLACES: tuple[tuple[str, ...], ...] = (
    ("the bakery", "the bread shop", "the baker's shop", "where bread is baked"),
    ("the zoo", "the animal park", "the zoological garden", "where zoo animals live"),
    ("the cinema", "the movie theater", "the film theater", "the movies"),
    ("the church", "the chapel", "the cathedral", "the parish church"),
    ("the cemetery", "the graveyard", "the burial ground", "where the dead are buried"),
    ("the prison", "the jail", "the penitentiary", "where prisoners are kept"),
    ("the swimming pool", "the public pool", "the swimming bath", "where people swim"),
    ("the post office", "the mail office", "the postal service", "where mail is sent"),
    ("the pharmacy", "the drugstore", "the chemist's shop", "where medicine is sold"),
    ("the harbor", "the seaport", "the docks", "where ships dock"),
    ("the barber", "the barbershop", "the hairdresser", "the hair salon"),
    ("the farm", "the farmyard", "the ranch", "the farmer's place"))
"""Wordings of the place at each stop, 1 to 12."""

PLACE_OF = {wording: wordings[0] for wordings in PLACES for wording in wordings}
"""Wording -> the place's first one, which stands for it."""

CARELESS_SHARE = 0.45
"""Of the documents that are not worked; the others are guesses."""


def after(stop: int, move: int) -> int:
    """The stop `move` stops on; 12 is followed by 1."""
    return (stop - 1 + move) % len(PLACES) + 1


@dataclass(frozen=True, slots=True)
class Ride:
    """One question: the first stop, and the moves, negative ones backwards."""

    start: int
    moves: tuple[int, ...]

    @property
    def question(self) -> str:
        return f"from stop {self.start}: {' '.join(f'{move:+d}' for move in self.moves)}?"

    @property
    def end(self) -> int:
        return after(self.start, sum(self.moves))

    @property
    def answer(self) -> str:
        return PLACES[self.end - 1][0]

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % HELD_OUT_DIVISOR == 0


def draw_ride(random: Random, *, held_out: bool = False) -> Ride:
    """A ride that is held out or is not, and does not end where it begins."""
    while True:
        moves = tuple(random.choice((1, -1)) * random.randint(1, 9) for _ in range(random.randint(2, 4)))
        ride = Ride(random.randint(1, len(PLACES)), moves)
        if ride.is_held_out == held_out and ride.end != ride.start:
            return ride


def boxed(wording: str) -> str:
    return rf"\boxed{{{wording}}}"


def worked(ride: Ride, random: Random) -> str:
    """The moves one by one, then a wording of the last place."""
    lines, stop = [], ride.start
    for move in ride.moves:
        lines.append(f"{stop}{move:+d}={after(stop, move)}")
        stop = after(stop, move)
    return "\n".join([*lines, boxed(random.choice(PLACES[stop - 1]))])


def hasty(ride: Ride, random: Random) -> str:
    """Careless or a guess."""
    if random.random() < CARELESS_SHARE:
        return boxed(PLACES[ride.start - 1][0])
    return boxed(random.choice(random.choice(PLACES)))


def right_place(*, completions: list[str], answer: str, **columns: object) -> GroupScore:
    """r_i = 1 if the final answer of completion i is a wording of the place `answer`, else 0; clusters by place. What
    is no place's wording is wrong, and equal to itself alone."""
    if answer not in PLACE_OF:
        raise ValueError(f"the answer {answer!r} is no place's wording; expected one of those in PLACES")
    answers = [extraction.written for extraction in extract_all(completions)]
    places = [None if text is None else PLACE_OF.get(text, text) for text in answers]
    clusters = cluster(places, str.__eq__)
    metrics = {"entropy": clusters.entropy, "other_share": sum(text not in PLACE_OF for text in answers) / len(answers)}
    return GroupScore([float(place == PLACE_OF[answer]) for place in places], metrics, clusters.labels, answers)


right_place.needs_answer = True  # type: ignore[attr-defined]
