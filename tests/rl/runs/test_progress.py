import io
import re
import sys

import pytest
from rich.console import Console

from rl.runs.progress import (
    ETA_WINDOW,
    LinesProgress,
    LiveProgress,
    Mode,
    Pace,
    Progress,
    format_duration,
    open_progress,
)

METRICS = {"reward": 0.5, "normalised_entropy": 0.25, "refused/too_low": 0.125, "refused/equal_rewards": 0.25,
           "tokens_per_s": 12345.6}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_at_a_constant_pace_the_time_left_is_exact_at_every_step() -> None:
    pace = Pace(num_steps=200, first_step=0, started_s=0.0)
    assert pace.remaining_s(0.0) is None
    for step in range(1, 201):
        pace.observe(step, 3.0 * step)
        assert pace.remaining_s(3.0 * step) == pytest.approx(3.0 * (200 - step))


def test_the_time_left_counts_down_within_a_step_and_never_below_zero() -> None:
    pace = Pace(num_steps=3, first_step=0, started_s=0.0)
    pace.observe(1, 10.0)
    assert [pace.remaining_s(now) for now in (10.0, 14.0, 30.0, 99.0)] == [20.0, 16.0, 0.0, 0.0]


def test_a_slow_first_step_is_forgotten_after_the_window() -> None:
    pace = Pace(num_steps=100, first_step=0, started_s=0.0)
    for step in range(1, ETA_WINDOW + 2):
        pace.observe(step, 1000.0 + step)
    assert pace.remaining_s(1000.0 + ETA_WINDOW + 1) == pytest.approx(100 - ETA_WINDOW - 1)


def test_a_resumed_run_counts_only_its_own_steps_into_the_pace() -> None:
    pace = Pace(num_steps=40, first_step=30, started_s=0.0)
    pace.observe(31, 2.0)
    assert pace.remaining_s(2.0) == pytest.approx(18.0)


def test_evaluations_between_steps_are_part_of_the_pace() -> None:
    pace = Pace(num_steps=20, first_step=0, started_s=0.0)
    now_s = 0.0
    for step in range(1, 11):
        now_s += 1.0 + (5.0 if step % 5 == 0 else 0.0)
        pace.observe(step, now_s)
    assert pace.remaining_s(now_s) == pytest.approx(20.0)


def test_lines_say_everything_and_are_aligned() -> None:
    clock, stream = Clock(), io.StringIO()
    with LinesProgress("run", 100, clock=clock, stream=stream) as progress:
        clock.now_s += 2
        progress.step(1, {"reward": -0.25})
        progress.held_out(1, 0.7, 0.68, 0.721)
        clock.now_s += 2
        progress.step(2, METRICS)
    first, message, second = stream.getvalue().splitlines()
    assert (
        first
        == "step   1/100  reward -0.25  held-out     -  entropy     -  refused    -  tok/s       -     0:02 elapsed    "
        " 3:18 left")
    assert message == "held-out accuracy at step 1: 0.700 [0.680, 0.721]"
    assert (
        second
        == "step   2/100  reward 0.500  held-out 0.700  entropy 0.250  refused  38%  tok/s  12,346     0:04 elapsed    "
        " 3:16 left")
    assert len(first) == len(second)


def live(clock: Clock) -> tuple[LiveProgress, io.StringIO]:
    stream = io.StringIO()
    return (
        LiveProgress("runs/quickstart", 40, clock=clock, console=Console(file=stream, force_terminal=True, width=110)),
        stream)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def test_the_live_block_shows_step_times_numbers_and_the_last_message() -> None:
    clock = Clock()
    progress, stream = live(clock)
    with progress:
        clock.now_s += 3
        progress.step(10, METRICS)
        progress.held_out(10, 0.5, 0.4, 0.6)
    shown = plain(stream.getvalue()).splitlines()[-3:]
    for part in ("runs/quickstart", "step 10/40", "0:03 elapsed", "0:09 left"):
        assert part in shown[0]
    assert shown[1].strip() == "reward 0.500   held-out 0.500   entropy 0.250   refused 38%   tok/s 12,346"
    assert shown[2].strip() == "held-out accuracy at step 10: 0.500 [0.400, 0.600]"
    assert all(len(line.rstrip()) <= 110 for line in shown)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_terminal_gets_its_cursor_and_streams_back_after_an_error(error: type[BaseException]) -> None:
    progress, stream = live(Clock())
    stdout = sys.stdout
    with pytest.raises(error), progress:
        progress.step(1, METRICS)
        raise error
    assert stream.getvalue().rfind("\x1b[?25h") > stream.getvalue().rfind("\x1b[?25l") >= 0
    assert sys.stdout is stdout


def test_a_message_in_square_brackets_is_shown_as_it_is() -> None:
    progress, stream = live(Clock())
    with progress:
        progress.message("kept [bold] checkpoint [/x]")
    assert "kept [bold] checkpoint [/x]" in plain(stream.getvalue())


@pytest.mark.parametrize(
    ("mode", "is_main", "expected"),
    [
        ("auto", True, LinesProgress), ("lines", True, LinesProgress), ("live", True, LiveProgress),
        ("off", True, Progress), ("live", False, Progress), ("lines", False, Progress),
    ],
)
def test_the_display_follows_the_setting_and_other_ranks_stay_silent(
    mode: Mode, is_main: bool, expected: type[Progress]
) -> None:
    # pytest's captured stdout is no terminal, so that auto means lines.
    assert type(open_progress(mode, "run", 3, is_main=is_main)) is expected


def test_off_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress("off", "run", 3) as progress:
        progress.step(1, METRICS)
        progress.message("saved")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (61, "1:01"), (59.6, "1:00"), (3661, "1:01:01"), (90000, "25:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_rejection_sampling_shows_what_is_kept() -> None:
    stream = io.StringIO()
    LinesProgress("run", 4, stream=stream).step(1, {"reward": 0.5, "kept_share": 0.125, "tokens_per_s": 2500.0})
    assert "step 1/4  reward 0.500  kept  12%  tok/s   2,500 " in stream.getvalue()
