"""Policy versions as files: what vLLM reads when a new version is brought to it.

Every version has a folder of its own, which appears complete (written under another name and renamed): a sampler never
reads half an adapter, and a name is never used for two versions.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import secrets
import shutil
from pathlib import Path

from peft import PeftModel

from rl.policy.policy import Policy, all_weights

_PREFIX, _UNLOCKED_PREFIX = "otherhalf-versions-", "otherhalf-new-versions-"


class VersionFiles:
    """Writes into a folder of its own below `parent`, which `close` removes.

    owns_parent: nothing else writes versions below `parent`, so what is there was left by a process that was killed,
    and is removed.
    is_local: processes of this machine alone write there; the folders of those that were killed are removed."""

    def __init__(self, parent: Path, *, owns_parent: bool = False, is_local: bool = False) -> None:
        if owns_parent:
            for left in parent.glob(f"{_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)
        # Not tempfile.mkdtemp, whose folders are closed to other users: a server may run as one. Not the process's
        # number, which another container that shares the folder may have too.
        name = secrets.token_hex(8)
        self._folder = parent / f"{_PREFIX}{name}"
        self._lock: int | None = None
        if is_local:
            _remove_abandoned(parent)
            # It gets its name once it is locked: nobody takes it for an abandoned one in between.
            unlocked = parent / f"{_UNLOCKED_PREFIX}{name}"
            unlocked.mkdir(parents=True)
            self._lock = _lock(unlocked)
            unlocked.rename(self._folder)
        else:
            self._folder.mkdir(parents=True)
        self._written: list[Path] = []
        self._num_written = 0

    def adapter(self, policy: Policy, version: int) -> Path:
        """The adapter alone, in PEFT's format."""
        assert isinstance(policy.model, PeftModel)
        unfinished = self._unfinished()
        # "auto" asks the hub for the base's config.json
        policy.model.save_pretrained(unfinished, save_embedding_layers=False)
        return self._appear(unfinished, f"adapter-{version:06d}")

    def merged(self, policy: Policy, version: int) -> Path:
        """A whole checkpoint in the policy's dtype: base + BA computed in float32 from the pristine base, or the
        trained model. The device has room for one merged weight at a time only; the checkpoint is put together in the
        host's memory."""
        unfinished = self._unfinished()
        plain = policy.causal_lm
        dtype_before = plain.config.dtype
        plain.save_pretrained(unfinished, state_dict={name: weight.cpu() for name, weight in all_weights(policy)})
        # It put the dtype of the module's first parameter into the model's config and the file: float32 where all are
        # trained.
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

    def _unfinished(self) -> Path:
        path = self._folder / ".unfinished"
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _appear(self, unfinished: Path, name: str) -> Path:
        # Numbered: a version may be brought again, by a run that went on from a checkpoint, while a server still reads
        # the first.
        self._num_written += 1
        path = self._folder / f"{self._num_written}-{name}"
        unfinished.rename(path)
        self._written.append(path)
        return path


def _lock(folder: Path) -> int | None:
    """The kernel's lock on the folder, which ends with the process that holds it; None where another one does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*"):
        # Another user's, or removed meanwhile by another process that starts.
        with contextlib.suppress(OSError):
            if (descriptor := _lock(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)
