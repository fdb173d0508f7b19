"""Calls in processes that can be killed: real hangs, crashes and memory hogs, and callers of every kind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rewards.processes.pool import Outcome, WorkerPool, total_counts

ROOT = Path(__file__).resolve().parents[3]
YES, NO, TIMED_OUT, DIED = Outcome("ok", True), Outcome("ok", False), Outcome("timed_out"), Outcome("died")
IN_A_SCRIPT = """
from rewards.processes.pool import Outcome, WorkerPool
pool = WorkerPool("some_work:work", num_workers=2, deadline_s=0.5)
"""

MODULE = r"""
import ctypes, os, re, resource, subprocess, sys, time
from pathlib import Path

WARM_UP = [["warm"], ["raise"]]
seen = []

def work(text):
    seen.append(text)
    if text == "hang": time.sleep(60)
    if text == "hang in C": 9 ** 9 ** 9
    if text == "hang in a regex": re.fullmatch("(a+)+", "a" * 60 + "b")
    if text == "hang with a child": subprocess.run(["sleep", "47.11"])
    if text == "doze": time.sleep(0.3)
    if text == "raise": raise ValueError(text)
    if text == "exit": sys.exit(0)
    if text == "a text": return "yes"
    if text == "a number": return 0.25
    if text == "hash": return hash("one text")
    if text == "die": os._exit(3)
    if text == "segfault": ctypes.string_at(0)
    if text == "eat at once": bytearray(1 << 33)
    if text == "eat": piles = [bytes(1 << 24) for _ in range(1000)]
    if text == "recurse": return work(text)
    if text == "recurse in C":
        nested = []
        for _ in range(200_000): nested = [nested]
        sys.setrecursionlimit(10**9)
        repr(nested)
    if text == "print":
        print('{"value": false}', flush=True)
        print('{"value": false}', file=sys.stderr, flush=True)
        return True
    if text == "is warm": return seen[0] == "warm"
    if text == "is limited":
        limits = (resource.RLIMIT_CORE, resource.RLIMIT_CPU, resource.RLIMIT_AS)
        core, cpu_s, memory = (resource.getrlimit(what)[0] for what in limits)
        return core == 0 and 1 <= cpu_s <= time.process_time() + 0.7 + 2 and 2**30 <= memory <= 2**31
    if text == "has one thread": return len(list(Path("/proc/self/task").iterdir())) == 1
    return text.startswith("yes")
"""

OF_OTHERS: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def _note_processes_of_others() -> None:
    OF_OTHERS.clear()
    OF_OTHERS.update(psutil.Process().children(recursive=True))


@pytest.fixture
def new_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., WorkerPool]]:
    """Makes pools whose function is `work` above, and closes them."""
    (tmp_path / "some_work.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made: list[WorkerPool] = []

    def new(**settings: float) -> WorkerPool:
        made.append(WorkerPool("some_work:work", **({"num_workers": 2, "deadline_s": 0.7} | settings)))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for pool in made:
        pool.close()


@pytest.fixture
def pool(new_pool: Callable[..., WorkerPool]) -> WorkerPool:
    return new_pool()


def outcomes(pool: WorkerPool, *texts: str) -> list[Outcome]:
    return pool.call([[text] for text in texts])


def is_alive(process: psutil.Process) -> bool:
    """A zombie is not: it only waits for its parent, or whoever adopted it, to take note."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def descendants(pid: int | None = None) -> list[psutil.Process]:
    """Living ones, the template first, less those of pools that other tests have left open."""
    return [
        process
        for process in psutil.Process(pid).children(recursive=True)
        if is_alive(process) and process not in OF_OTHERS]


def assert_gone(processes: list[psutil.Process], within_s: float = 4.0) -> None:
    until = time.monotonic() + within_s
    left = processes
    while left and time.monotonic() < until:
        left = [process for process in left if is_alive(process)]
        time.sleep(0.02)
    assert not left


def script(source: str, *, by_stdin: bool = False) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((os.environ["PYTHONPATH"], str(ROOT)))}
    process = subprocess.Popen([sys.executable, *(["-"] if by_stdin else ["-c", source])], env=environment, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if by_stdin:
        assert process.stdin is not None
        process.stdin.write(source)
        process.stdin.close()
        process.stdin = None
    return process


def output(process: subprocess.Popen[str]) -> str:
    printed, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    return printed.strip()


# Single items

def test_outcomes_come_in_order_whatever_single_items_do(pool: WorkerPool) -> None:
    expected = {
        "yes": YES, "hang": TIMED_OUT, "no": NO, "raise": Outcome("failed", None, "ValueError"), "yes 2": YES,
        "die": DIED, "exit": Outcome("failed", None, "SystemExit"),
        "a text": Outcome("failed", None, "returned str, neither bool nor number"), "yes 3": YES}
    assert outcomes(pool, *expected) == list(expected.values())
    assert pool.counts == {
        "items": 9, "timed_out": 1, "died": 1, "failed": 3, "memory_errors": 0, "recursion_errors": 0, "restarts": 2}


@pytest.mark.parametrize("text", ["hang in C", "hang in a regex", "hang with a child"])
def test_a_hang_that_no_signal_handler_would_interrupt_ends_at_its_deadline(pool: WorkerPool, text: str) -> None:
    outcomes(pool, "yes")
    start = time.monotonic()
    assert outcomes(pool, text, "yes") == [TIMED_OUT, YES]
    assert time.monotonic() - start < 1.5
    pool.close()
    assert not [process for process in psutil.process_iter(["cmdline"]) if "47.11" in (process.info["cmdline"] or [])]


@pytest.mark.parametrize("text", ["die", "segfault", "recurse in C"])
def test_a_worker_that_crashes_is_replaced(new_pool: Callable[..., WorkerPool], text: str) -> None:
    pool = new_pool(num_workers=1, deadline_s=20.0)
    assert outcomes(pool, "yes", text, "yes") == [YES, DIED, YES]
    assert pool.counts["died"] == pool.counts["restarts"] == 1


@pytest.mark.parametrize(
    ("text", "error"), [("eat", "MemoryError"), ("eat at once", "MemoryError"), ("recurse", "RecursionError")]
)
def test_want_of_memory_or_stack_fails_the_item_and_is_counted_apart(
        new_pool: Callable[..., WorkerPool], text: str, error: str) -> None:
    pool = new_pool(num_workers=1, deadline_s=5.0, memory_gb=0.25)
    assert outcomes(pool, "yes", text, "yes") == [YES, Outcome("failed", None, error), YES]
    assert pool.counts["memory_errors"] == (error == "MemoryError")
    assert pool.counts["recursion_errors"] == (error == "RecursionError")
    assert pool.counts["restarts"] == 1


def test_what_a_worker_prints_is_no_answer(pool: WorkerPool, capfd: pytest.CaptureFixture[str]) -> None:
    assert outcomes(pool, "print", "no", "print") == [YES, NO, YES]
    assert capfd.readouterr() == ("", "")


def test_any_text_arrives_as_it_is(pool: WorkerPool) -> None:
    assert outcomes(pool, "yes\x00\n\ud800\u202e", "yes" + "9" * 3_000_000) == [YES, YES]


def test_a_number_is_returned_as_it_is(pool: WorkerPool) -> None:
    assert outcomes(pool, "a number") == [Outcome("ok", 0.25)]


def test_hashes_of_texts_are_the_same_in_every_run(new_pool: Callable[..., WorkerPool]) -> None:
    assert outcomes(new_pool(), "hash") == outcomes(new_pool(), "hash")


def test_workers_start_warm_and_are_forked_from_one_thread(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(num_workers=1)
    assert outcomes(pool, "is warm", "die", "is warm") == [YES, DIED, YES]
    if sys.platform == "linux":
        assert outcomes(pool, "has one thread") == [YES]


def test_workers_have_limits_as_a_second_line_of_defence(pool: WorkerPool) -> None:
    assert outcomes(pool, "is limited", "is limited") == [YES, YES]


# Many items

# The bound holds on idle cores; items that burn CPU make room only as fast as a busy machine lets them, hence the
# second bound here.
@pytest.mark.parametrize(("text", "bound_s"), [("hang", 2.0), ("hang in C", 4.0)])
def test_ten_hanging_items_are_over_within_a_deadline_and_a_second(
        new_pool: Callable[..., WorkerPool], text: str, bound_s: float) -> None:
    pool = new_pool(num_workers=2, deadline_s=1.0)
    outcomes(pool, "yes")
    start = time.monotonic()
    results = outcomes(pool, *[text] * 10, *["yes"] * 20)
    assert time.monotonic() - start < bound_s  # one after the other on two workers they would take 5.0
    assert results == [TIMED_OUT] * 10 + [YES] * 20


def test_no_more_than_max_workers_run_at_once(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(num_workers=2, deadline_s=1.0, max_workers=3)
    outcomes(pool, "yes")
    running: list[psutil.Process] = []
    looking = threading.Timer(0.7, lambda: running.extend(descendants()[1:]))  # less the template
    looking.start()
    start = time.monotonic()
    results = outcomes(pool, *["hang"] * 9, "yes")
    took_s = time.monotonic() - start
    looking.join()
    assert results == [TIMED_OUT] * 9 + [YES]
    assert len(running) == 3
    assert 3.0 <= took_s < 4.0  # ceil(9 / 3) deadlines + 1 s


def test_a_slow_item_makes_room_and_yields_the_core(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(num_workers=1, deadline_s=2.0)
    outcomes(pool, "yes")
    niceness: list[int] = []
    looking = threading.Timer(1.5, lambda: niceness.extend(int(process.nice()) for process in descendants()))
    looking.start()
    assert outcomes(pool, "hang in C", "hang", "yes") == [TIMED_OUT, TIMED_OUT, YES]
    looking.join()
    normal = psutil.Process().nice()
    # template, sleeper for which nobody waits, idle worker; spinner
    assert sorted(niceness) == [normal, normal, normal, normal + 5]


def test_an_item_slower_than_the_patience_still_gets_its_whole_deadline(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(num_workers=1, deadline_s=2.0)
    assert outcomes(pool, "doze", "doze", "yes") == [NO, NO, YES]
    assert pool.counts["restarts"] == 0


def test_nothing_starts_before_the_first_item_and_nothing_for_no_items(pool: WorkerPool) -> None:
    before = descendants()
    assert pool.call([]) == []
    assert descendants() == before


def test_counts_of_all_pools_add_up(new_pool: Callable[..., WorkerPool]) -> None:
    before = total_counts()
    first, second = new_pool(), new_pool()
    outcomes(first, "yes", "raise")
    outcomes(second, "die")
    after = total_counts()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
        "items": 3, "failed": 1, "died": 1, "restarts": 1}


def test_idle_workers_are_used_again(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(num_workers=1)
    outcomes(pool, "yes")
    before = descendants()
    outcomes(pool, *["yes"] * 10)
    assert descendants() == before and len(before) == 2


# Beginning and end

def test_a_function_that_cannot_be_imported_is_an_error_and_no_verdict() -> None:
    with pytest.raises(RuntimeError, match="No module named 'there_is_no_such_module'"):
        WorkerPool("there_is_no_such_module:work").call([["yes"]])
    with pytest.raises(RuntimeError, match="no_such_function"):
        WorkerPool("json:no_such_function").call([["yes"]])


@pytest.mark.parametrize("setting", ["num_workers", "deadline_s", "memory_gb"])
def test_settings_that_allow_no_work_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        WorkerPool("some_work:work", **{setting: 0})


def test_close_leaves_no_process_can_be_repeated_and_the_pool_is_usable_after_it(pool: WorkerPool) -> None:
    pool.close()
    outcomes(pool, "yes", "hang")
    started = descendants()
    assert started
    pool.close()
    pool.close()
    assert_gone(started, within_s=0.5)
    assert outcomes(pool, "yes") == [YES]


def test_a_killed_template_takes_its_workers_along_and_is_replaced(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(num_workers=2, deadline_s=20.0)
    outcomes(pool, "yes")
    template = descendants()[0]
    threading.Timer(0.5, template.kill).start()
    results = outcomes(pool, "hang in C", "yes")
    assert results == [DIED, YES]
    assert outcomes(pool, "yes", "no") == [YES, NO]
    assert pool.counts["restarts"] >= 1
    if sys.platform == "linux":
        assert len(descendants()) <= 3  # the new template and at most two workers


def test_workers_killed_from_outside_while_idle_cost_no_item(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(num_workers=1)
    outcomes(pool, "yes")
    _, worker = descendants()
    worker.kill()
    assert_gone([worker])
    assert outcomes(pool, "yes") == [YES]


def test_an_interrupted_call_leaves_a_usable_pool(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(deadline_s=20.0)
    outcomes(pool, "yes")
    main_thread, has_arrived = threading.main_thread().ident, threading.Event()
    assert main_thread is not None

    def interrupt() -> None:
        # Again where it has not arrived: Python drops an exception that falls into a callback of the garbage collector.
        pause_s = 0.3
        while not has_arrived.wait(pause_s):
            signal.pthread_kill(main_thread, signal.SIGINT)
            pause_s = 5.0

    # A shell starts its background jobs with SIGINT ignored, and Python then leaves it ignored.
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            outcomes(pool, "hang", "hang in C")
    finally:
        has_arrived.set()
        signal.signal(signal.SIGINT, earlier)
    assert_gone(descendants()[1:])
    assert outcomes(pool, "yes", "no") == [YES, NO]


# Callers

def test_several_threads_call_one_pool(new_pool: Callable[..., WorkerPool]) -> None:
    pool = new_pool(deadline_s=0.3)
    results: dict[int, list[Outcome]] = {}

    def call(number: int) -> None:
        results[number] = outcomes(pool, *["yes", "no"] * number, "hang")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [YES, NO] * number + [TIMED_OUT] for number in range(1, 5)}


@pytest.mark.parametrize("in_a_call", [False, True])
def test_a_fork_of_the_caller_gets_workers_of_its_own(new_pool: Callable[..., WorkerPool], in_a_call: bool) -> None:
    """Also if another thread was in a call, and so held the pool's lock, when the process was forked."""
    pool = new_pool(deadline_s=1.0)
    outcomes(pool, "yes")
    caller = threading.Thread(target=outcomes, args=(pool, "hang"))
    if in_a_call:
        caller.start()
        time.sleep(0.3)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            pool.close()  # must not end the parent's template
            code = 0 if outcomes(pool, "yes", "die", "no") == [YES, DIED, NO] else 2
            pool.close()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    if in_a_call:
        caller.join()
    assert outcomes(pool, "yes", "no") == [YES, NO]
    assert pool.counts["restarts"] == (1 if in_a_call else 0)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_child_of_multiprocessing_can_call(pool: WorkerPool, tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(f"""{IN_A_SCRIPT}
import multiprocessing

def call(text):
    return pool.call([[text], ["die"]])

if __name__ == "__main__":
    print(pool.call([["yes"]]))
    with multiprocessing.get_context("{method}").Pool(2) as processes:
        print(processes.map(call, ["yes", "no", "hang"]) == [[Outcome(*o), Outcome("died")] for o in
                                                             (("ok", True), ("ok", False), ("timed_out",))])
""")
    assert (
        output(
            script(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')")
            if method != "spawn"
            else subprocess.Popen(
                [sys.executable, str(program)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}))
        == f"{[YES]}\nTrue")


@pytest.mark.parametrize("by_stdin", [False, True])
def test_a_caller_without_main_guard_or_file_works(pool: WorkerPool, by_stdin: bool) -> None:
    source = f"{IN_A_SCRIPT}\nexec('print(pool.call([[\"yes\"], [\"hang\"], [\"no\"]]))')"
    assert output(script(source, by_stdin=by_stdin)) == str([YES, TIMED_OUT, NO])


def test_two_ranks_do_not_disturb_each_other(pool: WorkerPool) -> None:
    source = f"{IN_A_SCRIPT}\nprint(pool.call([['yes'], ['hang'], ['die'], ['no']] * 2))"
    ranks = [script(source), script(source)]
    assert [output(rank) for rank in ranks] == [str([YES, TIMED_OUT, DIED, NO] * 2)] * 2


@pytest.mark.parametrize("with_a_fork", [False, True])
def test_a_killed_caller_leaves_no_process_behind(pool: WorkerPool, with_a_fork: bool) -> None:
    """Also if a fork of the caller lives on and holds the caller's sockets open."""
    process = script(f"""{IN_A_SCRIPT.replace("0.5", "60")}
import os, threading, time
pool.call([["yes"]])
if {with_a_fork} and os.fork() == 0:
    time.sleep(8)
    os._exit(0)
threading.Thread(target=pool.call, args=([["hang in C"], ["hang"], ["hang in a regex"]],)).start()
time.sleep(0.6)
print("calling", flush=True)
""")
    assert process.stdout is not None and process.stdout.readline() == "calling\n"
    started = [child for child in descendants(process.pid) if "run_template" in " ".join(child.cmdline())]
    assert len(started) == 4  # the template and three workers
    process.kill()
    assert_gone(started)
    process.stdout.close()
    process.wait()


def test_a_caller_that_just_ends_leaves_no_process_behind(pool: WorkerPool) -> None:
    printed = output(script(f"""{IN_A_SCRIPT}
import psutil
pool.call([["yes"], ["no"]])
print(*[child.pid for child in psutil.Process().children(recursive=True)])
"""))
    pids = [int(pid) for pid in printed.split()]
    assert len(pids) >= 2
    assert_gone([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])
