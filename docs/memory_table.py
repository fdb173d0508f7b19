"""Models x cards: `python docs/memory_table.py` prints the table of docs/memory.md, which the planner of `--dry-run
--gpu-memory GB` makes from configs/grpo_math.yaml."""

from __future__ import annotations

from rl.configuration.loading import load
from rl.memory.nearest_settings import estimator, nearest_fitting
from rl.paths import project_root
from rl.planning.shapes import planned_config

MODELS = (
    "smollm2-135m", "qwen2.5-0.5b", "qwen3-0.6b", "llama-3.2-1b", "qwen2.5-1.5b", "qwen3-1.7b", "qwen2.5-3b",
    "llama-3.2-3b", "qwen3-4b", "qwen2.5-7b", "llama-3.1-8b", "qwen3-8b", "qwen2.5-14b", "qwen2.5-32b")
CARDS_GB = (16, 24, 48, 80)
BYTES_PER_WEIGHT = 2  # bfloat16


def cell(model: str, card_gb: int) -> str:
    """What to change in the configuration, how much it then needs at least, and how many sequences the engine holds."""
    config = load(project_root() / "configs" / "grpo_math.yaml", [f"model.path={model}"])
    estimate = estimator(planned_config(config.model), config, config.data.max_prompt_tokens,
                         bytes_per_weight=BYTES_PER_WEIGHT, on_gpu=True)
    available = card_gb * 10**9
    fitting = nearest_fitting(config, estimate, available)
    if not fitting:
        return "no"
    needed, changed = fitting[0].estimate, fitting[0].settings
    words = "<br>".join(f"{key}={str(value).lower()}" for key, value in changed.items())
    sequences = min(needed.room(available), config.generator.max_sequences)
    return f"{words + '<br>' if words else ''}{needed.total / 1e9:.0f} GB, {sequences} sequences"


def table() -> str:
    head = ["| model | " + " | ".join(f"{card} GB" for card in CARDS_GB) + " |", "|---" * (1 + len(CARDS_GB)) + "|"]
    return "\n".join([*head, *(f"| {model} | " + " | ".join(cell(model, card) for card in CARDS_GB) + " |"
                               for model in MODELS)])


if __name__ == "__main__":
    print(table())
