"""The memory estimate against counts by hand, and what the refusal says."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, Gemma3Config

from rl.config import ModelSection, RunConfig
from rl.errors import ConfigError
from rl.generate.generator_plan import MERGE_BELOW_BYTES, engine_cache_bytes
from rl.memory.estimate import (
    LIBRARIES_BYTES,
    MemoryEstimate,
    available_memory,
    check_memory,
    estimate_memory,
)
from rl.paths import resolve_path
from rl.planning.shapes import checkpoint_folder, stored_shapes
from rl.policy.float32_head import PIECE_BYTES
from tests.reference.tiny_run import tiny_config, tiny_policy

BASE = resolve_path("models/tiny-arith")
# Embedding (tied to the output), 4 layers of attention, gated product and two norms, the last norm.
NUM_PARAMETERS = 99 * 128 + 4 * (4 * 128 * 128 + 3 * 128 * 352 + 2 * 128) + 128


def estimate(
    config: RunConfig, longest_prompt: int = 10, bytes_per_weight: int = 4, *, on_gpu: bool = False
) -> MemoryEstimate:
    return estimate_memory(
        config, AutoConfig.from_pretrained(BASE), longest_prompt, bytes_per_weight=bytes_per_weight, on_gpu=on_gpu)


@pytest.mark.parametrize("rank", [4, 16])
def test_weights_are_counted_as_by_hand_and_as_in_the_loaded_policy(rank: int) -> None:
    config = tiny_config(f"lora.rank={rank}")
    found = estimate(config)
    per_layer = 4 * (128 + 128) + 2 * (128 + 352) + (352 + 128)
    assert found.num_parameters == NUM_PARAMETERS == 816_640
    assert found.num_trained == rank * 4 * per_layer
    policy = tiny_policy(config)
    trained = sum(p.numel() for p in policy.trainable_parameters().values())
    assert found.num_trained == trained
    assert found.base == policy.base_bytes == found.sampler_copy == 4 * NUM_PARAMETERS
    assert found.trained == 16 * trained
    assert found.kept_bytes == found.base + 12 * trained  # weights and AdamW's two moments in float32


def test_named_targets_and_full_parameters_are_counted_as_loaded() -> None:
    for overrides in (["lora.targets=[q_proj,down_proj]"], ["lora.enabled=false"]):
        config = tiny_config(*overrides)
        trained = sum(p.numel() for p in tiny_policy(config).trainable_parameters().values())
        assert estimate(config).num_trained == trained


def test_full_parameters_have_no_frozen_base_but_a_reference_where_there_is_a_kl_penalty() -> None:
    full = estimate(tiny_config("lora.enabled=false"), bytes_per_weight=2)
    with_reference = estimate(tiny_config("lora.enabled=false", "loss.kl_weight=0.1"), bytes_per_weight=2)
    assert full.base == 0 and full.trained == 16 * NUM_PARAMETERS and full.sampler_copy == 2 * NUM_PARAMETERS
    assert with_reference.base == 4 * NUM_PARAMETERS


KEYS_AND_VALUES = 2 * 4 * 32 * 4  # of a token in a layer: both, heads, width, bytes
ROW_LOGITS = 4 * 50 * 99 * 4  # of 50 rows' next tokens, and what is drawn from


def test_the_cache_holds_a_prompt_for_each_group_and_on_a_gpu_half_as_much_of_the_rows_while_it_grows() -> None:
    config = tiny_config("generator.max_sequences=50", "sampling.max_completion_tokens=30")
    prompts, own = 13 * 10, 50 * 30  # 50 rows in groups of 4, prompts of 10 tokens
    # A layer grows beside its old copy, and is read in float32.
    assert estimate(config).cache == (prompts * 4 + own * (4 + 1)) * KEYS_AND_VALUES + ROW_LOGITS
    on_gpu = (prompts * 4 + own * (4 * 1.5 + 1)) * KEYS_AND_VALUES + ROW_LOGITS
    assert estimate(config, on_gpu=True).cache == on_gpu
    halves = (prompts * (4 + 2) + own * (4 + 1 + 2)) * KEYS_AND_VALUES / 2 + ROW_LOGITS
    assert estimate(config, bytes_per_weight=2).cache == halves


def test_copies_of_prompts_count_where_they_cannot_be_shared() -> None:
    """Another attention, a sliding window, few held-out samples of a question, benchmarks."""

    def parts(*overrides: str, window: int | None = None, benchmark_tokens: int = 0) -> float:
        model_config = AutoConfig.from_pretrained(BASE)
        model_config.sliding_window = window
        changed = tiny_config("generator.max_sequences=50", "sampling.max_completion_tokens=30", *overrides)
        found = estimate_memory(
            changed, model_config, 10, bytes_per_weight=4, on_gpu=False, benchmark_tokens=benchmark_tokens)
        return (found.cache - ROW_LOGITS) / KEYS_AND_VALUES

    assert parts() == 13 * 10 * 4 + 50 * 30 * 5
    assert parts("model.attention=sdpa") == parts(window=16) == 50 * 40 * 6  # and read in float32
    # Two samples between the first evaluation and the last.
    assert parts("evaluation.path=held_out.jsonl") == 25 * 10 * 4 + 50 * 30 * 5
    assert parts("evaluation.path=held_out.jsonl", "evaluation.samples_during=8") == parts()
    assert parts("votes.samples=2") == 25 * 10 * 4 + 50 * 30 * 5
    assert parts("votes.samples=1") == parts("evaluation.path=held_out.jsonl", "evaluation.samples_during=1") == parts(
        "model.attention=sdpa")
    assert parts(benchmark_tokens=100) == 50 * 100 * 6 and parts(benchmark_tokens=30) == parts()


def test_logits_are_those_of_one_chunk() -> None:
    assert estimate(tiny_config("optim.micro_batch_tokens=1000")).logits == 4 * 1000 * 99 * 4
    assert estimate(tiny_config("optim.micro_batch_tokens=100000000")).logits == 4 * 256 * 2**20


def test_a_float32_output_layer_counts_where_weights_are_cast() -> None:
    def more(*overrides: str, bytes_per_weight: int = 2, on_gpu: bool = False) -> tuple[int, int]:
        plain, wide = (
            estimate(tiny_config(*overrides, *head), bytes_per_weight=bytes_per_weight, on_gpu=on_gpu)
            for head in ((), ("model.head_dtype=float32",)))
        return wide.logits - plain.logits, wide.sampler_copy - plain.sampler_copy

    assert more() == (PIECE_BYTES, 0)
    assert more("generator=vllm") == (PIECE_BYTES, 4 * 99 * 128)  # vLLM on a CPU casts the whole weight
    assert more("generator=vllm", on_gpu=True) == more(bytes_per_weight=4) == (0, 0)


def test_activations_grow_with_the_micro_batch_but_never_fall_below_one_row() -> None:
    sizes = [estimate(tiny_config(f"optim.micro_batch_tokens={tokens}")).activations for tokens in (1, 34, 68, 136)]
    # Not quite twice as much for twice the tokens: more completions copy their prompt's keys and values.
    assert sizes[0] == sizes[1] < sizes[2] / 1.99 < sizes[3] / 3.98 and sizes[3] < 4.05 * sizes[1]


def test_gradient_checkpointing_needs_less_for_activations() -> None:
    plain, checkpointed = estimate(tiny_config()), estimate(tiny_config("model.gradient_checkpointing=full"))
    assert checkpointed.activations < plain.activations / 2.5  # of four layers
    assert checkpointed.total - checkpointed.activations == plain.total - plain.activations


@pytest.mark.parametrize(("sync", "copies"), [("merge", 1), ("shared", 0), ("auto", 1)])
def test_only_merging_counts_a_copy(sync: str, copies: int) -> None:
    assert 4 * NUM_PARAMETERS <= MERGE_BELOW_BYTES
    assert estimate(tiny_config(f"generator.sync={sync}")).sampler_copy == copies * 4 * NUM_PARAMETERS


def test_the_total_is_the_sum_of_the_lines() -> None:
    found = estimate(tiny_config())
    parts = [
        found.base, found.sampler_copy, found.trained, found.activations, found.logits, found.cache, LIBRARIES_BYTES]
    assert found.total == sum(parts)
    assert [line.split()[-2:] for line in found.lines()] == [
        [f"{size / 1e9:.2f}", "GB"] for size in (*parts, found.total)]


TOKEN_BYTES = 4 * 2 * 4 * 32 * 4  # layers, keys and values, heads, width, bytes


@pytest.mark.parametrize("on_gpu", [False, True])
def test_servers_need_nothing_on_the_trainers_device(on_gpu: bool) -> None:
    found = estimate(
        tiny_config("generator={backend: vllm_server, urls: [http://localhost:1], sync: merge}"), on_gpu=on_gpu)
    assert found.sampler_copy == found.cache == 0
    assert found.total == found.trainer_bytes == estimate(tiny_config()).trainer_bytes
    assert not [line for line in found.lines() if "cache" in line or "copy" in line or "vLLM" in line]


def test_the_engine_on_a_cpu_holds_the_weights_and_the_cache_that_it_is_told_to_allocate() -> None:
    config = tiny_config("generator=vllm", "generator.max_sequences=50", "sampling.max_completion_tokens=130")
    found = estimate(config, longest_prompt=10)
    assert found.sampler_copy == 4 * NUM_PARAMETERS
    # 140 tokens are two blocks of 128, and one more.
    assert (
        found.cache
        == 50 * 3 * 128 * TOKEN_BYTES
        == engine_cache_bytes(config.generator, 140, TOKEN_BYTES, on_gpu=False))
    names = [line[:42].rstrip() for line in found.lines()]
    assert names[1] == "vLLM's weights" and names[5] == "vLLM's key/value cache"


@pytest.mark.parametrize("sync", ["auto", "adapter", "merge"])
def test_the_engine_on_a_gpu_needs_its_weights_and_the_cache_of_one_sequence_however_many_it_may_decode(
    sync: str,
) -> None:
    config = tiny_config(
        "generator=vllm", f"generator.sync={sync}", "generator.max_sequences=5000", "sampling.max_completion_tokens=130"
    )
    found = estimate(config, bytes_per_weight=2, on_gpu=True)
    assert (found.sampler_copy, found.cache) == (2 * NUM_PARAMETERS, 3 * 128 * TOKEN_BYTES / 2)
    assert found.lines()[5].startswith("vLLM's key/value cache, at least  ")
    assert engine_cache_bytes(config.generator, 140, TOKEN_BYTES, on_gpu=True) is None


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_cache_of_a_given_size_is_counted_as_such(on_gpu: bool) -> None:
    found = estimate(tiny_config("generator=vllm", "generator.cache_gb=1.5"), on_gpu=on_gpu)
    assert found.cache == 1_500_000_000
    assert found.lines()[5].startswith("vLLM's key/value cache   ")


def test_a_sleeping_engine_and_the_activations_take_turns_on_a_gpu() -> None:
    overrides = ("generator=vllm", "generator.cache_gb=1.5", "generator.sleep=offload")
    awake, sleeping = (estimate(tiny_config(*overrides[:count]), on_gpu=True) for count in (2, 3))
    assert awake.in_turns == 0
    assert sleeping.in_turns == awake.activations + awake.logits < awake.sampler_copy + awake.cache
    assert sleeping.total == awake.total - sleeping.in_turns and sleeping.trainer_bytes == awake.trainer_bytes
    assert sleeping.lines()[-2].split()[-2:] == [f"-{sleeping.in_turns / 1e9:.2f}", "GB"]
    assert estimate(tiny_config(*overrides)).in_turns == 0  # on a CPU there is no such mode


def test_headers_are_read_together_and_without_any_the_shapes_are_those_that_are_built(tmp_path: Path) -> None:
    shapes = stored_shapes(BASE)
    assert shapes is not None and shapes["model.embed_tokens.weight"] == (99, 128) and len(shapes) == 38
    shutil.copy(BASE / "model.safetensors", tmp_path / "model-00001-of-00002.safetensors")
    shutil.copy(BASE / "model.safetensors", tmp_path / "model-00002-of-00002.safetensors")
    assert stored_shapes(tmp_path) == shapes
    assert stored_shapes(Path("org/some-model")) is None
    config, plain = tiny_config(), AutoConfig.from_pretrained(BASE)
    elsewhere = estimate_memory(tiny_config("model=org/some-model"), plain, 10, bytes_per_weight=4, on_gpu=False)
    assert elsewhere == estimate(config)


EMPTY = MemoryEstimate(0, 0, 0, 0, 0, 0, 0, 0)


def with_part(estimate: MemoryEstimate, part: str, size: int) -> MemoryEstimate:
    change: dict[str, Any] = {part: size}
    return dataclasses.replace(estimate, **change)


@pytest.mark.parametrize(
    ("part", "remedy"),
    [
        ("activations", r"optim\.micro_batch_tokens or model\.gradient_checkpointing=full"),
        ("cache", r"generator\.max_sequences"), ("sampler_copy", r"generator\.sync=shared"),
        ("base", r"model\.dtype=bfloat16"), ("trained", r"lora\.rank"), ("logits", r"optim\.micro_batch_tokens"),
    ],
)
def test_the_refusal_names_the_largest_part_and_what_makes_it_smaller(part: str, remedy: str) -> None:
    needed = with_part(EMPTY, part, 40 * 10**9)
    sizes = rf"needs about 40\.6 GB and here has 8\.0 GB free; the largest part is {part} with 40\.0 GB"
    with pytest.raises(ConfigError, match=rf"{sizes}\. Remedy: .*{remedy}"):
        check_memory(tiny_config(), needed, 8 * 10**9, "here")


@pytest.mark.parametrize(
    ("part", "overrides", "on_gpu", "remedy"),
    [
        ("cache", [], False, "generator.max_sequences=1"), ("cache", [], True, "sampling.max_completion_tokens=1"),
        ("cache", ["generator.cache_gb=9"], True, "generator.cache_gb=1"),
        ("sampler_copy", [], True, "generator.sleep=offload"), ("sampler_copy", [], False, "model.dtype=bfloat16"),
        ("sampler_copy", ["generator.sleep=offload"], True, "model.dtype=bfloat16"),
    ],
)
def test_the_remedies_for_an_engine_are_settings_that_it_accepts(
    part: str, overrides: list[str], on_gpu: bool, remedy: str
) -> None:
    config = tiny_config("generator=vllm", *overrides)
    needed = with_part(estimate(config, on_gpu=on_gpu), part, 40 * 10**9)
    with pytest.raises(
        ConfigError, match=rf"the largest part is {part} .*Remedy: (a lower )?{remedy.split('=')[0]}"
    ) as refused:
        check_memory(config, needed, 8 * 10**9, "here")
    assert "shared" not in str(refused.value)
    tiny_config("generator=vllm", *overrides, remedy)  # is a valid configuration


def test_what_fits_exactly_is_not_refused_and_one_byte_less_is() -> None:
    check_memory(tiny_config(), EMPTY, EMPTY.total, "here")
    with pytest.raises(ConfigError):
        check_memory(tiny_config(), EMPTY, EMPTY.total - 1, "here")


def test_this_machine_has_some_memory() -> None:
    cpu = torch.device("cpu")
    assert 10**6 < available_memory(cpu, 2) < available_memory(cpu) < 10**14


def test_a_git_lfs_pointer_is_named_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3270592\n")
    with pytest.raises(ConfigError, match="git lfs pull"):
        stored_shapes(tmp_path)


def test_a_hub_id_is_found_in_the_cache_and_unknown_where_it_was_not_downloaded(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc")
    assert checkpoint_folder(ModelSection(path="org/name"), tmp_path) == snapshot
    assert checkpoint_folder(ModelSection(path="org/other"), tmp_path) is None


def test_a_multimodal_models_language_model_counts() -> None:
    """Its sizes are in a configuration of their own, which the outer one does not repeat."""
    plain = AutoConfig.from_pretrained(str(resolve_path("models/tiny-arith")))
    outer = Gemma3Config(
        text_config={
            "hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 99, "intermediate_size": 352,
            "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32, "layer_types": ["full_attention"] * 4})
    assert not hasattr(outer, "hidden_size")
    config = tiny_config()
    assert estimate_memory(config, outer, 10, bytes_per_weight=4, on_gpu=False) == estimate_memory(
        config, plain, 10, bytes_per_weight=4, on_gpu=False)
