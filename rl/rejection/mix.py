"""Other files of solutions -> the rows of them that are put beside the kept completions, by ratio.

They are read as a warm-up reads them, so that what it would refuse is refused here, before anything is sampled.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.errors import named
from rl.errors import ConfigError, DataError
from rl.records import Json
from rl.rejection.config import MixSection
from rl.supervised.config import WarmupDataSection
from rl.supervised.solutions import Solution, load_solutions


@dataclass(frozen=True, slots=True)
class MixFile:
    """A file of solutions, whole. key: that of the configuration, such as mix.0."""

    key: str
    section: MixSection
    solutions: tuple[Solution, ...]


def read_mix(sections: Sequence[MixSection]) -> list[MixFile]:
    """Raises ConfigError where a file is not one that a warm-up can read."""
    files = []
    for number, section in enumerate(sections):
        key = f"mix.{number}"
        try:
            solutions = load_solutions(WarmupDataSection(path=section.path, columns=section.columns))
        except DataError as error:
            message = error.renamed(lambda name: name.replace("data.", f"{key}.", 1))  # noqa: B023
            raise ConfigError(f"{key}.path: {message}") from error
        files.append(MixFile(key, section, tuple(solutions)))
    return files


def draw(file: MixFile, num_kept: int, seed: int) -> list[dict[str, Json]]:
    """round(ratio * num_kept) rows (half up, at least 1), none twice, in the file's order; seed decides which.

    Raises ConfigError where the file has fewer."""
    wanted = max(1, int(file.section.ratio * num_kept + 0.5))
    there = len(file.solutions)
    if wanted > there:
        ratio = f"{file.key}.ratio"
        raise ConfigError(
            f"{file.section.ratio:g} rows of {file.section.path} for each of {num_kept} kept completions are {wanted}, "
            f"and it has {there}",
            where=named(ratio), remedy=f"{named(ratio, int(1e6 * there / num_kept) / 1e6)} or less, or a larger file")
    chosen = sorted(random.Random(f"{seed}\x1fmix\x1f{file.key}").sample(range(there), wanted))
    return [_row(file.solutions[index]) for index in chosen]


def _row(solution: Solution) -> dict[str, Json]:
    """A solution as a row that a warm-up reads with its default columns, to the same prompt and completion."""
    others = {
        name: value
        for name, value in solution.question.columns.items()
        if name not in ("question", "solution", "messages")}
    if solution.before:
        turns: list[Json] = [dict(message) for message in solution.before]
        return {**others, "messages": [*turns, {"role": "user", "content": solution.question.text},
                                       {"role": "assistant", "content": solution.text}]}
    return {**others, "question": solution.question.text, "solution": solution.text}
