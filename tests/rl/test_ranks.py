"""Which rank takes which questions. What gathering does over real processes is in
tests/integration/test_two_ranks.py."""

from __future__ import annotations

import pytest

from rl.ranks import gather_shares, share_of_rank


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
    gathered = gather_shares(share, 1)
    assert gathered == share and gathered is not share
