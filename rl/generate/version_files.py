"""Policy versions as files: what vLLM reads when a new version is brought to it, in the dtype that it holds.

Every version has a folder of its own, which appears complete (written under another name and renamed): a sampler never
reads half an adapter, and a name is never used for two versions.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError

from rewards.errors import named
from rl.errors import GeneratorError
from rl.policy.policy import Policy, all_weights

_LOCAL_REMEDY = (
    "TMPDIR=DIR in the environment, a folder on a disk with room, or more shared memory (docker run --shm-size 2g)")
_PREFIX, _UNLOCKED_PREFIX = "otherhalf-versions-", "otherhalf-new-versions-"


class VersionFiles:
    """Writes into a folder of its own below `parent`, which `close` removes. Folders that killed processes of this
    machine left there are removed at once: they are no longer locked.

    owns_parent: nothing else writes versions below `parent`, so that every folder there was left.
    is_local: processes of this machine alone write there. Elsewhere a folder tells by its name which machine made it:
    where machines share a folder, none may see the others' locks.
    remedy: what to do where there is no room.

    Raises GeneratorError, with the remedy, where a folder or a version cannot be written."""

    def __init__(
        self, parent: Path, *, owns_parent: bool = False, is_local: bool = False,
        remedy: str = "free some space there",
    ) -> None:
        if owns_parent:
            for left in parent.glob(f"{_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
        _remove_abandoned(parent, is_local=is_local)
        # Not tempfile.mkdtemp, whose folders are closed to other users: a server may run as one. Not the process's
        # number, which another container that shares the folder may have too.
        name = f"{_machine()}-{secrets.token_hex(8)}"
        self._folder = parent / f"{_PREFIX}{name}"
        self._remedy = remedy
        # It gets its name once it is locked: nobody takes it for an abandoned one in between.
        unlocked = parent / f"{_UNLOCKED_PREFIX}{name}"
        with self._explain_failure():
            unlocked.mkdir(parents=True)
            self._lock = _lock(unlocked)
            unlocked.rename(self._folder)
        self._written: list[Path] = []
        self._num_written = 0

    def adapter(self, policy: Policy, version: int) -> Path:
        """The adapter alone, in PEFT's format and the policy's dtype."""
        assert isinstance(policy.model, PeftModel)
        weights = {
            name: weight.detach().to("cpu", policy.dtype) for name, weight in policy.trainable_parameters().items()}
        with self._unfinished() as unfinished:
            # "auto" asks the hub for the base's config.json
            policy.model.save_pretrained(unfinished, save_embedding_layers=False, state_dict=weights)
        return self._appear(unfinished, f"adapter-{version:06d}")

    def merged(self, policy: Policy, version: int) -> Path:
        """A whole checkpoint in the policy's dtype: base + BA computed in float32 from the pristine base, or the
        trained model. The device has room for one merged weight at a time only; the checkpoint is put together in the
        host's memory."""
        plain = policy.causal_lm
        dtype_before = plain.config.dtype
        weights = {name: weight.cpu() for name, weight in all_weights(policy)}
        with self._unfinished() as unfinished:
            try:
                plain.save_pretrained(unfinished, state_dict=weights)
            finally:
                # It put the dtype of the module's first parameter into the model's config and the file: float32 where
                # all are trained.
                config = copy.deepcopy(plain.config)
                plain.config.dtype, config.dtype = dtype_before, policy.dtype
            config.save_pretrained(unfinished)
            policy.tokenizer.save_pretrained(unfinished)
        return self._appear(unfinished, f"merged-{version:06d}")

    def drop(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)
        self._written.remove(path)

    def drop_all_but_last(self) -> None:
        for path in self._written[:-1]:
            self.drop(path)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextlib.contextmanager
    def _unfinished(self) -> Iterator[Path]:
        """A folder to write a version into; what was written there goes where that fails."""
        path = self._folder / ".unfinished"
        shutil.rmtree(path, ignore_errors=True)
        try:
            with self._explain_failure():
                yield path
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def _explain_failure(self) -> Iterator[None]:
        try:
            yield
        # safetensors has an error of its own for a full disk.
        except (OSError, SafetensorError) as error:
            raise GeneratorError(
                f"cannot write a version of the policy for the sampler into {self._folder} ({error})",
                remedy=self._remedy) from error

    def _appear(self, unfinished: Path, name: str) -> Path:
        # Numbered: a version may be brought again, by a run that went on from a checkpoint, while a server still reads
        # the first.
        self._num_written += 1
        path = self._folder / f"{self._num_written}-{name}"
        unfinished.rename(path)
        self._written.append(path)
        return path


def adapter_bytes(policy: Policy) -> int:
    """Of an adapter as it is written."""
    return sum(weight.numel() for weight in policy.trainable_parameters().values()) * policy.dtype.itemsize


def open_with_room(num_bytes: int, last_resort: Path) -> VersionFiles:
    """Where `place_with_room` finds room. Raises GeneratorError where there is none."""
    parent = place_with_room(num_bytes, last_resort)
    return VersionFiles(parent, is_local=parent != last_resort.absolute(), remedy=_LOCAL_REMEDY)


def place_with_room(num_bytes: int, last_resort: Path) -> Path:
    """Shared memory where there is room, else the folder for temporary files, else `last_resort`; nothing is made there
    yet.

    num_bytes: what all processes of this machine write together. Twice as much must be free: NCCL and others want some
    of it, and containers often have 64 MB of shared memory. What killed processes left in any of them is removed first.
    Raises GeneratorError where no place has room."""
    shared_memory = Path("/dev/shm")
    last_resort, seen = last_resort.absolute(), []
    for parent in (*([shared_memory] if shared_memory.is_dir() else []), Path(tempfile.gettempdir()), last_resort):
        is_local = parent != last_resort
        _remove_abandoned(parent, is_local=is_local)
        existing = next(folder for folder in (parent, *parent.parents) if folder.is_dir())
        free = shutil.disk_usage(existing).free
        if free >= 2 * num_bytes and os.access(existing, os.W_OK):
            return parent
        seen.append(f"{parent} ({free / 1e6:.0f} MB free)")
    raise GeneratorError(
        "there is no place for the policy's versions on their way to the sampler", where=named("generator.sync"),
        seen=", ".join(seen), expected=f"{2 * num_bytes / 1e6:.0f} MB free in one of them", remedy=_LOCAL_REMEDY)


def _remove_abandoned(parent: Path, *, is_local: bool) -> None:
    """The folders whose process was killed; see `VersionFiles`."""
    for folder in parent.glob(f"{_PREFIX}*" if is_local else f"{_PREFIX}{_machine()}-*"):
        # Another user's, or removed meanwhile by another process that starts.
        with contextlib.suppress(OSError):
            if (descriptor := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def _machine() -> str:
    """A short name of this machine or container."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _lock(folder: Path) -> int | None:
    """The kernel's lock on the folder, which ends with the process that holds it; None where another one does, and on
    file systems without locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
