"""Which vLLM works here, and from when on it does what."""

from __future__ import annotations

import importlib.util

from packaging.version import Version

from rewards.errors import named
from rl.errors import GeneratorError

VLLM_VERSIONS = ("0.25.1", "0.33")
"""The vLLM releases that this version works with: from the first, below the second. Tested: 0.25.1 and 0.32.0."""
FLOAT32_HEAD_FROM = "0.26"
"""The first that computes a language model's logits in float32 where it is told to; those before go on without a
word."""

NF4_PLUGIN_FROM = "0.28"
"""The first without bitsandbytes' layers of its own: the package vllm-bnb-plugin has them."""


def check_float32_head(version: str, where: str) -> None:
    """Raises GeneratorError where vLLM of this version does not do what model.head_dtype=float32 asks for. where: such
    as "here" or a server's address."""
    if Version(version) < Version(FLOAT32_HEAD_FROM):
        raise GeneratorError(
            f"float32, but vLLM {version} {where} computes the output layer in the model's dtype",
            where=named("model.head_dtype"),
            remedy=f"vLLM {FLOAT32_HEAD_FROM} or newer, or {named('model.head_dtype', 'null')}")


def check_nf4(version: str | None, *, on_gpu: bool) -> None:
    """Raises GeneratorError where vLLM of this version in this process cannot quantise the base itself as
    model.quantization=nf4 does. None: it is not installed, which others say."""
    elsewhere = f"{named('generator.backend', 'transformers')}, or {named('model.quantization', 'null')}"
    if not on_gpu:
        raise GeneratorError(
            "nf4, but vLLM computes with bitsandbytes' weights on a GPU alone", where=named("model.quantization"),
            remedy=elsewhere)
    is_out_of_tree = version is not None and Version(version) >= Version(NF4_PLUGIN_FROM)
    if is_out_of_tree and importlib.util.find_spec("vllm_bnb_plugin") is None:
        raise GeneratorError(
            f"nf4, but vLLM {version} quantises so by a plugin, which is not installed",
            where=named("model.quantization"), remedy=f"pip install vllm-bnb-plugin; or {elsewhere}")
