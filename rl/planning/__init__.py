"""What a run will need in memory: shapes of models, what autograd keeps, and the nearest settings that fit."""
