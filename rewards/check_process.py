"""A reward in a child process: loaded and called there, killed when a call takes too long. Used by check.py alone.

Parent and child speak JSON lines. Unlike the workers of rewards/processes/pool.py, whose functions map strings to one
value, the child keeps a reward that is loaded as a configuration would load it, and reports what else it saw: time,
changed inputs, output, use of a GPU.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

_ROOT = str(Path(__file__).resolve().parent.parent)
_START_S = 120.0  # for starting Python and importing the reward: a slow import is a finding of its own


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of loading or of one call.

    problem: in plain words, where the status is not ok. scores: [G], None for "no score". seconds: time inside the
    child. changed: names of arguments that the function changed. uses: of "cuda"."""

    status: Literal["ok", "error", "timed_out", "died"]
    problem: str = ""
    scores: Sequence[float | None] | None = None
    seconds: float | None = None
    changed: Sequence[str] = ()
    printed: bool = False
    uses: Sequence[str] = ()
    signature: str = ""
    needs_answer: bool = False
    needs_columns: Sequence[str] = ()


class CheckProcess:
    """The child; started on first use, and again after it was killed or died."""

    def __init__(self, use: str, style: str, arguments: Mapping[str, object], deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._order = json.dumps({"use": use, "style": style, "arguments": dict(arguments)})
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded: Reply | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.restart()

    def restart(self) -> None:
        """End the child; the next call starts another one."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # with what the reward has started
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process = None

    def load(self) -> Reply:
        """What the reward is; loaded once, and again in every new child."""
        if self._loaded is None:
            self._start()
        assert self._loaded is not None
        return self._loaded

    def call(self, question: str, completions: list[str], answer: str | None, columns: dict[str, object]) -> Reply:
        if self._process is None:
            self._start()
        assert self._loaded is not None
        if self._loaded.status != "ok":
            return self._loaded
        return self._ask(
            {"question": question, "completions": completions, "answer": answer, "columns": columns}, self.deadline_s)

    def _start(self) -> None:
        path = os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from rewards.check_process import serve; serve()", self._order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True)
        loaded = self._ask(None, _START_S)
        self._loaded = loaded
        if loaded.status != "ok":
            self.restart()

    def _ask(self, request: Mapping[str, object] | None, deadline_s: float) -> Reply:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        if request is not None:
            with contextlib.suppress(BrokenPipeError):  # a dead child is noticed by its closed output
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
        end = time.monotonic() + deadline_s
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    self.restart()
                    what = "loading" if request is None else "the call"
                    return Reply("timed_out", f"{what} took more than {deadline_s:g} s and was ended")
                data = os.read(self._process.stdout.fileno(), 1 << 16)
                if not data:
                    code = self._process.wait()
                    self.restart()
                    return Reply(
                        "died", f"the process ended ({f'signal {-code}' if code < 0 else f'exit code {code}'})")
                received += data
        return Reply(**json.loads(received))


def serve() -> None:
    """The child's whole life: loads the reward that its argument names, then scores one group per line."""
    replies = os.fdopen(os.dup(1), "w")
    order = json.loads(sys.argv[1])
    with _Output() as output:
        reward, reply = _load(order)
    print(json.dumps(reply), file=replies, flush=True)
    if reward is None:
        return
    for line in sys.stdin:
        with _Output() as output:
            reply = _score(reward, order["style"], json.loads(line))
        print(json.dumps({**reply, "printed": output.seen, "uses": _uses()}), file=replies, flush=True)


class _Output:
    """Standard output and error to a file of no name, to know whether something was written; numbers 1 and 2, for C
    code too."""

    seen = False

    def __enter__(self) -> Self:
        self._kept = os.dup(1), os.dup(2)
        self._file = os.memfd_create("output")
        os.dup2(self._file, 1)
        os.dup2(self._file, 2)
        return self

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.seen = os.fstat(self._file).st_size > 0
        for number, kept in zip((1, 2), self._kept, strict=True):
            os.dup2(kept, number)
            os.close(kept)
        os.close(self._file)


def _load(order: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    from rewards.calling import Reward
    from rewards.contract import RewardError
    from rewards.loading import load

    started = time.perf_counter()
    try:
        function = load(order["use"])
        # A run fills its own limit in where the configuration sets none.
        reward = Reward(
            str(getattr(function, "__name__", type(function).__name__)), order["use"], function, order["arguments"])
        if reward.takes("max_completion_tokens"):
            reward = replace(reward, arguments={"max_completion_tokens": 16} | order["arguments"])
        reward.check_arguments(order["style"])
    except RewardError as error:
        return None, {"status": "error", "problem": str(error)}
    try:
        signature = f"{reward.name}{inspect.signature(function)}"
    except (TypeError, ValueError):
        signature = f"{reward.name}(...)"
    return reward, {"status": "ok", "seconds": time.perf_counter() - started, "signature": signature,
                    "needs_answer": reward.needs_answer, "needs_columns": list(getattr(function, "needs_columns", ()))}


@dataclass(frozen=True, slots=True)
class _Rollout:
    """Stands for a sampled completion: one token for each of its first 64 characters, whose numbers follow from the
    character."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    entropies: Sequence[float] | None
    self_certainties: Sequence[float] | None


def _rollout(text: str) -> _Rollout:
    tokens = [ord(character) % 97 for character in text[:64] or " "]
    return _Rollout(
        tokens, [-token / 97 for token in tokens], [token / 97 for token in tokens],
        [1 - token / 97 for token in tokens])


class _Policy:
    """Stands for the policy: one token for each character, likelier the more stands before it."""

    def logprobs(self, continuations: Sequence[tuple[str, str]]) -> list[list[float]]:
        return [[-1.0 / (1 + len(beginning))] * max(1, len(text)) for beginning, text in continuations]


def _score(reward: Any, style: str, request: Mapping[str, Any]) -> dict[str, Any]:
    from rewards.calling import STYLES, GroupInput
    from rewards.contract import RewardError

    completions = request["completions"]
    rollouts = [_rollout(text) for text in completions]
    watched = _Watched(reward.function)
    columns = request["columns"]
    if getattr(reward.function, "needs_votes", False):
        columns = {**columns, "votes": sorted(completions)[:4]}  # whatever the order of the completions
    group = GroupInput(
        "check", request["question"], completions, request["answer"], columns, "", rollouts, _Policy())
    started = time.perf_counter()
    try:
        (checked,) = STYLES[style](watched.replace_in(reward), [group])
    except RewardError as error:
        return {"status": "error", "problem": _short(str(error))}
    return {
        "status": "ok", "scores": checked.scores, "seconds": time.perf_counter() - started, "changed": watched.changed}


def _short(text: str) -> str:
    """An error may quote a megabyte of the completion."""
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-190:]}"


class _Watched:
    """The function with a look at its arguments before and after."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.changed: list[str] = []

    def replace_in(self, reward: Any) -> Any:
        function = self._function

        def note(before: Mapping[str, object], after: Mapping[str, object]) -> None:
            self.changed += [name for name in before if before[name] != after[name]]

        if inspect.iscoroutinefunction(function):
            @functools.wraps(function)
            async def watched(**keywords: Any) -> Any:
                before = _copies(keywords)
                result = await function(**keywords)
                note(before, keywords)
                return result
        else:
            @functools.wraps(function)
            def watched(**keywords: Any) -> Any:
                before = _copies(keywords)
                result = function(**keywords)
                note(before, keywords)
                return result
        return dataclasses.replace(reward, function=watched)


def _copies(keywords: Mapping[str, object]) -> dict[str, object]:
    return {name: copy.deepcopy(value) for name, value in keywords.items() if isinstance(value, list | dict | str)}


def _uses() -> list[str]:
    torch = sys.modules.get("torch")
    return ["cuda"] if torch is not None and torch.cuda.is_initialized() else []
