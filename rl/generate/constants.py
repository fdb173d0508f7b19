"""What the sampler and the checks before it has been built (memory estimate) both read."""

MERGE_BELOW_BYTES = 1 << 30
"""`generator.sync: auto` of the embedded sampler keeps a merged copy of models up to this size."""
