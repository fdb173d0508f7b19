"""What the sampler and the checks before it has been built (memory estimate) both read."""

MERGE_BELOW_BYTES = 1 << 30
"""`generator.sync: auto` of the embedded sampler keeps a merged copy of models up to this size."""

VLLM_VERSIONS = ("0.25.1", "0.33")
"""The vLLM releases that this version works with: from the first, below the second. Tested: 0.25.1 and 0.32.0."""
