"""Shapes of models without their weights, and a checkpoint that contradicts its own config.json."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig

from rl.config import ModelSection
from rl.errors import ConfigError
from rl.paths import resolve_path
from rl.planning.shapes import (
    KNOWN,
    built_shapes,
    check_shapes,
    known_shape,
    planned_config,
    shape_config,
    stored_shapes,
    weight_shapes,
)

BASE = resolve_path("models/tiny-arith")


@pytest.mark.parametrize(
    ("name", "parameters"),  # as the checkpoints on the hub have them
    [
        ("smollm2-135m", 134_515_008), ("qwen2.5-0.5b", 494_032_768), ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-7b", 7_615_616_512), ("qwen3-4b", 4_022_468_096), ("llama-3.2-3b", 3_212_749_824),
        ("llama-3.1-8b", 8_030_261_248)])
def test_well_known_models_have_as_many_parameters_as_their_checkpoints(name: str, parameters: int) -> None:
    assert sum(map(math.prod, built_shapes(shape_config(KNOWN[name])).values())) == parameters


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("qwen2.5-1.5b", "qwen2.5-1.5b"), ("Qwen/Qwen2.5-Math-1.5B-Instruct", "qwen2.5-1.5b"),
        ("meta-llama/Llama-3.2-3B-Instruct", "llama-3.2-3b"), ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("somewhere/models/smollm2-135m-instruct/", "smollm2-135m")])
def test_a_hub_id_and_a_folder_are_known_by_the_models_name(path: str, name: str) -> None:
    assert known_shape(path) == KNOWN[name]


def test_an_unknown_model_is_refused_with_the_names_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"model\.path: 'org/other-9b' is neither .* one of: .*qwen2\.5-1\.5b"):
        planned_config(ModelSection(path="org/other-9b"))


def test_a_config_alone_gives_the_shapes_that_the_weights_have(tmp_path: Path) -> None:
    shutil.copy(BASE / "config.json", tmp_path)
    model = ModelSection(path=str(tmp_path))
    assert stored_shapes(tmp_path) is None
    assert weight_shapes(model, planned_config(model)) == stored_shapes(BASE)


def test_weights_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    shutil.copy(BASE / "model.safetensors", tmp_path)
    settings = json.loads((BASE / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "vocab_size": 120}))
    model, changed = ModelSection(path=str(tmp_path)), AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"embed_tokens\.weight has the shape \(99, 128\), and .* \(120, 128\)"):
        check_shapes(model, changed)
    check_shapes(ModelSection(path=str(BASE)), AutoConfig.from_pretrained(BASE))
    changed.quantization_config = {"quant_method": "gptq"}  # packed weights have other shapes
    check_shapes(model, changed)


def test_weights_that_a_folder_holds_a_second_time_count_once(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "twice")
    shutil.copy(BASE / "model.safetensors", tmp_path / "twice" / "consolidated.safetensors")
    assert stored_shapes(tmp_path / "twice") == stored_shapes(BASE)


@pytest.mark.parametrize("path", ["/models", "./nothing"])
def test_a_path_that_is_no_hub_id_is_one_error(path: str) -> None:
    with pytest.raises(ConfigError):
        planned_config(ModelSection(path=path))
