"""Which vLLM works here."""

VLLM_VERSIONS = ("0.25.1", "0.33")
"""The vLLM releases that this version works with: from the first, below the second. Tested: 0.25.1 and 0.32.0."""
