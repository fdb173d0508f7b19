"""`python -m rewards.check`: good rewards pass, and for each check there is a reward that breaks it and is caught by
that check."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewards import check
from rewards.check import CHECKS, Finding, check_reward, main
from tests.rewards.test_rewards import BUILT_IN

pytestmark = pytest.mark.slow  # every check starts processes

BAD = '''
import asyncio, math, os, random, sys, time

if "slow_import" in os.environ.get("BAD_REWARD", ""):
    time.sleep(1.1)

calls = []

def raises(*, completions, **columns):
    raise KeyError("no such thing")

def too_few(*, completions, **columns):
    return [1.0]

def not_finite(*, completions, **columns):
    return [math.nan for _ in completions]

def text(*, completions, **columns):
    return ["1.0" for _ in completions]

def other_signature(texts):
    return [0.0 for _ in texts]

def constant(*, completions, **columns):
    return [0.5 for _ in completions]

def not_for_one(*, completions, **columns):
    mean = sum(map(len, completions)) / len(completions)
    variance = sum((len(c) - mean) ** 2 for c in completions) / (len(completions) - 1)
    return [(len(c) - mean) / (variance**0.5 + 1) for c in completions]

def not_for_two(*, completions, **columns):
    return [len(completions[2]) / (1 + len(c)) for c in completions]

def by_chance(*, completions, **columns):
    return [random.random() for _ in completions]

def remembers(*, completions, **columns):
    calls.append(completions)
    return [float(len(calls) // 3 + len(c)) for c in completions]

def by_hash_seed(*, completions, **columns):
    return [hash(c) % 1000 / 1000 for c in completions]

def sorts(*, completions, **columns):
    completions.sort()
    return [float(len(c)) for c in completions]

def pops_column(*, completions, tags, **columns):
    tags.clear()
    return [float(len(c)) for c in completions]

def by_place(*, completions, **columns):
    return [float(i) for i, _ in enumerate(completions)]

def not_empty(*, completions, **columns):
    return [float(ord(c[0])) for c in completions]

def not_long(*, completions, **columns):
    assert max(map(len, completions)) < 1_000_000
    return [float(len(c)) for c in completions]

def writes(*, completions, **columns):
    for c in completions:
        c.encode("utf-8")
    return [float(len(c)) for c in completions]

def hangs(*, completions, **columns):
    while "9^" in completions[-1]:
        pass
    return [float(len(c)) for c in completions]

def hangs_always(*, completions, **columns):
    time.sleep(1000)

async def hangs_async(*, completions, **columns):
    await asyncio.sleep(1000)

def exits(*, completions, **columns):
    if completions[-1] == "":
        os._exit(3)
    return [float(len(c)) for c in completions]

def needs_answer_in_secret(*, completions, answer, **columns):
    return [float(answer.strip() in c) for c in completions]

def needs_level(*, completions, level, **columns):
    return [float(len(c) * level) for c in completions]

def slow(*, completions, **columns):
    time.sleep(1.1 if len(completions) == 1 else 0)
    return [float(len(c)) for c in completions]

def prints(*, completions, **columns):
    print("scoring")
    return [float(len(c)) for c in completions]

def prints_below_python(*, completions, **columns):
    os.write(2, b"warning")
    return [float(len(c)) for c in completions]

def trl_needs_solution(prompts, completions, solution, **kwargs):
    return [1.0 if s in c else 0.0 for c, s in zip(completions, solution)]

def good(*, completions, **columns):
    return [float(len(c)) for c in completions]
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "bad.py"
    path.write_text(BAD)
    return path


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


@pytest.mark.parametrize("use", BUILT_IN)
def test_every_built_in_reward_keeps_the_contract(use: str) -> None:
    findings = check_reward(use)
    assert [finding for finding in findings if finding.level == "FAIL"] == []
    assert len(findings) == 1 + len(CHECKS)
    warned = {finding.check for finding in findings if finding.level == "WARN"}
    # A draw depends on the place in the group on purpose; what needs algebra takes a worker's deadline for a tower of
    # factorials.
    assert warned <= ({"order"} if "random" in use else {"time"})


def test_a_good_reward_has_nothing_to_be_said_about_it(file: Path) -> None:
    assert {finding.level for finding in check_reward(f"{file}:good")} == {"OK"}


@pytest.mark.parametrize(("name", "check", "level", "seen"), [
    ("raises", "values", "FAIL", "raised KeyError: 'no such thing' at {file}:10"),
    ("too_few", "values", "FAIL", "returned 1 values for 16 completions"),
    ("not_finite", "values", "FAIL", "value 0 is nan, expected a finite number"),
    ("text", "values", "FAIL", "value 0 is '1.0' (str)"),
    ("other_signature", "values", "FAIL", "cannot be called: missing a required argument: 'texts'"),
    ("constant", "values", "WARN", "all 16 values are 0.5"),
    ("not_for_one", "small groups", "FAIL", "a group of 1: "),
    ("not_for_two", "small groups", "FAIL", "a group of 2: "),
    ("by_chance", "deterministic", "FAIL", "called twice: completion 0 got "),
    ("remembers", "deterministic", "FAIL", "completion 0 got "),
    ("by_hash_seed", "deterministic", "FAIL", "called in a new process: completion 0 got "),
    ("sorts", "inputs unchanged", "FAIL", "it changed its argument completions"),
    ("by_place", "order", "WARN", "with the group in reverse order completion 0 gets 15.0 in the place of 0.0"),
    ("not_empty", "hostile text", "FAIL", "an empty completion: "),
    ("not_long", "hostile text", "FAIL", "1 MB of digits: "),
    ("writes", "hostile text", "FAIL", "half of a surrogate pair: "),
    ("exits", "hostile text", "FAIL", "an empty completion: the process ended (exit code 3)"),
    ("needs_answer_in_secret", "missing answer and columns", "FAIL", "without a gold answer: "),
    ("slow", "time", "WARN", "worst 1.1 s (a group of 1)"),
    ("prints", "manners", "WARN", "it prints"),
    ("prints_below_python", "manners", "WARN", "it prints"),
])
def test_each_fault_is_caught_by_its_check(file: Path, name: str, check: str, level: str, seen: str) -> None:
    finding = by_name(check_reward(f"{file}:{name}"))[check]
    assert finding.level == level and seen.replace("{file}", str(file)) in finding.seen
    assert finding.remedy


def test_a_changed_column_is_caught(file: Path) -> None:
    finding = by_name(check_reward(f"{file}:pops_column", columns={"tags": ["a"]}))["inputs unchanged"]
    assert (finding.level, finding.seen) == ("FAIL", "it changed its argument tags")


def test_columns_are_handed_on_and_their_absence_is_a_warning(file: Path) -> None:
    assert "missing a required argument: 'level'" in by_name(check_reward(f"{file}:needs_level"))["values"].seen
    finding = by_name(check_reward(f"{file}:needs_level", columns={"level": 3}))["missing answer and columns"]
    assert finding.level == "WARN" and "'level'" in finding.seen and "needs_columns" in finding.remedy


def test_a_hanging_call_is_ended_by_its_deadline_and_the_others_go_on(file: Path) -> None:
    findings = by_name(check_reward(f"{file}:hangs", deadline_s=1.0))
    assert findings["hostile text"].level == "FAIL"
    assert "towers of powers: the call took more than 1 s and was ended" in findings["hostile text"].seen
    assert "emoji" not in findings["hostile text"].seen
    assert findings["order"].level == "OK"


@pytest.mark.parametrize("name", ["hangs_always", "hangs_async"])
def test_a_reward_that_always_hangs_is_given_up_after_the_first_call(file: Path, name: str) -> None:
    started = time.monotonic()
    findings = check_reward(f"{file}:{name}", deadline_s=0.5)
    assert [finding.level for finding in findings] == ["OK", "FAIL"] and "took more than 0.5 s" in findings[1].seen
    assert time.monotonic() - started < 30


def test_a_slow_import_is_reported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check.SLOW_IMPORT_S == 5.0
    monkeypatch.setattr(check, "SLOW_IMPORT_S", 1.0)
    monkeypatch.setenv("BAD_REWARD", "slow_import")
    finding = by_name(check_reward(f"{file}:good"))["manners"]
    assert finding.level == "WARN" and re.search(r"importing it takes \d+\.\d s", finding.seen)


def test_a_trl_function_is_called_as_trl_calls_it(file: Path) -> None:
    findings = check_reward(f"{file}:trl_needs_solution", style="trl", columns={"solution": "42"})
    assert [finding.check for finding in findings if finding.level != "OK"] == ["missing answer and columns"]
    assert (
        "cannot be called" in by_name(check_reward(f"{file}:trl_needs_solution", columns={"solution": "42"}))[
            "values"
        ].seen)


def test_the_command_reports_and_exits_as_it_says(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{file}:good"]) == 0
    shown = capsys.readouterr().out
    assert "OK    deterministic" in shown and f"{file}:good keeps the contract: 10 OK, 0 WARN, 0 FAIL" in shown
    assert main([f"{file}:raises"]) == 1
    shown = capsys.readouterr().out
    assert "FAIL  values" in shown and "-> return one finite number" in shown and "breaks the contract" in shown
    assert main([f"{file}:too_few", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["keeps_contract"] is False and report["findings"][-1]["check"] == "values"


@pytest.mark.parametrize(("words", "message"), [
    (["nothing.py:reward"], "there is no file nothing.py"),
    (["nothing.py"], "names no function; write package.module:name or file.py:name"),
    (["rewards.accuracy:accuracy", "--arguments", "{"], "--arguments: saw '{', which is not JSON"),
    (["rewards.accuracy:accuracy", "--columns", "3"], "--columns: saw '3'; expected an object"),
    (["rewards.accuracy:accuracy", "--deadline", "0"], "--deadline: saw 0; expected a number of seconds above 0"),
    ([], "REWARD"),
])
def test_a_wrong_command_is_one_line_and_exit_code_2(words: list[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "rewards.check", *words], capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("use", "arguments", "seen"),
    [
        ("rewards.accuracy:acuracy", {}, "did you mean 'accuracy'?"),
        ("rewards.nothing:x", {}, "there is no module 'rewards.nothing'"),
        ("rewards.accuracy:accuracy", {"last_numbre": True}, "which its arguments set; did you mean 'last_number'"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_a_finding(use: str, arguments: dict[str, object], seen: str) -> None:
    (finding,) = check_reward(use, arguments=arguments)
    assert (finding.check, finding.level) == ("load", "FAIL") and seen in finding.seen


def test_a_reward_that_scores_nothing_is_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "nothing.py"
    file.write_text("def nothing(*, completions, **columns):\n    return [None] * len(completions)\n")
    assert next(finding for finding in check_reward(f"{file}:nothing") if finding.check == "values").level == "WARN"
