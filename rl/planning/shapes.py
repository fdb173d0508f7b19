"""A model's name -> the names and shapes of its weights, without the weights: from the safetensors headers in a folder,
from its config.json alone, or from the sizes of a well-known model. Add a model to KNOWN.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from rewards.errors import named
from rl.config import ModelSection
from rl.errors import ConfigError
from rl.paths import resolve_path, similar_path

WeightShapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a dense decoder. head_width None: hidden / heads."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    family: Literal["qwen2", "qwen3", "llama"] = "qwen2"
    head_width: int | None = None


KNOWN = {
    "smollm2-135m": Shape(576, 1536, 30, 9, 3, 49_152, True, "llama"),
    "smollm2-360m": Shape(960, 2560, 32, 15, 5, 49_152, True, "llama"),
    "smollm2-1.7b": Shape(2048, 8192, 24, 32, 32, 49_152, True, "llama"),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 151_936, True),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 151_936, True),
    "qwen2.5-3b": Shape(2048, 11_008, 36, 16, 2, 151_936, True),
    "qwen2.5-7b": Shape(3584, 18_944, 28, 28, 4, 152_064, False),
    "qwen2.5-14b": Shape(5120, 13_824, 48, 40, 8, 152_064, False),
    "qwen2.5-32b": Shape(5120, 27_648, 64, 40, 8, 152_064, False),
    "qwen3-0.6b": Shape(1024, 3072, 28, 16, 8, 151_936, True, "qwen3", 128),
    "qwen3-1.7b": Shape(2048, 6144, 28, 16, 8, 151_936, True, "qwen3", 128),
    "qwen3-4b": Shape(2560, 9728, 36, 32, 8, 151_936, True, "qwen3", 128),
    "qwen3-8b": Shape(4096, 12_288, 36, 32, 8, 151_936, False, "qwen3", 128),
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 128_256, True, "llama"),
    "llama-3.2-3b": Shape(3072, 8192, 28, 24, 8, 128_256, True, "llama"),
    "llama-3.1-8b": Shape(4096, 14_336, 32, 32, 8, 128_256, False, "llama"),
}
_VARIANTS = {"instruct", "base", "math", "coder", "meta", "it"}
"""Parts of a checkpoint's name that do not change its shapes."""


def known_shape(path: str) -> Shape | None:
    """Of `qwen2.5-1.5b`, and of hub ids and folders named so: Qwen/Qwen2.5-Math-1.5B-Instruct; None for others."""
    parts = path.rstrip("/").rpartition("/")[2].lower().split("-")
    return KNOWN.get("-".join(part for part in parts if part not in _VARIANTS))


def shape_config(shape: Shape, *, context: int = 32_768) -> PretrainedConfig:
    """The transformers configuration of a model of these sizes."""
    return AutoConfig.for_model(
        shape.family, hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        head_dim=shape.head_width or shape.hidden // shape.heads, tie_word_embeddings=shape.tied,
        max_position_embeddings=context, bos_token_id=None, eos_token_id=1, pad_token_id=0)


def checkpoint_folder(model: ModelSection, cache: Path | None = None) -> Path | None:
    """The folder with the checkpoint's files: the one named, or a hub id's in the cache; None where nothing was
    downloaded yet."""
    path = resolve_path(model.path)
    if path.is_dir():
        return path
    if model.path.count("/") > 1:
        return None
    try:
        found = try_to_load_from_cache(model.path, "config.json", revision=model.revision, cache_dir=cache)
    except HFValidationError:  # a path, then, and there is nothing
        return None
    return Path(found).parent if isinstance(found, str) else None


def planned_config(model: ModelSection) -> PretrainedConfig:
    """The model's configuration from its folder or the hub's cache, or that of a well-known model of this name; asks no
    hub. Raises ConfigError where it is none of these."""
    folder = checkpoint_folder(model)
    if folder is not None and (folder / "config.json").is_file():
        return AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    shape = known_shape(model.path)
    if shape is None:
        raise ConfigError(
            f"{model.path!r} is neither a folder with a config.json, nor a hub id that was downloaded, nor a known "
            f"model{similar_path(model.path)}", where=named("model.path"),
            remedy=f"its config.json in a folder, or one of: {', '.join(KNOWN)}")
    return shape_config(shape)


def weight_shapes(model: ModelSection, model_config: PretrainedConfig) -> WeightShapes:
    """Name and shape of every weight: those of the checkpoint's headers, or where it has none those that a model of
    this configuration is built with. Raises ConfigError for a damaged file and for what is no language model."""
    folder = checkpoint_folder(model)
    found = stored_shapes(folder) if folder is not None else None
    return found or built_shapes(model_config, trust_remote_code=model.trust_remote_code)


def stored_shapes(path: Path) -> WeightShapes | None:
    """From the safetensors headers in a folder; None where there are none. Raises ConfigError for a damaged file."""
    shapes: WeightShapes = {}
    # Mistral's folders hold all weights a second time, as consolidated.safetensors.
    files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
    for file in files if path.is_dir() else []:
        try:
            with file.open("rb") as stream:
                (length,) = struct.unpack("<Q", stream.read(8))
                # A pointer of git-lfs is text: its first bytes make a length beyond any memory.
                if length > file.stat().st_size:
                    raise ValueError(
                        f"its header claims {length} bytes of {file.stat().st_size}; a git-lfs pointer needs `git lfs "
                        "pull`")
                header = json.loads(stream.read(length))
        except (struct.error, ValueError) as error:
            raise ConfigError(
                f"{named('model.path')}: {file} is no whole safetensors file ({error}). Remedy: copy or download the "
                "checkpoint again") from error
        shapes |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return shapes or None


def built_shapes(model_config: PretrainedConfig, *, trust_remote_code: bool = False) -> WeightShapes:
    """Of the model that transformers builds from a configuration; tied weights once. Raises ConfigError where it builds
    none."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config, trust_remote_code=trust_remote_code)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(
            f"no model is built from its config.json ({str(error).strip().splitlines()[0]})", where=named("model.path"),
            expected="a causal language model") from error
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_shapes(model: ModelSection, model_config: PretrainedConfig) -> None:
    """Raises ConfigError where the checkpoint's weights have other shapes than its config.json says: loading them would
    fail. Quantised weights are packed, and not compared."""
    folder = checkpoint_folder(model)
    stored = stored_shapes(folder) if folder is not None else None
    if stored is None or getattr(model_config, "quantization_config", None) is not None:
        return
    try:
        built = built_shapes(model_config, trust_remote_code=model.trust_remote_code)
    except ConfigError:  # loading says it better
        return
    for name, shape in built.items():
        if stored.get(name, shape) != shape:
            raise ConfigError(
                f"{name} has the shape {stored[name]}, and by its config.json it has {shape}",
                where=named("model.path"), remedy="config.json and weights of one checkpoint")
