"""Which vLLM works here, and from when on it does what."""

from __future__ import annotations

from packaging.version import Version

from rewards.errors import named
from rl.errors import GeneratorError

VLLM_VERSIONS = ("0.25.1", "0.33")
"""The vLLM releases that this version works with: from the first, below the second. Tested: 0.25.1 and 0.32.0."""
FLOAT32_HEAD_FROM = "0.26"
"""The first that computes a language model's logits in float32 where it is told to; those before go on without a
word."""


def check_float32_head(version: str, where: str) -> None:
    """Raises GeneratorError where vLLM of this version does not do what model.head_dtype=float32 asks for. where: such
    as "here" or a server's address."""
    if Version(version) < Version(FLOAT32_HEAD_FROM):
        raise GeneratorError(
            f"float32, but vLLM {version} {where} computes the output layer in the model's dtype",
            where=named("model.head_dtype"),
            remedy=f"vLLM {FLOAT32_HEAD_FROM} or newer, or {named('model.head_dtype', 'null')}")
