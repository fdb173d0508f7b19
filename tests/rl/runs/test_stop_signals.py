"""What is saved late, in the handler of a signal, is not ended by the alarm of a grader in whose middle it comes."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

import pytest

from rl.runs.stop_signals import StopSignals


class OutOfTimeError(Exception):
    """What the grader's alarm raises."""


def test_a_graders_alarm_waits_until_what_is_saved_late_is_saved() -> None:
    def out_of_time(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    saved: list[str] = []

    def save() -> None:
        time.sleep(0.15)
        saved.append("whole")

    signals, before = StopSignals(), signal.signal(signal.SIGALRM, out_of_time)
    try:
        signals._when_late = save
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert saved == ["whole"] and signals() == "SIGTERM"
        with pytest.raises(OutOfTimeError):  # the grader's own time goes on
            time.sleep(5.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
        signals.close()
