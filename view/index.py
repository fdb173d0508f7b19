"""Files of groups -> an SQLite index of where each group begins and what lists, filters and sorts it.

The index lies in the user's cache folder, never in the run's, and is built piece by piece (`advance`), so that what is
indexed can be looked at meanwhile. The file stays the truth: a group is read from it anew, and an index whose file was
replaced, cut or rewritten is thrown away. Text is searched in the file's own bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import UserError
from view.groups import RIGHT, Group, from_evaluation, from_rollouts, from_samples
from view.sources import Kind, ViewError

VERSION = 1  # of the tables and of what stands in them; an index of another version is built anew
PIECE_BYTES = 4_000_000
PROBE_BYTES = 4096
MAX_FOUND = 2000  # groups that a search for text returns at most
FILE_BITS = 40  # a group's id is its file's number, and the byte in it where its line begins: below 2 ** 53
_IN_FILE = (1 << FILE_BITS) - 1

_COLUMNS = (
    "id", "length", "step", "question_id", "question", "gold", "benchmark", "refused", "trained", "entropy", "num",
    "num_right", "majority", "majority_share", "majority_is_right", "reward", "reward_min", "reward_max", "tokens",
    "num_truncated", "rewards", "lengths", "right")
SHOWN = _COLUMNS[2:-3]
SORTS = {
    "step": "step", "reward": "reward", "spread": "reward_max - reward_min", "entropy": "entropy",
    "right": "1.0 * num_right / num", "majority": "majority_share", "tokens": "tokens"}
_RIGHT = {
    "all": "num_right = num", "some": "num_right > 0 AND num_right < num", "none": "num_right = 0",
    "majority_wrong": "majority_is_right = 0", "unknown": "num_right IS NULL"}


class StaleIndexError(UserError):
    """A file does not hold what the index says, or is not what a run writes; the index is built anew."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which groups, in which order. first_step, last_step: inclusive. refused: a reason, `any`, or `no`. right: `all`,
    `some`, `none` of the completions, `majority_wrong`, or `unknown`. text: stands in the question or a completion, in
    any case of ASCII letters. Empty or None: no matter. Raises ViewError."""

    first_step: int | None = None
    last_step: int | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    refused: str = ""
    right: str = ""
    question_id: str = ""
    text: str = ""
    sort: str = "step"
    descending: bool = False

    def __post_init__(self) -> None:
        for name, known in (("sort", SORTS), ("right", {"": "", **_RIGHT})):
            if getattr(self, name) not in known:
                raise ViewError(where=name, seen=repr(getattr(self, name)), expected=f"one of {', '.join(known)}")

    def where(self) -> tuple[str, list[Any]]:
        """An SQL condition and its values."""
        parts: list[tuple[str, list[Any]]] = [
            (f"{column} {sign} ?", [value]) for column, sign, value in (
                ("step", ">=", self.first_step), ("step", "<=", self.last_step), ("reward", ">=", self.reward_min),
                ("reward", "<=", self.reward_max), ("question_id", "=", self.question_id or None))
            if value is not None]
        if self.refused:
            parts.append({"any": ("refused IS NOT NULL", []), "no": ("refused IS NULL", [])}.get(
                self.refused, ("refused = ?", [self.refused])))
        if self.right:
            parts.append((_RIGHT[self.right], []))
        return " AND ".join(part for part, _ in parts) or "1", [value for _, values in parts for value in values]

    def order(self) -> str:
        way = "DESC" if self.descending else "ASC"
        return f"{SORTS[self.sort]} {way} NULLS LAST, id {way}"


class GroupIndex:
    """Of one source's files. Safe to use from several threads and, in the cache, from several processes."""

    def __init__(self, kind: Kind, cache: Path | None) -> None:
        """cache: the index's file, made with its folder where it is missing; None: in memory."""
        self._kind = kind
        self._lock = threading.RLock()
        self._database = _open(cache)
        self._found: tuple[Query, list[int], bool] | None = None
        self._files: list[Path] = []
        self._sizes: dict[int, int] = {}
        self.is_complete = False
        self.problem: str | None = None

    def advance(self, files: Sequence[Path]) -> bool:
        """Index a further piece of the files; True where there is nothing more at present. A line that is none of a
        run's ends its file, with `problem` saying which."""
        self._files = list(files)
        self.problem = None
        # A list, not a generator: each file gets its turn.
        self.is_complete = not any([self._advance(number, file) for number, file in enumerate(files)])
        return self.is_complete

    @property
    def share(self) -> float:
        """How much of the files is indexed, in [0, 1]."""
        if self.is_complete:
            return 1.0
        whole = sum(file.stat().st_size for file in self._files if file.is_file())
        with self._lock:
            done = self._database.execute("SELECT sum(position) FROM files").fetchone()[0] or 0
        return min(1.0, done / whole) if whole else 1.0

    def count(self, query: Query) -> tuple[int, bool]:
        """(groups, whether there may be more of a search for text)."""
        if query.text:
            ids, is_cut = self._search(query)
            return len(ids), is_cut
        where, values = query.where()
        with self._lock:
            return self._database.execute(f"SELECT count(*) FROM groups WHERE {where}", values).fetchone()[0], False

    def rows(self, query: Query, offset: int = 0, limit: int = 100) -> list[dict[str, Any]]:
        """What is listed of the groups, by name of the column, `id` among it."""
        where, values = query.where()
        if query.text:
            ids = self._search(query)[0][offset:offset + limit]
            where, values = f"id IN ({','.join('?' * len(ids))})", list(ids)
            offset = 0
        sql = f"SELECT id, {', '.join(SHOWN)} FROM groups WHERE {where} ORDER BY {query.order()} LIMIT ? OFFSET ?"
        with self._lock:
            found = self._database.execute(sql, [*values, limit, offset]).fetchall()
        return [dict(zip(("id", *SHOWN), row, strict=True)) for row in found]

    def ids(self, query: Query) -> list[int]:
        """Without regard to `text`."""
        where, values = query.where()
        with self._lock:
            found = self._database.execute(
                f"SELECT id FROM groups WHERE {where} ORDER BY {query.order()}", values).fetchall()
        return [row[0] for row in found]

    def group(self, group_id: int) -> Group:
        """Read from its file. Raises KeyError where there is no such group, StaleIndexError where the file has changed.
        """
        with self._lock:
            row = self._database.execute(
                "SELECT length, step, question_id FROM groups WHERE id = ?", [group_id]).fetchone()
        if row is None:
            raise KeyError(group_id)
        number = group_id >> FILE_BITS
        try:
            group = self._parse(self._read(group_id, row[0]), number)
            if (group.step, group.question_id) == row[1:]:
                return group
        except (OSError, ValueError, KeyError, TypeError, LookupError):
            pass
        self._forget(number)
        raise StaleIndexError("the file was rewritten since it was indexed; it is being indexed anew")

    def neighbours(self, group_id: int) -> dict[str, int | None]:
        """Ids of the groups that stand before and behind it in the files."""
        with self._lock:
            before, behind = (self._database.execute(sql, [group_id]).fetchone()[0] for sql in (
                "SELECT max(id) FROM groups WHERE id < ?", "SELECT min(id) FROM groups WHERE id > ?"))
        return {"previous": before, "next": behind}

    def per_completion(self) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """(step, rewards [G], NaN without one; lengths in tokens [G], -1 unknown; right [G]: 1, 0, -1 unknown) of each
        group."""
        with self._lock:
            found = self._database.execute("SELECT step, rewards, lengths, right FROM groups ORDER BY step").fetchall()
        for step, rewards, lengths, right in found:
            yield (step, np.frombuffer(rewards, np.float64), np.frombuffer(lengths, np.intc),
                   np.frombuffer(right, np.int8))

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _advance(self, number: int, file: Path) -> bool:
        """Whether there may be more to index."""
        try:
            with file.open("rb") as opened:
                descriptor, size = opened.fileno(), os.fstat(opened.fileno()).st_size
                position, length = self._trusted_position(number, descriptor), PIECE_BYTES
                if self._sizes.get(number) == size:
                    return False
                rows: list[tuple[Any, ...]] = []
                end = position
                while end == position and (piece := _whole_lines(descriptor, position, length)):
                    rows, end = self._rows(piece, number, position)
                    if end == position and position + length >= size:
                        break  # the last question of an evaluation
                    length *= 2
                if rows:
                    self._keep(number, descriptor, position, end, rows)
                if end in (position, size):
                    self._sizes[number] = size
                    return False
                return True
        except FileNotFoundError:
            self._forget(number)
        except (ValueError, KeyError, TypeError) as error:
            self.problem = (
                f"{file} is not what a run writes ({type(error).__name__}: {error}); it is shown as far as it is")
        return False

    def _rows(self, piece: bytes, number: int, position: int) -> tuple[list[tuple[Any, ...]], int]:
        """The groups of whole lines, and where the next one begins: an evaluation's last question may go on, so that it
        is indexed, and begun again the next time."""
        if self._kind != "evaluation":
            rows, start = [], position
            for line in piece.splitlines(keepends=True):
                rows.append(_row((number << FILE_BITS) + start, len(line), self._parse(line, number)))
                start += len(line)
            return rows, start
        blocks: list[tuple[int, list[bytes]]] = []
        start, last = position, None
        for line in piece.splitlines(keepends=True):
            record = json.loads(line)
            key = (record["benchmark"], record["id"])
            if key != last:
                blocks.append((start, []))
            blocks[-1][1].append(line)
            start, last = start + len(line), key
        rows = []
        for begin, lines in blocks:
            block = b"".join(lines)
            rows.append(_row((number << FILE_BITS) + begin, len(block), self._parse(block, number)))
        return rows, blocks[-1][0]

    def _parse(self, content: bytes, number: int) -> Group:
        records = [json.loads(line) for line in content.splitlines()]
        if self._kind == "evaluation":
            return from_evaluation(records)
        return from_samples(records[0], number) if self._kind == "rejection" else from_rollouts(records[0])

    def _read(self, group_id: int, length: int) -> bytes:
        file = self._files[group_id >> FILE_BITS]
        with file.open("rb") as opened:
            return os.pread(opened.fileno(), length, group_id & _IN_FILE)

    def _trusted_position(self, number: int, descriptor: int) -> int:
        """How far the file is indexed; 0, and nothing of it any more, where it is not the one that was indexed."""
        with self._lock:
            row = self._database.execute(
                "SELECT position, identity, probe FROM files WHERE number = ?", [number]).fetchone()
        if row is None:
            return 0
        if row[1:] == (_identity(descriptor), _probe(descriptor, row[0])):
            return int(row[0])
        self._forget(number)
        return 0

    def _keep(self, number: int, descriptor: int, position: int, end: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Not where another process has indexed the piece meanwhile."""
        with self._lock, self._database:
            self._database.execute("BEGIN IMMEDIATE")
            there = self._database.execute("SELECT position FROM files WHERE number = ?", [number]).fetchone()
            if (there[0] if there else 0) != position:
                return
            self._database.executemany(
                f"INSERT OR REPLACE INTO groups ({', '.join(_COLUMNS)}) VALUES ({','.join('?' * len(_COLUMNS))})", rows)
            self._database.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                [number, end, _identity(descriptor), _probe(descriptor, end)])
            self._found = None

    def _forget(self, number: int) -> None:
        self._sizes.pop(number, None)
        with self._lock, self._database:
            first = number << FILE_BITS
            self._database.execute("DELETE FROM groups WHERE id >= ? AND id < ?", [first, first + (1 << FILE_BITS)])
            self._database.execute("DELETE FROM files WHERE number = ?", [number])
            self._found = None

    def _search(self, query: Query) -> tuple[list[int], bool]:
        """Ids of the groups that hold the text, in the query's order, and whether there are more than MAX_FOUND."""
        with self._lock:
            if self._found is not None and self._found[0] == query:
                return self._found[1:]
            where, values = query.where()
            candidates = self._database.execute(
                f"SELECT id, length FROM groups WHERE {where} ORDER BY {query.order()}", values).fetchall()
        needle = query.text.encode("utf-8", "backslashreplace").lower()
        written = json.dumps(query.text, ensure_ascii=False)[1:-1].encode("utf-8", "backslashreplace").lower()
        found: list[int] = []
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(file.open("rb")).fileno() if file.is_file() else -1 for file in self._files]
            for group_id, length in candidates:
                line = os.pread(files[group_id >> FILE_BITS], length, group_id & _IN_FILE)
                if written in line.lower() and self._holds(line, group_id, needle):
                    found.append(group_id)
                    if len(found) == MAX_FOUND:
                        break
        is_cut = len(found) == MAX_FOUND
        with self._lock:
            self._found = (query, found, is_cut)
        return found, is_cut

    def _holds(self, line: bytes, group_id: int, needle: bytes) -> bool:
        """Not every match counts: names of fields and numbers stand in the line too."""
        try:
            group = self._parse(line, group_id >> FILE_BITS)
        except (ValueError, KeyError, TypeError, IndexError):
            return False
        texts = "\x00".join([group.question, *(one.text for one in group.completions)])
        return needle in texts.encode("utf-8", "backslashreplace").lower()


def cache_file(kind: Kind, folder: Path) -> Path:
    """Where the index of a source in `folder` is kept: $XDG_CACHE_HOME/otherhalf, or ~/.cache/otherhalf."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]
    return root / "otherhalf" / "view" / f"{kind}-{digest}.sqlite"


def _open(cache: Path | None) -> sqlite3.Connection:
    """An index that cannot be written, or is none, is one in memory, or a new one."""
    for _ in range(2):
        try:
            if cache is not None:
                cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            database = sqlite3.connect(
                ":memory:" if cache is None else cache, timeout=30.0, isolation_level=None, check_same_thread=False)
            if cache is not None:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = OFF")
            if database.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                database.executescript(
                    "DROP TABLE IF EXISTS files; DROP TABLE IF EXISTS groups;"
                    "CREATE TABLE files (number INTEGER PRIMARY KEY, position INTEGER, identity TEXT, probe BLOB);"
                    f"CREATE TABLE groups (id INTEGER PRIMARY KEY, {', '.join(_COLUMNS[1:])});"
                    "CREATE INDEX by_step ON groups (step); CREATE INDEX by_question ON groups (question_id);"
                    f"PRAGMA user_version = {VERSION};")
            return database
        except (OSError, sqlite3.OperationalError):
            cache = None
        except sqlite3.DatabaseError:
            assert cache is not None
            cache.unlink(missing_ok=True)
    return _open(None)


def _whole_lines(descriptor: int, position: int, length: int) -> bytes:
    """About `length` bytes, up to the last end of line; empty where the file holds no whole line there. A line that is
    longer is read to its end."""
    piece = os.pread(descriptor, length, position)
    while b"\n" not in piece and (more := os.pread(descriptor, length, position + len(piece))):
        piece += more
    return piece[:piece.rfind(b"\n") + 1]


def _identity(descriptor: int) -> str:
    stat = os.fstat(descriptor)
    return f"{stat.st_dev}:{stat.st_ino}"


def _probe(descriptor: int, position: int) -> bytes:
    """Of the file's beginning and of what stands before `position`; another one where the file is shorter."""
    start = max(0, position - PROBE_BYTES)
    parts = (os.pread(descriptor, min(PROBE_BYTES, position), 0), os.pread(descriptor, position - start, start))
    return hashlib.sha256(b"\x00".join(parts)).digest()


def _row(group_id: int, length: int, group: Group) -> tuple[Any, ...]:
    """In the order of _COLUMNS."""
    ones, size = group.completions, len(group.completions)
    rewards = [math.nan if one.reward is None else one.reward for one in ones]
    lengths = [-1 if one.num_tokens is None else one.num_tokens for one in ones]
    right = [-1 if one.correct is None else int(one.correct > RIGHT) for one in ones]
    answer, votes, is_clear = group.largest
    has_rewards = not math.isnan(sum(rewards))
    return (
        group_id, length, group.step, group.question_id, _cut(group.question), _cut(group.gold), group.benchmark,
        group.refused, group.trained, group.normalised_entropy, size, None if -1 in right else sum(right),
        _cut(answer) if is_clear else None, votes / size, group.majority_is_right,
        *((sum(rewards) / size, min(rewards), max(rewards)) if has_rewards else (None, None, None)),
        None if -1 in lengths else sum(lengths) / size, sum(one.truncated for one in ones),
        array("d", rewards).tobytes(), array("i", lengths).tobytes(), array("b", right).tobytes())


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= 300 else text[:300] + "…"
