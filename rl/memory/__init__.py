"""What a run will need in memory, and the nearest settings that fit."""
