"""Rejection sampling: the completions that rewards choose become data (`python -m rl.reject`)."""
