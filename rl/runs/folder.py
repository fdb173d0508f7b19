"""A run's folder: which file is where, who may write to it, and files that are never half written.

`prepare` gives one process the folder and moves an older run aside, `find_run` turns what the user typed after --resume
into a folder, `write_atomically` replaces a file as a whole. In a run over several ranks only rank 0 calls any of them.
A new file of a run gets its property in `RunFolder`.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rewards.errors import UserError


class RunFolderError(UserError):
    """The folder cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths only; nothing is read or made."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.resolved.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts_file(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def curve_file(self) -> Path:
        return self.path / "curve.png"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def trackers_file(self) -> Path:
        """The run's id at services (rl/runs/trackers.py), and where they have it."""
        return self.path / "trackers.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def inputs(self) -> Path:
        """What a program brings to its run: data and a model that were no files before."""
        return self.path / "inputs"

    @property
    def lock_file(self) -> Path:
        return self.path / "run.lock"

    @property
    def holds_run(self) -> bool:
        return self.config_file.is_file()

    @property
    def changed_at(self) -> float:
        """Newest modification of metrics, checkpoints or samples, in seconds since the epoch; of the config before
        there are any."""
        places = [
            self.metrics_file, self.samples, self.checkpoints,
            *(self.checkpoints.glob("*") if self.checkpoints.is_dir() else ())]
        times = [place.stat().st_mtime for place in places if place.exists()]
        return max(times, default=self.config_file.stat().st_mtime)


@contextmanager
def prepare(
    path: Path, *, resume: bool, say: Callable[[str], None] = print, brought: Sequence[Path] = ()
) -> Iterator[RunFolder]:
    """The folder at `path`, locked for this process until the block ends.

    resume: the run in it goes on. Otherwise a run that is there is moved to `<name>.1`, `.2`, ... beside it (`say`
    tells where), never deleted. brought: the new run's own among RunFolder.inputs, which is there already.
    Raises: RunFolderError when another process uses the folder, when there is no run to resume, or when the folder
    holds something else than a run; nothing has been touched then.
    """
    folder = RunFolder(path)
    if path.exists() and not path.is_dir():
        raise RunFolderError(f"run_dir {path} is a file, not a folder; choose another with run_dir=...")
    if resume and not folder.holds_run:
        raise RunFolderError(f"there is no run to resume in {path}: it has no {folder.config_file.name}. "
                             "Start a new run without --resume, or name another run")
    if not folder.holds_run and path.is_dir():
        strangers = sorted(entry.name for entry in path.iterdir() if entry not in (folder.lock_file, folder.inputs))
        if strangers:
            raise RunFolderError(f"run_dir {path} is not empty and holds no run (it has {', '.join(strangers[:3])}"
                                 f"{', ...' if len(strangers) > 3 else ''}); choose a new folder with run_dir=...")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"run_dir {path} cannot be made: {error.strerror}; choose another with run_dir=...") from error
    with _lock(folder):
        if resume or not folder.holds_run:
            yield folder
            return
        aside = free_name_beside(path)
        # The lock travels with the renamed folder; whoever takes the freed name first holds its lock, and the other is
        # refused.
        path.rename(aside)
        say(f"{path} held an earlier run: it is now {aside}")
        RunFolder(aside).lock_file.unlink()
    path.mkdir(exist_ok=True)
    with _lock(folder):
        _bring(brought, RunFolder(aside))
        yield folder


def _bring(brought: Sequence[Path], aside: RunFolder) -> None:
    """Into the new run's folder, out of that of the run that was moved aside, which keeps what is its own."""
    own = aside.config_file.read_text(encoding="utf-8")
    for path in brought:
        there = aside.inputs / path.name
        path.parent.mkdir(exist_ok=True)
        if path.name not in own:
            there.rename(path)
        elif there.is_dir():
            shutil.copytree(there, path)
        else:
            shutil.copyfile(there, path)


@contextmanager
def _lock(folder: RunFolder) -> Iterator[None]:
    """Hold `run.lock`, which names this process and its host.

    The kernel's lock on the file counts, not its text: it ends with the process that holds it, so that a file left by a
    dead process is taken over, even where its process id has been given to another one since.
    """
    descriptor = _open_locked(folder)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n")
        yield
    finally:
        # After a move aside the name may be another process's file.
        if _is_same_file(descriptor, folder.lock_file):
            folder.lock_file.unlink()
        os.close(descriptor)


def _open_locked(folder: RunFolder) -> int:
    while True:
        descriptor = os.open(folder.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 4096).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunFolderError(
                f"{folder.path} is in use by another process ({holder}); wait for it, stop it, or choose "
                "another folder with run_dir=...") from None
        except OSError as error:
            os.close(descriptor)
            raise RunFolderError(
                f"the file system of {folder.path} gives no file locks ({error.strerror}); put run_dir on another one"
            ) from error
        if _is_same_file(descriptor, folder.lock_file):
            return descriptor
        # Its holder removed the file between our opening and locking it.
        os.close(descriptor)


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def free_name_beside(path: Path) -> Path:
    """`<name>.1`, `.2`, ...: the first that does not exist."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return aside


def find_run(
    name: str, runs_dir: Path = Path("runs"), is_meant: Callable[[RunFolder], bool] = lambda run: True
) -> Path:
    """The folder of the run that `name` means: a path, a run's name under `runs_dir`, or `latest`.

    `latest` is the run whose metrics or checkpoints changed last, of those that `is_meant` accepts. A path may also be
    that of a file in the run's folder.
    Raises: RunFolderError that lists the runs there are, newest first.
    """
    runs = sorted(
        (RunFolder(entry) for entry in (runs_dir.iterdir() if runs_dir.is_dir() else ()) if RunFolder(entry).holds_run),
        key=lambda run: (run.changed_at, run.path.name), reverse=True)
    if name == "latest":
        if (newest := next(filter(is_meant, runs), None)) is not None:
            return newest.path
        raise RunFolderError(f"there is no run in {runs_dir} to take the latest of; name the run's folder")
    given = Path(name)
    for candidate in (given.parent if given.is_file() else given, runs_dir / name):
        if name and RunFolder(candidate).holds_run:
            return candidate
    names = [run.path.name for run in runs]
    closest = difflib.get_close_matches(given.name, names, n=1)
    hint = f"did you mean {closest[0]}? " if closest else ""
    raise RunFolderError(f"no run {name!r}: neither a run's folder nor a run under {runs_dir}; {hint}"
                         f"runs there: {', '.join(names[:10]) or 'none'}{', ...' if len(names) > 10 else ''}")


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8): it then holds all of it, or, after an error or a kill, what it held
    before.

    Raises: OSError of the same kind with the remedy in its message; the temporary file is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = ("free some space there, or put run_dir on another disk" if is_full
                  else "check that the folder exists and may be written to")
        raise OSError(
            error.errno,
            f"cannot write {path} ({len(data):,} bytes): {error.strerror}; what it held before is "
            f"unchanged. Remedy: {remedy}") from error


def _sync_folder(path: Path) -> None:
    """Without this a power cut may bring back the old name although the new data are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
