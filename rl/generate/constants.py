"""What the sampler and the checks before it has been built (memory estimate, input check) both read."""

BACKENDS = ("transformers",)
"""What `generator.backend` may name; rl/generate/build.py builds each."""

MERGE_BELOW_BYTES = 1 << 30
"""`generator.sync: auto` keeps a merged copy of models up to this size."""
