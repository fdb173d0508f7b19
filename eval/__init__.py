"""Evaluation on mathematics benchmarks. Held-out accuracy during training is in rl/held_out.py; this package builds on it."""
