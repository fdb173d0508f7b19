"""Evaluation on mathematics benchmarks. Held-out accuracy during training is in rl/evaluation/held_out.py; this package
builds on it."""
