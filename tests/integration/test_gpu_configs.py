"""The starter configurations for GPUs, which no machine here can run: everything that is checked before weights are
loaded, on a checkpoint of the model's shapes without weights, and the memory that the planner counts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest
import yaml
from random_models import build_tokenizer

from eval.run import check_words
from rl.config import RunConfig
from rl.configuration.loading import load
from rl.configuration.resuming import differences
from rl.memory.estimate import MemoryEstimate, check_memory, estimate_memory
from rl.paths import project_root
from rl.planning.shapes import KNOWN, known_shape, planned_config, shape_config
from rl.questions.inputs import read_inputs
from rl.stages.config import PipelineConfig
from rl.stages.run import check_pipeline

CONFIGS = project_root() / "configs"
PAPERS = sorted(CONFIGS.glob("qwen2.5_*.yaml"))
STARTERS = [*PAPERS, *(CONFIGS / f"{name}.yaml" for name in ("empo_math", "grpo_math", "label_free", "r1_rewards"))]
GPU_GB = {KNOWN["qwen2.5-1.5b"]: 24, KNOWN["qwen2.5-7b"]: 80}  # as the headers say
QUESTIONS = [{"id": f"q{i}", "question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]


def hollow_checkpoint(name: str, folder: Path) -> Path:
    """config.json and a tokenizer: a folder without weights."""
    config = shape_config(KNOWN[name], context=4096)
    config.save_pretrained(folder)
    build_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def planned(config: RunConfig) -> MemoryEstimate:
    return estimate_memory(config, planned_config(config.model), config.data.max_prompt_tokens, bytes_per_weight=2,
                           on_gpu=True)


def check_room(config: RunConfig, estimate: MemoryEstimate, gpu_gb: int) -> None:
    """It fits, and the engine has room for a quarter of its sequences at full length."""
    check_memory(config, estimate, gpu_gb * 10**9, "cuda")
    assert config.generator.backend == "vllm"
    assert estimate.room(gpu_gb * 10**9) > config.generator.max_sequences / 4


@pytest.mark.parametrize("path", STARTERS, ids=lambda path: path.stem)
def test_a_starter_configuration_fits_the_gpu_that_its_header_names_and_samples_with_vllm(path: Path) -> None:
    config, header = load(path, []), path.read_text().split("\nseed:")[0]
    estimate, shape = planned(config), known_shape(config.model.path)
    assert shape is not None
    gpu_gb = GPU_GB[shape]
    assert f"one GPU with {gpu_gb} GB" in header and "vllm" in header.lower()
    assert f"--dry-run --gpu-memory {gpu_gb}" in header
    assert f"about {estimate.total / 1e9:.0f} GB" in header
    assert f"{estimate.trainer_bytes / 1e9:.0f} GB are the trainer's" in header
    check_room(config, estimate, gpu_gb)
    if gpu_gb == 24 and path not in PAPERS:
        larger = load(path, ["model.path=Qwen/Qwen2.5-7B"])
        assert "model=Qwen/Qwen2.5-7B one GPU with 80 GB" in header
        check_room(larger, planned(larger), 80)


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_papers_configuration_passes_all_checks_on_a_folder_without_weights(path: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    folder = hollow_checkpoint(f"qwen2.5-{path.stem.split('_')[1]}", tmp_path)
    config = load(path, [f"model.path={folder}", f"data.path={questions}", f"evaluation.path={questions}"])
    with pytest.warns(UserWarning, match="held-out questions are training questions too"):
        inputs = read_inputs(config)
    assert len(inputs.prompts) == len(QUESTIONS) and (inputs.prompts[0].question.answer is None) == path.stem.endswith(
        "empo")
    assert planned(config) == planned(load(path, []))


@pytest.mark.parametrize("name", ["r1_zero", "r1_recipe", "empo_qwen", "empo_llama", "sft_rl_alternate"])
def test_a_recipes_training_fits_the_gpu_that_its_header_names(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    found = re.search(r"one GPU with (\d+) GB", path.read_text())
    assert found is not None
    _, prepared = check_pipeline(load(path, [], PipelineConfig), check_words)
    for config in (stage.config for stage in prepared if isinstance(stage.config, RunConfig)):
        # a stage may begin with the model of an earlier one
        on_hub = config.model.path if known_shape(config.model.path) else "Qwen/Qwen2.5-1.5B"
        of_model = config.model_copy(update={"model": config.model.model_copy(update={"path": on_hub})})
        check_room(of_model, planned(of_model), int(found[1]))


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
