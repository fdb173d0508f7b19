"""Policy versions as files: what vLLM reads when a new version is brought to it.

Every version has a folder of its own, which appears complete (written under another name and renamed): a sampler never reads half an
adapter, and a name is never used for two versions.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel

from rl.policy import Policy, merged_weights


class VersionFiles:
    """Writes into a folder of its own below `parent`, which `close` removes."""

    def __init__(self, parent: Path) -> None:
        self._folder = parent / f"policy-versions-{os.getpid()}"
        shutil.rmtree(self._folder, ignore_errors=True)  # of a process that had this number and was killed
        self._folder.mkdir(parents=True)

    def adapter(self, policy: Policy, version: int) -> Path:
        """The adapter alone, in PEFT's format."""
        assert isinstance(policy.model, PeftModel)
        unfinished = self._unfinished()
        policy.model.save_pretrained(unfinished)
        return self._appear(unfinished, f"adapter-{version:06d}")

    def merged(self, policy: Policy, version: int) -> Path:
        """A whole checkpoint in the policy's dtype: base + BA computed in float32 from the pristine base, or the trained model."""
        unfinished = self._unfinished()
        plain = policy.pristine_copy()
        parameters = dict(plain.named_parameters())
        with torch.no_grad():
            for name, weight in merged_weights(policy):
                parameters[name].copy_(weight)
        plain.save_pretrained(unfinished)
        policy.tokenizer.save_pretrained(unfinished)
        return self._appear(unfinished, f"merged-{version:06d}")

    def drop(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _unfinished(self) -> Path:
        path = self._folder / ".unfinished"
        shutil.rmtree(path, ignore_errors=True)
        return path

    def _appear(self, unfinished: Path, name: str) -> Path:
        path = self._folder / name
        shutil.rmtree(path, ignore_errors=True)  # the same version again: a run that went on from a checkpoint
        unfinished.rename(path)
        return path
