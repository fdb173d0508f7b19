"""The folder of an evaluation: settings.json (what decides its completions) and completions.jsonl, from which a killed
one goes on.

Completions are written in chunks of whole questions. After a kill, what belongs to an unfinished chunk is cut and
sampled again: the sampler is then given the same requests together as it would have been, and the result is the
uninterrupted one's.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import GradedQuestion, RecordsError, from_lines, to_lines
from eval.tasks import EvaluationError
from rl.configuration.resuming import differences
from rl.runs.folder import write_atomically
from rl.runs.tracking import JsonLines

COMPLETIONS, SETTINGS, RESULT, TIMES = "completions.jsonl", "settings.json", "result.json", "times.json"

Chunk = tuple[tuple[str, str], ...]
"""(task, question id) of each question that is sampled together with the others."""


def day_begun(folder: Path) -> datetime.date | None:
    """The day that the chat template of the evaluation there was given; None where there is none, or none was printed.
    """
    try:
        tasks = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))["tasks"].values()
        return next((datetime.date.fromisoformat(task["date"]) for task in tasks if "date" in task), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # of a file that is not ours, open_settings tells


def open_settings(folder: Path, settings: Mapping[str, Any], *, restart: bool) -> bool:
    """Whether the folder holds an evaluation with these settings already; otherwise begin one there.

    restart: throw away what is there. Raises EvaluationError where another evaluation is there, OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    file, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
    if restart:
        for name in (RESULT, "result.md", COMPLETIONS, TIMES, SETTINGS):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "plots", ignore_errors=True)
    if not file.exists():
        if (folder / COMPLETIONS).exists():
            raise EvaluationError(
                f"{folder} holds completions without {SETTINGS}: what they were sampled with is not known",
                where="--out", remedy="another folder, or --restart to throw them away")
        write_atomically(file, json.dumps(wanted, indent=2) + "\n")
        return False
    try:
        there = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(
            f"{file} is not readable ({error})", where="--out", remedy="another folder, or --restart") from None
    if different := [
        f"{key} is {json.dumps(old)[:60]} there and {json.dumps(new)[:60]} here"
        for key, old, new in differences(there, wanted)
    ]:
        raise EvaluationError(
            f"{folder} holds an evaluation with other settings: {'; '.join(different[:6])}", where="--out",
            remedy="another folder, or --restart to throw that one away")
    return True


class Completions:
    """completions.jsonl, open for appending. questions: those of finished chunks, in order. num_chunks: how many those
    are."""

    def __init__(self, folder: Path, chunks: Sequence[Chunk], samples: Mapping[str, int]) -> None:
        """samples: n of each task. Raises RecordsError where the file holds something else than the first of these
        chunks."""
        self.path = folder / COMPLETIONS
        self._lock = (folder / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise EvaluationError(
                f"another evaluation is writing to {folder}", where="--out",
                remedy="wait for its end, or another folder") from None
        self._file = JsonLines(self.path)
        lines, ends = _read(self.path)
        self.num_chunks = position = 0
        for chunk in chunks:
            expected = [(*place, sample) for place in chunk for sample in range(samples[place[0]])]
            found = [
                (line.get("benchmark"), line.get("id"), line.get("sample"))
                for line in lines[position : position + len(expected)]]
            if found != expected[:len(found)]:
                where = next(i for i, (seen, wanted) in enumerate(zip(found, expected, strict=False)) if seen != wanted)
                self.close()
                raise RecordsError(
                    where=f"{self.path}:{position + where + 1}", seen=f"(benchmark, id, sample) {found[where]}",
                    expected=str(expected[where]), remedy="the file as the evaluation wrote it, or --restart")
            if len(found) < len(expected):
                break
            position += len(expected)
            self.num_chunks += 1
        self._file.truncate_to(ends[position - 1] if position else 0)
        self.questions = from_lines(lines[:position], str(self.path))

    def append(self, questions: Sequence[GradedQuestion]) -> None:
        """The questions of the next chunk. Raises OSError; what was there before is whole."""
        for question in questions:
            for line in to_lines(question):
                self._file.append(line)
        self.questions += questions
        self.num_chunks += 1

    def close(self) -> None:
        self._file.close()
        self._lock.close()


def add_seconds(folder: Path, seconds: float) -> float:
    """Seconds of all processes that have worked on this evaluation; those of one that was killed up to its last
    chunk."""
    file = folder / TIMES
    before = json.loads(file.read_text(encoding="utf-8"))["wall_s"] if file.is_file() else 0.0
    total = float(before) + seconds
    if seconds:
        write_atomically(file, json.dumps({"wall_s": total}) + "\n")
    return total


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Replace settings.json: what is in the folder was graded anew."""
    write_atomically(folder / SETTINGS, json.dumps(settings, indent=2) + "\n")


def read_completions(folder: Path) -> list[GradedQuestion]:
    """All completions of an evaluation that has ended, or what is there of one that has not. Raises RecordsError."""
    path = folder / COMPLETIONS
    if not path.is_file():
        raise RecordsError(
            f"{folder} holds no {COMPLETIONS}", expected="the folder of an evaluation (--out of python -m eval.run)")
    return from_lines(_read(path)[0], str(path))


def read_result(folder: Path) -> dict[str, Any]:
    """result.json. Raises RecordsError where the evaluation has not ended, or the file is damaged."""
    path = folder / RESULT
    if not path.is_file():
        what = (
            "has not ended yet; go on with its command"
            if (folder / COMPLETIONS).is_file()
            else "is not the folder of an evaluation")
        raise RecordsError(f"{folder} holds no {RESULT}: it {what} (--out of python -m eval.run)")
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(result["benchmarks"], dict):
            raise TypeError("benchmarks is no mapping")
    except (ValueError, KeyError, TypeError) as error:
        raise RecordsError(
            f"{path} is not a result ({type(error).__name__}: {error}); it was edited or damaged",
            remedy="the evaluation's command writes it again from the completions") from None
    return dict(result)


def write_completions(folder: Path, questions: Sequence[GradedQuestion]) -> None:
    """Replace completions.jsonl by these, all or nothing."""
    lines = (
        json.dumps(line, ensure_ascii=False, allow_nan=False) for question in questions for line in to_lines(question))
    write_atomically(folder / COMPLETIONS, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The lines, and the position behind each; a last line that a kill has cut is left out."""
    lines: list[dict[str, Any]] = []
    ends: list[int] = []
    position = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            position += len(raw)
            if not raw.endswith(b"\n"):
                break
            try:
                line = json.loads(raw)
            except ValueError as error:
                raise RecordsError(
                    f"not JSON ({error}); the file was edited or damaged", where=f"{path}:{number}",
                    remedy="--restart, or the file as the evaluation wrote it") from None
            if not isinstance(line, dict):
                raise RecordsError("the file was edited or damaged", where=f"{path}:{number}", expected="a JSON object")
            lines.append(line)
            ends.append(position)
    return lines, ends
