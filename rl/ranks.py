"""Several processes of one run: who takes which questions, and how records come together.

Each rank samples and scores its share of the questions; the scored groups (a few MB) are then gathered to every rank,
so that selection, advantages, denominators and the plan of micro-batches are computed from the whole batch, the same on
each rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from accelerate.utils import gather_object

T = TypeVar("T")


def share_of_rank(items: Sequence[T], rank: int, num_ranks: int) -> list[T]:
    """Every num_ranks-th item, from the rank's own number on: long and short prompts spread evenly."""
    return list(items[rank::num_ranks])


def gather_shares(share: Sequence[T], num_ranks: int) -> list[T]:
    """The items of all ranks in the order that `share_of_rank` split; collective where there are several ranks."""
    if num_ranks == 1:
        return list(share)
    shares: list[list[T]] = gather_object([list(share)])
    return [shares[i % num_ranks][i // num_ranks] for i in range(sum(map(len, shares)))]
