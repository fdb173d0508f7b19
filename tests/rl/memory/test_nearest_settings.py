"""Whether a run fits, and the nearest settings that do: cheaper changes come first, and what is named really fits."""

from __future__ import annotations

import functools
import importlib.util

import pytest

from rl.config import RunConfig
from rl.configuration.loading import load
from rl.errors import ConfigError
from rl.memory.estimate import check_memory
from rl.memory.nearest_settings import Estimator, enough, estimator, nearest_fitting, render_fit
from rl.paths import project_root
from rl.planning.shapes import planned_config

GB = 10**9


@functools.cache
def grpo_math(*overrides: str) -> tuple[RunConfig, Estimator]:
    config = load(project_root() / "configs" / "grpo_math.yaml", list(overrides))
    return config, estimator(
        planned_config(config.model), config, config.data.max_prompt_tokens, bytes_per_weight=2, on_gpu=True)


def test_a_run_that_fits_changes_nothing_and_says_how_much_room_the_engine_has() -> None:
    config, estimate = grpo_math()
    assert [fit.settings for fit in nearest_fitting(config, estimate, 24 * GB)] == [{}]
    assert "fits into the 24.0 GB of a card; the engine holds 222 of 256 sequences" in render_fit(
        config, estimate, 24 * GB, "a card")


def test_the_nearest_settings_fit_and_half_of_each_change_does_not() -> None:
    config, estimate = grpo_math("model.gradient_checkpointing=off")
    with_recomputing, without = nearest_fitting(config, estimate, 20 * GB)
    assert with_recomputing.settings == {"model.gradient_checkpointing": "full"}
    assert without.settings == {"optim.micro_batch_tokens": 2048}
    for fit in (with_recomputing, without):
        assert fit.estimate.fits(20 * GB)
    larger, _ = grpo_math("model.gradient_checkpointing=off", "optim.micro_batch_tokens=4096")
    assert not estimate(larger).fits(20 * GB)
    text = render_fit(config, estimate, 20 * GB, "a card")
    assert text.startswith("does not fit into the 20.0 GB of a card\nnearest settings that fit:\n  model.gradient_")


def test_the_embedded_samplers_cache_and_the_rank_are_halved_and_the_updates_scale_stays() -> None:
    config, estimate = grpo_math("generator=transformers", "lora.rank=1024", "lora.alpha=512")
    (fit, *_) = nearest_fitting(config, estimate, 14 * GB)
    assert fit.settings["generator.max_sequences"] in (8, 16, 32, 64, 128)
    rank, alpha = fit.settings["lora.rank"], fit.settings["lora.alpha"]
    assert isinstance(alpha, float) and rank == 2 * alpha


def test_a_cache_of_a_given_size_is_halved() -> None:
    config, estimate = grpo_math("generator.cache_gb=20")
    (fit, *_) = nearest_fitting(config, estimate, 24 * GB)
    assert fit.settings == {"generator.cache_gb": 10.0} and fit.words == "generator.cache_gb=10.0"


def test_where_nothing_is_enough_it_says_what_would_be() -> None:
    config, estimate = grpo_math("model.path=qwen2.5-14b")
    assert nearest_fitting(config, estimate, 24 * GB) == []
    assert "a larger card, a smaller model, or servers on another device" in render_fit(
        config, estimate, 24 * GB, "a card")


def test_a_base_in_4_bits_is_named_where_nothing_cheaper_is_enough_and_only_where_it_may_be() -> None:
    config, estimate = grpo_math("model.path=qwen2.5-7b")
    (fit,) = nearest_fitting(config, estimate, 24 * GB)
    assert fit.settings == {"optim.micro_batch_tokens": 8192, "model.quantization": "nf4"}
    assert fit.estimate.base < 0.45 * estimate(config).base and fit.estimate.fits(24 * GB)
    for other in ("model.dtype=float32", "generator.sync=merge", "generator.sleep=discard", "model.quantization=nf4"):
        config, estimate = grpo_math("model.path=qwen2.5-7b", other)
        assert all("model.quantization" not in fit.settings for fit in nearest_fitting(config, estimate, 24 * GB))
    shape = planned_config(config.model)
    on_cpu = estimator(shape, config, 512, bytes_per_weight=2, on_gpu=False)
    assert all("model.quantization" not in fit.settings for fit in nearest_fitting(config, on_cpu, 24 * GB))


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("model.gradient_checkpointing=off",),
         r"optim.micro_batch_tokens=8192 model.gradient_checkpointing=full, or optim.micro_batch_tokens=2048 gen"),
        (("model.path=qwen2.5-7b",), r"no smaller micro-batch, cache or rank is enough: a larger card, a smaller"),
    ],
    ids=["enough", "nothing"],
)
def test_the_refusal_names_what_is_enough_or_says_that_nothing_is(words: tuple[str, ...], remedy: str) -> None:
    """The largest part alone, made smaller, would not do."""
    config, estimate = grpo_math(*words)
    available = 12 * GB
    with pytest.raises(ConfigError, match=f"Remedy: {remedy}"):
        check_memory(config, estimate(config), available, "a card", enough=lambda: enough(config, estimate, available))


def test_an_engine_that_fits_with_room_for_hardly_a_sequence_is_shown_what_gives_it_room() -> None:
    config, estimate = grpo_math("model.path=llama-3.2-3b")
    text = render_fit(config, estimate, 24 * GB, "a card")
    assert text.startswith("fits into the 24.0 GB of a card; the engine holds 11 of 256") and "nearest settings" in text
    assert all(fit.estimate.room(24 * GB) >= 16 for fit in nearest_fitting(config, estimate, 24 * GB))


@pytest.mark.slow
def test_the_table_of_models_and_cards_is_what_the_planner_gives() -> None:
    docs = project_root() / "docs"
    found = importlib.util.spec_from_file_location("memory_table", docs / "memory_table.py")
    assert found is not None and found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    assert script.table() in (docs / "memory.md").read_text()
