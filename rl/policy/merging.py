"""An adapter merged into its base, in float32 from the pristine base, as a plain checkpoint on the disk."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rewards.errors import named
from rl.config import ModelSection
from rl.errors import ConfigError
from rl.paths import resolve_path

if TYPE_CHECKING:
    import torch

    from rl.policy.policy import Policy
    from rl.questions.run_prompt import RunPrompt


@dataclass(frozen=True, slots=True)
class Source:
    """base: the checkpoint to begin with, without adapter. adapter: what is merged into it; None where `base` is the
    trained model.

    stored_like: the checkpoint whose dtype the result has: what training began with (it keeps all trained weights in
    float32)."""

    base: ModelSection
    adapter: Path | None
    stored_like: ModelSection


def write_plain(source: Source, out: Path, dtype: str | None = None, prompt: RunPrompt | None = None) -> str:
    """Write the merged checkpoint into the folder `out`, which does not exist or is empty, and return a line that says
    so. dtype: of its weights, such as bfloat16; None: of the checkpoint that the source names for it. prompt: under
    which it was trained, recorded beside it.

    Raises ConfigError where it cannot be written."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from rl.policy.policy import dtype_name, load_policy, merged_weights, stored_lora
    from rl.questions.inputs import load_model_config, load_tokenizer

    _refuse_quantised(source, prompt)
    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(source.base)
    plain = AutoModelForCausalLM.from_pretrained(
        str(resolve_path(source.base.path)), revision=source.base.revision,
        trust_remote_code=source.base.trust_remote_code,
        dtype=dtype or load_model_config(source.stored_like).dtype or "auto")
    if source.adapter is not None:
        adapted = source.base.model_copy(update={"adapter": str(source.adapter), "dtype": "float32"})
        policy = load_policy(
            adapted, stored_lora(source.adapter), tokenizer, seed=0, device=torch.device("cpu"), keep_reference=False)
        parameters = dict(plain.named_parameters())
        with torch.no_grad():
            for name, weight in merged_weights(policy):
                parameters[name].copy_(weight)
        _warn_of_rounding(policy, plain.dtype)

    def save(folder: Path) -> None:
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    _save(save, out, prompt)
    added = "" if source.adapter is None else f" with {source.adapter} merged into it"
    return f"wrote {out}: {source.base.path}{added}, {dtype_name(plain.dtype)}"


def write_adapter(
    adapter: Path, base: ModelSection, out: Path, prompt: RunPrompt | None = None, base_name: str | None = None
) -> str:
    """Copy a PEFT adapter into the folder `out`, which does not exist or is empty, with its base's tokenizer and the
    prompt under which it was trained; returns a line that says so. base_name: what it calls its base from now on; None:
    as it does. Raises ConfigError where it cannot be written."""
    from rl.questions.inputs import load_tokenizer

    tokenizer = load_tokenizer(base)

    def save(folder: Path) -> None:
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(adapter / file, folder / file)
        if base_name is not None:
            settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
            settings["base_model_name_or_path"] = base_name
            (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
        tokenizer.save_pretrained(folder)

    _save(save, out, prompt)
    return f"wrote {out}: {adapter}, for {base.path}"


def _refuse_quantised(source: Source, prompt: RunPrompt | None) -> None:
    """The adapter's change was learnt over weights in 4 bits, in which no merge holds it; added to others it is no
    longer what was trained."""
    quantization = source.base.quantization or (None if prompt is None else prompt.quantization)
    if source.adapter is not None and quantization is not None:
        raise ConfigError(
            f"{quantization}, with which the adapter in {source.adapter} was trained: rounded to 4 bits base + BA "
            "would lose most of BA, and over the base in model.dtype it is another policy",
            where=named("model.quantization"),
            remedy="the adapter beside its base (rl.export --adapter-only; python -m eval.run --adapter; vLLM's "
            f"--quantization bitsandbytes --enable-lora), or training with {named('model.quantization', 'null')}")


def _warn_of_rounding(policy: Policy, dtype: torch.dtype) -> None:
    from rl.policy.policy import dtype_name
    from rl.policy.rounding import MOST, surviving_share

    if (share := surviving_share(policy, dtype)) < MOST:
        warnings.warn(
            f"of the adapter's change {share:.0%} survives rounding to {dtype_name(dtype)}: the merged checkpoint is "
            "behind the adapter by the rest. Remedy: the adapter beside its base (PEFT, vLLM's --enable-lora; a "
            "warm-up with merge=false), or float32 weights (rl.export --dtype float32)", stacklevel=3)


def _save(save: Callable[[Path], None], out: Path, prompt: RunPrompt | None) -> None:
    """Appears complete: written beside it, and renamed."""
    from safetensors import SafetensorError

    from rl.questions.run_prompt import write_record

    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        save(temporary)
        if prompt is not None:
            write_record(temporary, prompt)
        os.replace(temporary, out)  # replaces an empty folder too
    # safetensors has an error of its own for a full disk.
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cannot write {out}: {error}", remedy="free some space there, or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
