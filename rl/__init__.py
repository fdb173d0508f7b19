"""otherhalf's core: questions in, a better LoRA policy out. Importing this package loads no torch."""
