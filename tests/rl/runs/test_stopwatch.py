"""Times of stages: added up by name, taken once, and not noted for a stage that failed."""

from __future__ import annotations

import time

import pytest

from rl.runs.stopwatch import Stopwatch


def test_uses_of_one_name_add_up_to_what_they_took_and_are_taken_once() -> None:
    watch = Stopwatch(wait_s=2.0, sync_s=0.0)
    for _ in range(2):
        with watch("wait_s"):
            time.sleep(0.01)
    taken = watch.take()
    assert list(taken) == ["wait_s", "sync_s"] and taken["sync_s"] == 0.0 and 2.02 <= taken["wait_s"] < 3.0
    assert watch.seconds == {"wait_s": 0.0, "sync_s": 0.0}


def test_a_stage_that_fails_is_not_noted() -> None:
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch("train_s"):
        raise ZeroDivisionError
    assert watch.seconds == {}
