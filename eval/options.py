"""The words after `python -m eval.run` and `eval.answer` -> checked options. Imports no torch, so that --help answers
at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from rl.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Errors like those of `rl/train.py`: one line that begins with "error:", exit code 2."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--model", help="folder of a Hugging Face checkpoint, or a hub id; may be left out with --adapter")
    group.add_argument("--adapter", help="folder of a PEFT adapter, or a run's folder or name (its best checkpoint)")
    group.add_argument("--revision", help="hub revision of the model")
    group.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto",
                       help="default: bfloat16 on a GPU, float32 on the CPU")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the checkpoint")


def add_sampler(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the sampler")
    group.add_argument("--generator", choices=["auto", "transformers", "vllm"], default="auto",
                       help="default: vllm where there is a GPU and vLLM is installed, else transformers")
    group.add_argument(
        "--max-sequences", type=int, default=256, help="sequences decoded at the same time (default 256)")


def add_prompt(parser: argparse.ArgumentParser, *, several: bool) -> None:
    group = parser.add_argument_group("the prompt")
    more = "; several, joined by commas, are evaluated one after the other" if several else ""
    group.add_argument("--prompt", help=f"template in prompts/, or a path to one (default: the benchmark's){more}")
    group.add_argument("--chat-template", choices=["auto", "always", "never"], default="auto",
                       help="render through the tokenizer's chat template; auto: where it has one")


def positive_list(text: str, option: str) -> tuple[int, ...]:
    """"1,4,16" -> (1, 4, 16). Raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option}: saw {text!r}; expected whole numbers joined by commas, such as 1,4,16") from None


def default_out(model: str | None, adapter: str | None) -> Path:
    """evaluations/NAME, by the adapter's run or the model."""
    parts = [
        part
        for part in Path(adapter or model or "model").parts
        if part not in ("adapter", "checkpoints", "runs", "/", "..", ".")]
    return Path("evaluations") / "-".join(parts[-2:])
