"""`python -m rewards.check my_file.py:my_reward`: the contract of rewards/contract.py, tried on anybody's reward.

It reports in plain words. Every call runs in a child process (check_process.py) that is ended when it takes longer than
the deadline, so that a reward that hangs or crashes is a finding and not the end of the check. Each check is OK, WARN
(worth knowing) or FAIL (training would stop, or be wrong). To add a check, write a function (Bench) -> Finding and put
it into CHECKS.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rewards.check_process import CheckProcess, Reply
from rewards.errors import UserError, report_errors
from rewards.loading import split_use
from rewards.options import add_reward_options, read_object

Level = Literal["OK", "WARN", "FAIL"]

BUDGET_S = 1.0
"""A call for one group should take no longer: 32 of them make a step, and the policy waits."""
SLOW_IMPORT_S = 5.0
QUESTION, ANSWER = "A shelf holds 14 red books and twice as many blue ones. How many books is that?", "42"
GROUP = (
    r"14 + 28 = 42, so the answer is \boxed{42}.",
    "<think>\n14 + 28 = 42\n</think>\n<answer>42</answer>",
    r"Twice 14 is 28. \boxed{28}",
    "I do not know.",
    "The answer is 42.",
    r"28 + 14 = 41, hence \boxed{41}",
    r"\boxed{\frac{84}{2}}",
    "答案是42。",
    "#### 42",
    r"\boxed{42 books}",
    "Let me think. 14, 28, ...",
    r"\boxed{42.0}",
    "x = 42",
    r"\boxed{-42}",
    "42",
    r"First \boxed{28}, then \boxed{42}",
)
HOSTILE: Mapping[str, str] = {
    "an empty completion": "",
    "spaces only": " \n\t ",
    "null bytes": "a\x00b \\boxed{\x00}",
    "right-to-left marks": "\u202e\\boxed{24}\u202c",
    "emoji and combining marks": "👩‍👩‍👧 e\u0301\u0301\u0301 \\boxed{４２}",
    "half of a surrogate pair": "\ud800",
    "100,000 open braces": "\\boxed" + "{" * 100_000,
    "100,000 nested boxes": "\\boxed{" * 100_000 + "1" + "}" * 100_000,
    "1 MB of digits": "\\boxed{" + "9" * 1_000_000 + "}",
    "towers of powers": "\\boxed{9^{9^{9^{9^{9}}}}} \\boxed{9**9**9**9}",
    "towers of factorials": "\\boxed{((((9!)!)!)!)!}",
    "a LaTeX bomb": "\\def\\a{\\a\\a}\\a \\boxed{\\a}",
    "code in a formula": "\\boxed{__import__('os').system('exit 1')}",
    "many lines": "\n" * 50_000 + "\\boxed{42}",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. seen: what was seen, in plain words. remedy: what to do about it; empty for OK."""

    check: str
    level: Level
    seen: str
    remedy: str = ""


class Bench:
    """The reward under test: `call` runs it on one group in the child process and remembers how long it took."""

    def __init__(self, process: CheckProcess, question: str, answer: str | None, columns: Mapping[str, object]) -> None:
        self._process, self._question, self._answer, self.columns = process, question, answer, columns
        self.times: dict[str, float] = {}
        self.printed = False
        self.uses: set[str] = set()

    def restart(self) -> None:
        self._process.restart()

    def load(self) -> Reply:
        return self._process.load()

    def call(
        self, completions: Sequence[str], what: str, *, with_answer: bool = True, with_columns: bool = True
    ) -> Reply:
        reply = self._process.call(self._question, list(completions), self._answer if with_answer else None,
                                   dict(self.columns) if with_columns else {})
        if reply.seconds is not None:
            self.times[what] = max(reply.seconds, self.times.get(what, 0.0))
        self.printed |= reply.printed
        self.uses |= set(reply.uses)
        return reply


def _ok(check: str, seen: str) -> Finding:
    return Finding(check, "OK", seen)


def _failed(check: str, reply: Reply, what: str) -> Finding:
    """The finding for a call that gave no scores."""
    remedies = {
        "timed_out": "bound its time; for a service set a time-out and return what it stands for",
        "died": "it ended its process (out of memory, a crash in C code, os._exit); guard what it calls",
        "error": (
            "return one finite number for each completion, whatever the text; columns that it needs: --columns "
            "'{\"NAME\": VALUE}'")}
    return Finding(check, "FAIL", f"{what}: {reply.problem}", remedies[reply.status])


def check_usual(bench: Bench) -> Finding:
    """A group of 16 usual completions gives 16 finite numbers."""
    reply = bench.call(GROUP, "a group of 16")
    if reply.scores is None:
        return _failed("values", reply, "a group of 16 completions")
    low, high = min(_numbers(reply), default=0.0), max(_numbers(reply), default=0.0)
    seen = f"16 completions, 16 finite values from {low:.4g} to {high:.4g}"
    if reply.scores.count(None) == len(reply.scores):
        return Finding("values", "WARN", "no completion got a score",
                       "a group without scores trains nothing; return a number where there is one")
    if None in reply.scores:
        return _ok("values", f"{seen}; {reply.scores.count(None)} without a score")
    if low == high:
        return Finding(
            "values", "WARN", f"all 16 values are {low:.4g}", "a group with equal rewards trains nothing; if the "
            "reward looks for something that these texts lack, this is fine")
    return _ok("values", seen)


def check_small_groups(bench: Bench) -> Finding:
    """Groups of two and of one (a held-out question may be sampled once)."""
    for size in (2, 1):
        reply = bench.call(GROUP[:size], f"a group of {size}")
        if reply.scores is None:
            return _failed("small groups", reply, f"a group of {size}")
    return _ok("small groups", "groups of 2 and of 1 give as many values")


def check_deterministic(bench: Bench) -> Finding:
    """A call that is repeated (at once, after other calls, in a new process) gives the same values."""
    name = "deterministic"
    first = bench.call(GROUP, "a group of 16")
    second = bench.call(GROUP, "a group of 16")
    bench.call(GROUP[3:7], "a group of 4")
    third = bench.call(GROUP, "a group of 16")
    bench.restart()
    fourth = bench.call(GROUP, "a group of 16")
    for reply in (first, second, third, fourth):
        if reply.scores is None:
            return _failed(name, reply, "a repeated call")
    for when, other in (
        ("called twice", second), ("called again after another group", third), ("called in a new process", fourth),
    ):
        if other.scores != first.scores:
            assert first.scores is not None and other.scores is not None
            at = next(i for i, pair in enumerate(zip(first.scores, other.scores, strict=True)) if pair[0] != pair[1])
            return Finding(
                name, "FAIL", f"{when}: completion {at} got {first.scores[at]}, then {other.scores[at]}",
                "draw random numbers from a hash of the completion, keep no state between calls, sort sets before use: "
                "otherwise a resumed run is another run")
    return _ok(name, "the same values twice, after other calls, and in a new process")


def check_inputs(bench: Bench) -> Finding:
    """The reward leaves what it is given as it was."""
    reply = bench.call(GROUP, "a group of 16")
    if reply.scores is None:
        return _failed("inputs unchanged", reply, "a group of 16 completions")
    if reply.changed:
        return Finding("inputs unchanged", "FAIL", f"it changed its argument {', '.join(reply.changed)}",
                       "work on a copy: other rewards and the run's records see the same objects")
    return _ok("inputs unchanged", "completions and columns are as they were")


def check_order(bench: Bench) -> Finding:
    """Scores go with completions, whatever their order."""
    name = "order"
    first, reverse = bench.call(GROUP, "a group of 16"), bench.call(GROUP[::-1], "a group of 16")
    for reply in (first, reverse):
        if reply.scores is None:
            return _failed(name, reply, "a group in another order")
    assert first.scores is not None and reverse.scores is not None
    moved = [i for i, (a, b) in enumerate(zip(first.scores, reverse.scores[::-1], strict=True)) if a != b]
    if moved:
        i = moved[0]
        return Finding(name, "WARN", f"with the group in reverse order completion {i} gets "
                       f"{reverse.scores[len(GROUP) - 1 - i]} in the place of {first.scores[i]}",
                       "a reward should depend on a completion and its group, not on its place in it; "
                       "look for a loop that carries something over")
    return _ok(name, "values go with their completions when the group is reversed")


def check_hostile(bench: Bench) -> Finding:
    """Each hostile text beside a usual completion."""
    problems, num_ended = [], 0
    for what, text in HOSTILE.items():
        if num_ended == 3:
            problems.append("(the rest was not tried)")
            break
        reply = bench.call([GROUP[0], text], what)
        num_ended += reply.status in ("timed_out", "died")
        if reply.scores is None:
            problems.append(f"{what}: {reply.problem}")
    if problems:
        return Finding(
            "hostile text", "FAIL", "; ".join(problems), "a policy writes anything: return 0.0 for what cannot be read")
    return _ok("hostile text", f"{len(HOSTILE)} kinds were scored: {', '.join(list(HOSTILE)[:3])}, ...")


def check_missing(bench: Bench) -> Finding:
    """A question without a gold answer and without other columns is scored, or refused before the run."""
    name = "missing answer and columns"
    info = bench.load()
    bare = bench.call(GROUP[:4], "a group of 4", with_answer=bool(info.needs_answer), with_columns=False)
    if bare.scores is None and info.needs_columns:
        return _ok(name, f"it says that it needs {', '.join(info.needs_columns)} (needs_columns)")
    if bare.scores is None:
        if bench.call(GROUP[:4], "a group of 4", with_answer=True, with_columns=False).scores is not None:
            return Finding(
                name, "FAIL", f"without a gold answer: {bare.problem}",
                "set the attribute needs_answer = True on the function, so that a question without one is refused "
                "before the run, or handle answer=None")
        return Finding(
            name, "WARN" if bench.columns else "FAIL", f"without other columns: {bare.problem}",
            'set the attribute needs_columns = ("NAME",) on the function, or give the parameters a default')
    if info.needs_answer:
        return _ok(name, "it says that it needs an answer (needs_answer); without other columns it works")
    return _ok(name, "scored without a gold answer and without other columns")


def check_time(bench: Bench) -> Finding:
    """Of all calls so far; last, so that there are many."""
    if not bench.times:
        return Finding("time", "FAIL", "no call came to an end", "see the other findings")
    ordered = sorted(bench.times.items(), key=lambda item: item[1])
    (_, median), (slowest, worst) = ordered[len(ordered) // 2], ordered[-1]
    seen = f"median {_shown(median)}, worst {_shown(worst)} ({slowest}); the budget is {BUDGET_S:g} s a group"
    if worst > BUDGET_S:
        return Finding(
            "time", "WARN", seen,
            "each step waits for it: bound the length of what it reads, or make it `async` if it waits for a service")
    return _ok("time", seen)


def check_manners(bench: Bench) -> Finding:
    """What it prints, imports and needs."""
    info = bench.load()
    found, remedies = [], []
    if bench.printed:
        found.append("it prints")
        remedies.append("return numbers as metrics (GroupScore), and use logging for messages")
    if info.seconds is not None and info.seconds > SLOW_IMPORT_S:
        found.append(f"importing it takes {_shown(info.seconds)}")
        remedies.append("import heavy libraries inside the function")
    if "cuda" in bench.uses:
        found.append("it uses a GPU")
        remedies.append("each training process would hold this memory too: a service of its own is usually better")
    if found:
        return Finding("manners", "WARN", ", ".join(found), "; ".join(remedies))
    return _ok("manners", f"prints nothing, imports in {_shown(info.seconds or 0.0)}, uses no GPU")


CHECKS: tuple[Callable[[Bench], Finding], ...] = (
    check_usual, check_small_groups, check_deterministic, check_inputs, check_order, check_hostile, check_missing,
    check_time, check_manners)


def check_reward(
    use: str, *, style: str = "group", arguments: Mapping[str, object] | None = None, question: str = QUESTION,
    answer: str | None = ANSWER, columns: Mapping[str, object] | None = None, deadline_s: float = 10.0,
) -> list[Finding]:
    """All findings, in the order of CHECKS, up to the first that makes the others pointless.

    question, answer: what the completions are said to answer; columns: further columns of the question, for a reward
    that needs them. deadline_s: seconds for one call."""
    with CheckProcess(use, style, dict(arguments or {}), deadline_s) as process:
        bench = Bench(process, question, answer, columns or {})
        loaded = process.load()
        if loaded.status != "ok":
            return [Finding("load", "FAIL", loaded.problem, "the reward is named package.module:name or file.py:name")]
        findings = [_ok("load", f"{use} is {loaded.signature}")]
        for check in CHECKS:
            findings.append(check(bench))
            if check is check_usual and findings[-1].level == "FAIL":
                break  # every other check would fail for the same reason
    return findings


def _numbers(reply: Reply) -> list[float]:
    return [value for value in reply.scores or () if value is not None]


def _shown(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def render(use: str, findings: Sequence[Finding]) -> str:
    width = max(len(finding.check) for finding in findings)
    lines = [f"{finding.level:<5} {finding.check:<{width}}  {finding.seen}"
             + (f"\n      {'':<{width}}  -> {finding.remedy}" if finding.remedy else "") for finding in findings]
    counts = {level: sum(finding.level == level for finding in findings) for level in ("OK", "WARN", "FAIL")}
    verdict = "breaks the contract" if counts["FAIL"] else "keeps the contract"
    return "\n".join([*lines, "", f"{use} {verdict}: {counts['OK']} OK, {counts['WARN']} WARN, {counts['FAIL']} FAIL"])


def main(words: Sequence[str] | None = None) -> int:
    """0: keeps the contract, with or without warnings; 1: breaks it; 2: the command itself is wrong."""
    return report_errors(lambda: _check_given(_parse(words)))


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rewards.check", description="Try a reward function against the contract.")
    parser.add_argument("use", metavar="REWARD", help="package.module:name or file.py:name")
    add_reward_options(parser)
    parser.add_argument("--question", default=QUESTION, help="the question of the group (one about books)")
    parser.add_argument("--answer", default=ANSWER, help="its gold answer (42)")
    parser.add_argument("--no-answers", action="store_true", help="questions have no gold answers")
    parser.add_argument("--deadline", type=float, default=10.0, metavar="SECONDS", help="end a call after so long (10)")
    parser.add_argument("--json", action="store_true", help="one JSON object in the place of the text")
    return parser.parse_args(words)


def _check_given(given: argparse.Namespace) -> int:
    arguments, columns = read_object("--arguments", given.arguments), read_object("--columns", given.columns)
    if given.deadline <= 0:
        raise UserError(where="--deadline", seen=f"{given.deadline:g}", expected="a number of seconds above 0")
    place, _ = split_use(given.use)
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        raise UserError(f"there is no file {place}")
    findings = check_reward(
        given.use, style=given.style, arguments=arguments, question=given.question,
        answer=None if given.no_answers else given.answer, columns=columns, deadline_s=given.deadline)
    broken = any(finding.level == "FAIL" for finding in findings)
    if given.json:
        report = {
            "reward": given.use, "keeps_contract": not broken, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=1))
    else:
        print(render(given.use, findings))
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
