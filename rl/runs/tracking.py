"""What happened in a run, as files: one JSON object per line in metrics.jsonl and rollouts.jsonl.

Files first; services (rl/runs/trackers.py) get the same numbers through a callable that is handed in.
Every value is determined by the configuration, so that a resumed run's files equal an uninterrupted run's, except those
whose key ends in `_s` (times and rates), and with `generator.backend: vllm_server` the counts under `sampler/`, which
tell of servers that were lost and came back. A checkpoint stores each file's `position()`; on resume `truncate_to` cuts
what lies behind it.

Times of a training line, in seconds of the main rank: step_s, and in it sync_s (the hand-over of the version that the
step samples with), generate_s (sampling), reward_s (scoring after sampling had ended), train_s (the update).
reward_overlapped_s: scoring that took no time of its own, because other groups were still decoding. teacher_s:
asking a teacher, in step_s. With generator.max_staleness 1 the step's first round was sampled and scored while the
step before trained: its generate_s and reward_s are not in step_s, what the trainer waited for them is ahead_wait_s.

A new metric needs no change here: put it into the mapping given to `MetricsLog.log`. The names below are those that the
display (rl/runs/progress.py), the picture (rl/picture.py) and the watchdog (rl/runs/watchdog.py) read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias, cast

from rewards.errors import UserError
from rl.records import Json, ScoredGroup
from rl.runs.folder import RunFolder

REWARD = "reward"
"""train: mean reward over all sampled completions of the step."""
ACCURACY = "accuracy"
"""train: share of right completions among the sampled ones, where there are gold answers."""
NORMALISED_ENTROPY = "normalised_entropy"
"""train: mean over groups of H / ln G, in [0, 1]."""
REFUSED_PREFIX = "refused/"
REFUSED_SKIPPED = "refused/skipped"
REFUSED_TOO_LOW = "refused/too_low"
REFUSED_TOO_HIGH = "refused/too_high"
REFUSED_EQUAL_REWARDS = "refused/equal_rewards"
"""train: share of the step's groups refused for each reason, in [0, 1]; each group has at most one reason."""
TOKENS_PER_S = "tokens_per_s"
"""train: sampled tokens per second of the step."""
KEPT_SHARE = "kept_share"
"""of rejection sampling: share of a chunk's completions that are kept, in [0, 1]."""
REVERSE_KL = "distillation/reverse_kl"
"""train, with a teacher: mean over the step's tokens of ln pi - ln pi_teacher in nats, before the update: an estimate
of the reverse KL, pi at the sampling temperature, that is biased where an older version sampled tokens
(generator.max_staleness, refilling)."""
LOSS = "loss/value"
"""train: the loss of the step's update; of a supervised warm-up the cross-entropy in nats per completion token, or what
distillation makes of it (rl/supervised/distillation.py)."""
TRAINED_TOKENS_PER_S = "trained_tokens_per_s"
"""train, of a warm-up: tokens read per second, prompts included."""
HELD_OUT_LOSS = "held_out/loss"
"""eval, of a warm-up: cross-entropy of held-out solutions, in nats per completion token."""
BENCHMARK_PREFIX = "benchmark/"
"""eval: benchmark/NAME/avg@4 and the like, with /low and /high of its 95% interval, of the benchmarks in
evaluation.benchmarks."""
HELD_OUT_ACCURACY = "held_out/accuracy"
HELD_OUT_LOW = "held_out/low"
HELD_OUT_HIGH = "held_out/high"
"""eval: avg@k on the held-out questions, and the ends of its 95% interval."""

Kind = Literal["train", "eval"]
Record: TypeAlias = "dict[str, Json]"
Forward: TypeAlias = Callable[[dict[str, float], int], None]
TokenTexts: TypeAlias = Callable[[Sequence[int]], Sequence[str]]
"""Token ids [T] of a completion -> the text of each [T]."""


class JsonLinesError(UserError):
    """A file of JSON lines is not what the run wrote; the message names file and line or position."""


class JsonLines:
    """An append-only file of JSON objects, one a line, each handed to the operating system before `append` returns.

    A last line without its end (the process was killed in the middle of writing it) is cut when the file is opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Unbuffered: after a kill nothing is lost that `append` returned from.
        self._file = path.open("a+b", buffering=0)
        self._cut_unfinished_line()

    def append(self, record: Mapping[str, Json]) -> None:
        """Write one line. Raises: OSError with the remedy when the disk is full; the file then ends with the line
        before."""
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
        # A lone surrogate has no UTF-8 form; its backslash form is valid JSON for the same character.
        remaining = memoryview(text.encode("utf-8", "backslashreplace") + b"\n")
        start = self._file.seek(0, os.SEEK_END)
        try:
            while remaining:
                remaining = remaining[self._file.write(remaining) or 0:]
        except OSError as error:
            self._file.truncate(start)
            raise OSError(error.errno, f"cannot append to {self.path}: {error.strerror}; the lines before are whole. "
                                       "Remedy: free some space there and go on with --resume") from error

    def position(self) -> int:
        """The file's length in bytes, all of it on the disk: a checkpoint that names it must not outlive it in a power
        cut."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate_to(self, position: int) -> None:
        """Cut everything behind `position`, an earlier result of `position()`.

        Raises: JsonLinesError when the file is shorter, or has no end of line there."""
        length = self._file.seek(0, os.SEEK_END)
        if not 0 <= position <= length:
            raise JsonLinesError(
                f"{self.path} has {length} bytes, the checkpoint needs its first {position}: the file was "
                "cut or replaced. Put it back, or start a new run")
        if position and self._byte_at(position - 1) != b"\n":
            raise JsonLinesError(
                f"{self.path} has no end of line at byte {position}, where the checkpoint was made: the "
                "file was edited or replaced. Put it back, or start a new run")
        self._file.truncate(position)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _byte_at(self, position: int) -> bytes:
        self._file.seek(position)
        return self._file.read(1) or b""

    def _cut_unfinished_line(self) -> None:
        length = self._file.seek(0, os.SEEK_END)
        if length == 0 or self._byte_at(length - 1) == b"\n":
            return
        start = length
        block = b""
        while start > 0 and b"\n" not in block:
            previous = start
            start = max(0, start - 65536)
            self._file.seek(start)
            block = self._file.read(previous - start) or b""
        self._file.truncate(start + block.rfind(b"\n") + 1)


class MetricsLog(JsonLines):
    """metrics.jsonl: `{"step", "kind": "train" | "eval", metrics...}`, flat, finite numbers or null."""

    def __init__(self, folder: RunFolder, forward: Sequence[Forward] = ()) -> None:
        """forward: callables such as `Trackers.log`: (values, step) -> None, called after the file."""
        super().__init__(folder.metrics_file)
        self._forward = tuple(forward)

    def log(self, step: int, kind: Kind, metrics: Mapping[str, float]) -> Record:
        """Append one line, forward its finite numbers under the same names, and return the line.

        A number that is not finite becomes null, and the line gets `num_not_finite`: JSON has no NaN, and a gap in a
        curve must be explained. Raises: ValueError for a metric named like one of the line's own keys.
        """
        taken = {"step", "kind", "num_not_finite"} & metrics.keys()
        if taken:
            raise ValueError(
                f"metric {sorted(taken)[0]!r} is a key that lines of {self.path.name} have already; rename it")
        values = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        record: Record = {"step": step, "kind": kind, **{name: finite.get(name) for name in values}}
        if len(finite) < len(values):
            record["num_not_finite"] = len(values) - len(finite)
        self.append(record)
        for forward in self._forward:
            forward({name: float(value) for name, value in finite.items()}, step)
        return record


class RolloutsLog(JsonLines):
    """rollouts.jsonl: one line per group, with everything that decided about its gradient."""

    def __init__(
        self, folder: RunFolder, forward: Sequence[Callable[[Record], None]] = (), token_texts: TokenTexts | None = None
    ) -> None:
        """forward: callables that get each line, after the file. token_texts: with it each token stands there with its
        log-probability."""
        super().__init__(folder.rollouts_file)
        self._forward, self._token_texts = tuple(forward), token_texts

    def log(self, step: int, scored: ScoredGroup, *, advantages: Sequence[float] | None, refused: str | None) -> Record:
        """Append one group, and return its line. advantages: [G], or None where the group did not train; refused: the
        reason, or None."""
        assert advantages is None or len(advantages) == len(scored.rewards)
        record = rollouts_record(step, scored, advantages, refused, self._token_texts)
        self.append(record)
        for forward in self._forward:
            forward(record)
        return record


def rollouts_record(
    step: int, scored: ScoredGroup, advantages: Sequence[float] | None, refused: str | None,
    token_texts: TokenTexts | None = None,
) -> Record:
    """A group as a line of rollouts.jsonl; entropy in nats, its normalised form in [0, 1]. With token_texts also
    `tokens`, [text, natural log-probability under the sampler] of each."""
    question = scored.group.question
    completions: list[Json] = [
        {
            "text": rollout.text, "answer": scored.answers[index], "cluster": scored.labels[index],
            "reward": scored.rewards[index], "scores": {name: values[index] for name, values in scored.scores.items()},
            "advantage": None if advantages is None else advantages[index], "num_tokens": len(rollout.token_ids),
            "finish_reason": rollout.finish_reason, "policy_version": rollout.policy_version,
            **({} if token_texts is None else {"tokens": [
                [text, value] for text, value in zip(token_texts(rollout.token_ids), rollout.logprobs, strict=True)]})}
        for index, rollout in enumerate(scored.group.rollouts)
    ]
    return {
        "step": step, "question_id": question.id, "question": question.text, "answer": question.answer,
        "columns": dict(question.columns), "prompt": scored.group.prompt.text, "entropy": scored.entropy,
        "normalised_entropy": scored.normalised_entropy, "refused": refused, "completions": completions}


def read_json_lines(path: Path) -> list[Record]:
    """The file's objects; a last line that was cut by a kill is left out.

    Raises: FileNotFoundError; JsonLinesError for any other malformed line, with its number."""
    records: list[Record] = []
    lines = path.read_bytes().split(b"\n")
    # What stands behind the last end of line is empty, or the beginning of a line.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise JsonLinesError(
                f"{path}:{number} is not JSON ({error}); remove the line or restore the file") from error
        if not isinstance(record, dict):
            raise JsonLinesError(
                f"{path}:{number} is {type(record).__name__}, not a JSON object; remove the line or restore the file")
        records.append(cast(Record, record))
    return records
