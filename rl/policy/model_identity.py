"""What tells one model, or one reward, from another whose name is the same: digests of weights and of source files.

Whoever samples in several sittings (an evaluation, rejection sampling) keeps these beside its completions, so that no
file mixes what two policies wrote or two graders judged.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from rewards.scoring import RewardSum
from rl.config import ModelSection
from rl.paths import project_root, resolve_path
from rl.policy.adapter_place import adapter_folder
from rl.policy.file_digest import weights_digest
from rl.policy.policy import default_device, dtype_name, resolve_dtype


def model_identity(model: ModelSection, model_config: PretrainedConfig) -> dict[str, Any]:
    """What tells this model, with its adapter, from another one, also from other weights in the same folder."""
    # Of a hub id, the commit that its name and revision stood for when it was loaded.
    commit = getattr(model_config, "_commit_hash", None)
    identity = {
        "model": model.path, "revision": model.revision, "weights": weights_digest(resolve_path(model.path)) or commit,
        "adapter": model.adapter,
        "adapter_weights": None if model.adapter is None else weights_digest(adapter_folder(model.adapter)),
        "dtype": dtype_name(resolve_dtype(model.dtype, default_device())),
        "device": default_device().type}
    # Identities of earlier versions, which lack it, are those of models without.
    return identity if model.quantization is None else identity | {"quantization": model.quantization}


def rewards_digest(rewards: RewardSum) -> str:
    """Of the source of the functions: the whole package for our own, the function's file otherwise. A grader that was
    changed between two sittings would be two graders."""
    digest = hashlib.sha256()
    for function in rewards.functions:
        try:
            file = Path(inspect.getsourcefile(function) or "")
        except TypeError:  # an instance of a class
            file = Path(inspect.getsourcefile(type(function)) or "")
        files = (
            sorted((project_root() / "rewards").rglob("*.py")) if function.__module__.startswith("rewards.") else [file]
        )
        for path in files:
            if path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
