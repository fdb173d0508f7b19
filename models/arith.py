"""Arithmetic questions and the two kinds of documents that the tiny base model is pre-trained on.

A question is a sum such as ``12+7-3=?``: 2 to 4 whole numbers from 1 to 30, joined by + and -. A *worked* document
carries the sum out from left to right and ends in ``\\boxed{right}``; a *hasty* one boxes a guess at once, which is
right once in ten and otherwise the right answer plus rounded normal noise (standard deviation 12).

Held-out questions are those whose CRC-32 is divisible by 16. The rule depends on the question alone, so that neither
pre-training nor reinforcement learning can meet one, whatever their seeds.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from random import Random

HELD_OUT_DIVISOR = 16

BOXED = r"\boxed{ANSWER}"
"""A document's last line; ANSWER stands for the number."""


@dataclass(frozen=True, slots=True)
class Sum:
    """One question: ``numbers[0] signs[0] numbers[1] ...``, signs are +1 or -1."""

    numbers: tuple[int, ...]
    signs: tuple[int, ...]

    @property
    def question(self) -> str:
        text = str(self.numbers[0])
        for sign, number in zip(self.signs, self.numbers[1:], strict=True):
            text += ("+" if sign > 0 else "-") + str(number)
        return text + "=?"

    @property
    def answer(self) -> int:
        return self.numbers[0] + sum(s * n for s, n in zip(self.signs, self.numbers[1:], strict=True))

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % HELD_OUT_DIVISOR == 0


def draw_sum(random: Random, *, largest: int = 30, num_terms: tuple[int, int] = (2, 4)) -> Sum:
    """A sum drawn uniformly over the number of terms, then over numbers and signs; held-out or not."""
    count = random.randint(*num_terms)
    numbers = tuple(random.randint(1, largest) for _ in range(count))
    signs = tuple(random.choice((1, -1)) for _ in range(count - 1))
    return Sum(numbers, signs)


def draw_training_sum(random: Random) -> Sum:
    """A sum that is not held out."""
    while True:
        candidate = draw_sum(random)
        if not candidate.is_held_out:
            return candidate


def worked_solution(problem: Sum, answer_line: str = BOXED) -> str:
    """The sum carried out from left to right, one line a step, then the answer."""
    lines, total = [], problem.numbers[0]
    for sign, number in zip(problem.signs, problem.numbers[1:], strict=True):
        lines.append(f"{total}{'+' if sign > 0 else '-'}{number}={total + sign * number}")
        total += sign * number
    return "\n".join([*lines, answer_line.replace("ANSWER", str(total))])


def hasty_guess(
    problem: Sum, random: Random, answer_line: str = BOXED, *, deviation: float = 12.0, right_share: float = 0.1
) -> str:
    """A guess without reasoning."""
    guess = problem.answer
    if random.random() >= right_share:
        guess += round(random.gauss(0.0, deviation))
    return answer_line.replace("ANSWER", str(guess))
