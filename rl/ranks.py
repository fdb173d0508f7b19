"""Several processes of one run: how they may be distributed, who takes which questions, how records come together.

Each rank samples and scores its share of the questions; the scored groups (a few MB) are then gathered to every rank,
so that selection, advantages, denominators and the plan of micro-batches are computed from the whole batch, the same on
each rank.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from accelerate.utils import DistributedType, gather_object

from rl.errors import ConfigError

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


def first_given(mine: T | None, num_ranks: int) -> T | None:
    """What the first rank gives that gives anything, the same on all ranks: so that a signal that one process received
    stops all of them at the same step."""
    if num_ranks == 1:
        return mine
    return next((given for given in gather_object([mine]) if given is not None), None)


def ranks_here() -> int:
    """How many of the run's processes this machine has."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_distribution(kind: DistributedType) -> None:
    """Raises ConfigError where accelerate distributes the model in another way than training and warm-ups are written
    for."""
    if kind not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise ConfigError(
            f"accelerate is configured for {kind.value}; this version trains in one process or with "
            "DistributedDataParallel",
            remedy="accelerate launch --multi_gpu, or accelerate config without FSDP and DeepSpeed")
