"""Calls in processes that can be killed. The functions called are real ones of the standard library or of this file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.workers import Outcome, WorkerPool

_MODULE = """
import os, time
def work(text):
    if text == "hang": time.sleep(60)
    if text == "raise": raise ValueError(text)
    if text == "die": os._exit(3)
    if text == "eat": bytearray(1 << 33)
    print("noise")
    return text == "yes"
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    (tmp_path / "some_work.py").write_text(_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = WorkerPool("some_work:work", num_workers=2, deadline_s=0.7, memory_gb=1.0)
    yield made
    made.close()


def test_outcomes_come_in_order_whatever_single_items_do(pool: WorkerPool) -> None:
    items = ["yes", "hang", "no", "raise", "yes", "die", "eat", "yes"]
    outcomes = pool.call([[item] for item in items])
    yes, no, failed = Outcome("ok", True), Outcome("ok", False), Outcome("failed")
    assert outcomes == [yes, Outcome("timed_out"), no, failed, yes, Outcome("died"), failed, yes]
    assert pool.call([["yes"]]) == [yes]


def test_hanging_items_are_cut_off_at_their_deadline(pool: WorkerPool) -> None:
    pool.call([["yes"], ["yes"]])
    start = time.monotonic()
    assert pool.call([["hang"], ["hang"]]) == [Outcome("timed_out")] * 2
    assert time.monotonic() - start < 3.0


def test_no_worker_starts_before_the_first_item_and_none_for_no_items(pool: WorkerPool) -> None:
    assert pool.call([]) == []
    assert pool._idle == []


def test_a_worker_that_cannot_start_is_an_error_and_no_verdict() -> None:
    pool = WorkerPool("there_is_no_such_module:work")
    with pytest.raises(RuntimeError, match="there_is_no_such_module"):
        pool.call([["yes"]])
