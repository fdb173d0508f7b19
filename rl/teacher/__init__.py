"""On-policy distillation: teachers, and what they add to advantages."""
