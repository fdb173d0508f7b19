"""configs/qwen2.5_*.yaml, which no machine here can run: everything that is checked before weights are loaded, on a
checkpoint of the model's shapes without weights, and the memory that their headers name."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import torch
import yaml
from random_models import SHAPES, build_tokenizer, model_config
from transformers import AutoModelForCausalLM

from rl.configuration.loading import load
from rl.configuration.resuming import differences
from rl.memory import check_memory, estimate_memory
from rl.paths import project_root
from rl.questions.inputs import read_inputs

CONFIGS = sorted((project_root() / "configs").glob("qwen2.5_*.yaml"))
GPU_GB = {"1.5b": 24, "7b": 80}  # as the headers say
QUESTIONS = [{"id": f"q{i}", "question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]


def hollow_checkpoint(name: str, folder: Path) -> Path:
    """config.json, a tokenizer, and a safetensors file with the model's names and shapes whose data are a hole."""
    config = model_config(SHAPES[name])
    config.save_pretrained(folder)
    build_tokenizer(config.vocab_size).save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    header, position = {}, 0
    for key, parameter in model.named_parameters():
        end = position + 2 * parameter.numel()
        header[key] = {"dtype": "BF16", "shape": list(parameter.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + position)
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_gpu_config_passes_all_checks_and_fits_the_gpu_that_its_header_names(path: Path, tmp_path: Path) -> None:
    size = path.stem.split("_")[1]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    config = load(path, [f"model.path={hollow_checkpoint(f'qwen2.5-{size}', tmp_path)}", f"data.path={questions}",
                         f"evaluation.path={questions}"])
    with pytest.warns(UserWarning, match="held-out questions are training questions too"):
        inputs = read_inputs(config)
    assert len(inputs.prompts) == len(QUESTIONS) and (inputs.prompts[0].question.answer is None) == path.stem.endswith(
        "empo")
    estimate = estimate_memory(
        config, inputs.model_config, config.data.max_prompt_tokens, bytes_per_weight=2, on_gpu=True)
    assert estimate is not None
    header = path.read_text().split("\nseed:")[0]
    assert f"one GPU with {GPU_GB[size]} GB" in header
    assert (
        f"about {estimate.total / 1e9:.0f} GB" in header
        and f"{estimate.trainer_bytes / 1e9:.0f} GB are the trainer's" in header)
    check_memory(config, estimate, GPU_GB[size] * 10**9, "cuda")
    # In what the engine is given a quarter of its sequences has room at full length.
    left = 0.9 * (GPU_GB[size] * 1e9 - estimate.trainer_bytes) - estimate.sampler_copy
    assert left > config.generator.max_sequences / 4 * estimate.cache


@pytest.mark.parametrize("size", ["1.5b", "7b"])
def test_empo_and_grpo_differ_in_nothing_but_the_reward_and_what_it_reads(size: str) -> None:
    empo, grpo = (load(project_root() / "configs" / f"qwen2.5_{size}_{method}.yaml", []) for method in ("empo", "grpo"))
    assert {key for key, _, _ in differences(empo, grpo)} == {
        "run_dir", "rewards.0.use", "data.columns.answer", "selection.low", "selection.high"}


@pytest.mark.parametrize(
    "path", sorted((project_root() / "configs" / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
)
def test_accelerate_files_name_as_many_processes_as_their_name(path: Path) -> None:
    numbers = {"one": 1, "two": 2, "four": 4, "eight": 8}
    found = yaml.safe_load(path.read_text())
    assert found["num_processes"] == numbers[path.stem.split("_")[0]]
    assert found["distributed_type"] == ("NO" if found["num_processes"] == 1 else "MULTI_GPU")


def test_the_papers_questions_become_a_file_that_the_configs_read(tmp_path: Path) -> None:
    request = " Let's think step by step and output the final answer within \\boxed{}."
    rows = [
        {
            "prompt": [{"role": "user", "content": "What is $1+1$?" + request}],
            "reward_model": {"ground_truth": ["2"], "style": "rule"}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "questions.parquet")
    script = project_root() / "docs" / "numinamath_20k.py"
    made = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "questions.parquet")], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == {"id": "nm20k/0", "question": "What is $1+1$?", "answer": "2"}
    rows[0]["prompt"][0]["content"] = "What is $1+1$?"  # type: ignore[index]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "questions.parquet")
    refused = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "questions.parquet")], capture_output=True, text=True)
    assert refused.returncode != 0 and "row 0: saw a prompt that ends in 'What is $1+1$?'" in refused.stderr
