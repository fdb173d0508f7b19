"""An adapter merged into its base, in float32 from the pristine base, as a plain checkpoint on the disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rl.config import ModelSection
from rl.errors import ConfigError
from rl.paths import resolve_path


@dataclass(frozen=True, slots=True)
class Source:
    """base: the checkpoint to begin with, without adapter. adapter: what is merged into it; None where `base` is the
    trained model.

    stored_like: the checkpoint whose dtype the result has: what training began with (it keeps all trained weights in
    float32)."""

    base: ModelSection
    adapter: Path | None
    stored_like: ModelSection


def write_plain(source: Source, out: Path, dtype: str | None = None) -> str:
    """The same for a source that is known. `out`: does not exist, or is empty."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from rl.policy.policy import load_policy, merged_weights, stored_lora
    from rl.questions.inputs import load_model_config, load_tokenizer

    transformers_logging.disable_progress_bar()
    tokenizer = load_tokenizer(source.base)
    plain = AutoModelForCausalLM.from_pretrained(
        str(resolve_path(source.base.path)),
        revision=source.base.revision,
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
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        os.replace(temporary, out)  # replaces an empty folder too
    # safetensors has an error of its own for a full disk.
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"cannot write {out}: {error}. Remedy: free some space there, or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    what = (
        f"{source.base.path} with {source.adapter} merged into it" if source.adapter is not None else source.base.path)
    return f"wrote {out}: {what}, {str(plain.dtype).removeprefix('torch.')}"
