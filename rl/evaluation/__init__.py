"""What a run measures of its policy as it goes: held-out questions and benchmarks."""
