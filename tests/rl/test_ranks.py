"""Which rank takes which questions, and what a rank that waits for another makes of it. What gathering does in a run is
in tests/integration/test_two_ranks.py."""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import distributed

from rewards.errors import UserError
from rl.errors import user_message
from rl.ranks import gather, gather_shares, meet, process_group, share_of_rank, telling_others
from rl.run import _make_accelerator
from rl.supervised.trainer import OF_ALL_WARMUPS
from tests.reference.fork import forked_ranks
from tests.reference.tiny_run import tiny_config


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_every_item_goes_to_exactly_one_rank_and_shares_differ_by_at_most_one(count: int, num_ranks: int) -> None:
    shares = [share_of_rank(range(count), rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_share_is_every_nth_item_in_order() -> None:
    assert share_of_rank("abcdefg", 1, 3) == ["b", "e"]


def test_one_rank_gathers_its_own_items() -> None:
    share = ["a", "b"]
    gathered = gather_shares(share, 1, "answer")
    assert gathered == share and gathered is not share


def ends_of(run: Callable[[int], object], longest_wait_s: float = 60.0) -> list[str]:
    """What two processes of one run, of which each does `run(its number)`, end with: "" or the error's words."""

    def one() -> int:
        rank = int(os.environ["RANK"])
        Accelerator(kwargs_handlers=[process_group(datetime.timedelta(seconds=longest_wait_s))])
        try:
            with telling_others(rank, 2):
                run(rank)
        except UserError as error:
            print(error, end="", flush=True)
        return 0

    return [rank.stdout for rank in forked_ranks(one)]


def test_who_waits_too_long_says_for_whom_and_for_what() -> None:
    def run(rank: int) -> None:
        assert gather(rank, 2, "score its groups") == [0, 1]
        if rank == 0:
            gather(rank, 2, "score its groups")
        else:
            time.sleep(2.0)

    first, second = ends_of(run, longest_wait_s=1.0)
    assert first.startswith("waited 0:00:01 h for process 1 to score its groups. Remedy: ") and second == ""


def test_who_waits_for_a_process_that_has_ended_ends_at_once_with_its_words() -> None:
    def run(rank: int) -> None:
        if rank == 1:
            raise UserError("the judge's key is wrong")
        gather(rank, 2, "score its groups")

    first, second = ends_of(run)
    assert first.startswith("waited for process 1 to score its groups, and process 1 has ended (the judge's key is wr")
    assert second == "the judge's key is wrong"


def test_a_process_that_ends_in_the_middle_of_an_exchange_is_told_of_in_one_line() -> None:
    def run(rank: int) -> None:
        if rank == 0:
            try:
                distributed.barrier()
            except RuntimeError as error:
                print(user_message(error), end="")
        else:
            os._exit(0)

    assert ends_of(run)[0].startswith("another process of the run has ended; see what it wrote last (")


def test_signals_are_seen_while_a_process_waits_for_another() -> None:
    def run(rank: int) -> None:
        if rank == 0:
            signal.signal(signal.SIGTERM, lambda number, frame: print("seen", flush=True))
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
            meet("wake up", 2)
        else:
            time.sleep(1.0)
            meet("wake up", 2)

    assert ends_of(run) == ["seen\n", ""]


def test_processes_always_wait_two_hours_for_each_other_at_least() -> None:
    """NCCL's own limit is ten minutes, gloo's half an hour."""

    def limits() -> int:
        _make_accelerator(tiny_config(), None)
        group = distributed.group.WORLD
        assert group is not None
        print(group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
        return 0

    assert [float(rank.stdout) for rank in forked_ranks(limits)] == [7200.0] * 2
    assert OF_ALL_WARMUPS["ddp_timeout"] == 7200
