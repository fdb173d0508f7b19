"""Several processes of one run: how they may be distributed, who takes which questions, how records come together.

Each rank samples and scores its share of the questions; the scored groups (a few MB) are then gathered to every rank,
so that selection, advantages, denominators and the plan of micro-batches are computed from the whole batch, the same on
each rank.

Before ranks exchange anything they `meet`. A rank may come hours after the others (a judge, an outage of servers, a
checkpoint of 84 GB): waited for inside a collective operation, NCCL would end the process without a word.
"""

from __future__ import annotations

import datetime
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from accelerate.utils import DistributedType, InitProcessGroupKwargs, gather_object, wait_for_everyone

from rewards.errors import UserError, user_message
from rl.errors import ConfigError

T = TypeVar("T")

LONGEST_WAIT = datetime.timedelta(hours=2)
"""How long a rank waits for another, where nothing that is known to take longer is under way."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.0005, 0.1  # between two looks whether the others are there
_ENDED = "otherhalf/ended"
_meetings = itertools.count()
_longest_wait = LONGEST_WAIT


class RanksApartError(UserError):
    """Another process of the run has ended, or does not come."""


def share_of_rank(items: Sequence[T], rank: int, num_ranks: int) -> list[T]:
    """Every num_ranks-th item, from the rank's own number on: long and short prompts spread evenly."""
    return list(items[rank::num_ranks])


def gather(mine: T, num_ranks: int, what: str) -> list[T]:
    """Every rank's value, in the order of the ranks; collective where there are several. what: see `meet`."""
    if num_ranks == 1:
        return [mine]
    _come_together(what, num_ranks)
    values: list[T] = gather_object([mine])
    return values


def gather_shares(share: Sequence[T], num_ranks: int, what: str) -> list[T]:
    """The items of all ranks in the order that `share_of_rank` split; collective where there are several ranks."""
    shares = gather(list(share), num_ranks, what)
    return [shares[i % num_ranks][i // num_ranks] for i in range(sum(map(len, shares)))]


def first_given(mine: T | None, num_ranks: int, what: str) -> T | None:
    """What the first rank gives that gives anything, the same on all ranks: so that a signal that one process received
    stops all of them at the same step."""
    return next((given for given in gather(mine, num_ranks, what) if given is not None), None)


def meet(what: str, num_ranks: int) -> None:
    """Wait until every rank is here. Handlers of signals run meanwhile.

    what: a rank that is not here yet has still to do, such as "write the checkpoint".
    Raises RanksApartError where one has ended, or does not come in time (`process_group`)."""
    if num_ranks > 1:
        _come_together(what, num_ranks)
        wait_for_everyone()  # none goes on and takes the store with it while another still looks


def _come_together(what: str, num_ranks: int) -> None:
    from torch.distributed import DistError, get_rank
    from torch.distributed.distributed_c10d import _get_default_store

    store, rank, number = _get_default_store(), get_rank(), next(_meetings)
    try:
        store.set(_key(number, rank), "")
        if number > 1:  # all were at the meeting before this one, and have left that before it
            store.delete_key(_key(number - 2, rank))
        _wait(store, number, [other for other in range(num_ranks) if other != rank], what)
    except DistError as error:  # the store is the first process's
        raise RanksApartError(
            f"process {rank} waited for the others to {what}, and the first process has ended",
            remedy="see what it wrote last") from error


def _wait(store: Any, number: int, missing: list[int], what: str) -> None:
    began, pause_s = time.monotonic(), FIRST_PAUSE_S
    limit_s = _longest_wait.total_seconds()
    while missing := [rank for rank in missing if not store.check([_key(number, rank)])]:
        names = f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
        if pause_s >= LONGEST_PAUSE_S and store.check([_ENDED]):
            raise RanksApartError(
                f"waited for {names} to {what}, and {store.get(_ENDED).decode()}", remedy="see that process's message")
        if time.monotonic() - began > limit_s:
            raise RanksApartError(
                f"waited {datetime.timedelta(seconds=round(limit_s))} h for {names} to {what}",
                remedy="see what was written last there; if a checkpoint was saved, --resume goes on from it")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _key(number: int, rank: int) -> str:
    return f"otherhalf/met/{number}/{rank}"


@contextmanager
def telling_others(rank: int, num_ranks: int) -> Iterator[None]:
    """An error that leaves the block is told to the other ranks: who waits for this one ends at once."""
    try:
        yield
    except BaseException as error:
        if num_ranks > 1 and not isinstance(error, RanksApartError):
            from torch.distributed.distributed_c10d import _get_default_store

            first_line = (user_message(error) or type(error).__name__).partition("\n")[0]
            with suppress(Exception):  # whatever is the matter with the store, the error is what counts
                _get_default_store().set(_ENDED, f"process {rank} has ended ({first_line})")
        raise


def process_group(longest_wait: datetime.timedelta = LONGEST_WAIT) -> InitProcessGroupKwargs:
    """What accelerate makes the process group with: from now on ranks wait for each other so long, in meetings and in
    collective operations."""
    global _longest_wait
    _longest_wait = longest_wait
    return InitProcessGroupKwargs(timeout=longest_wait)


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
