"""Which base an adapter was trained on: a fingerprint of the base's weights beside the adapter's files.

PEFT records the base's name. But a folder may be moved, and another model of the same shape (the base before its own
warm-up, say) takes the adapter without an error, although the sum means nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rl.policy.nf4 import is_quantised

FILE = "base_fingerprint.json"
NUM_SAMPLED = 16


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the first NUM_SAMPLED numbers of each of the base's weights, rounded to bfloat16, whatever dtype
    they are loaded in. Weights in 4 bits enter by name alone: their codes depend on the dtype that was quantised. An
    adapter over the base does not enter."""
    digest = hashlib.sha256()
    quantised = {_plain_name(f"{name}.weight") for name, module in model.named_modules() if is_quantised(module)}
    for name, parameter in sorted((_plain_name(name), parameter) for name, parameter in model.named_parameters()):
        if not any(part.startswith("lora_") for part in name.split(".")):
            if name in quantised:
                digest.update(f"{name} nf4 ".encode())
                continue
            sampled = parameter.detach().flatten()[:NUM_SAMPLED].to(device="cpu", dtype=torch.bfloat16)
            digest.update(f"{name} {tuple(parameter.shape)} ".encode() + sampled.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def write_fingerprint(folder: Path, model: PreTrainedModel) -> None:
    quantised = {"quantization": "nf4"} if any(map(is_quantised, model.modules())) else {}
    (folder / FILE).write_text(json.dumps({"base": fingerprint(model), **quantised}) + "\n")


def recorded_quantization(folder: Path) -> str | None:
    """model.quantization of the base that the adapter in `folder`, which has a fingerprint, was trained on."""
    found: str | None = json.loads((folder / FILE).read_text()).get("quantization")
    return found


def is_other_base(folder: Path, model: PreTrainedModel) -> bool:
    """Whether the adapter in `folder` says that it was trained on other weights than these; False where it says
    nothing."""
    file = folder / FILE
    return file.is_file() and json.loads(file.read_text()).get("base") != fingerprint(model)


def _plain_name(name: str) -> str:
    return name.replace(".base_layer.", ".")
