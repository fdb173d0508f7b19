"""The supervised warm-up: solutions, TRL's trainer, plain distillation (`python -m rl.warmup`)."""
