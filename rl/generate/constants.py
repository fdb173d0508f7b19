"""Numbers that both the sampler and the memory estimate read."""

MERGE_BELOW_BYTES = 1 << 30
"""`generator.sync: auto` keeps a merged copy of models up to this size."""
