"""Sampling on running `vllm serve` processes."""
