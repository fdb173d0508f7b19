"""The words after `python -m eval.run` and its neighbours -> checked options. Imports no torch, so that --help answers
at once."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any, NoReturn

import yaml

from rl.configuration.yaml_text import read_value
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
    group.add_argument("--head-dtype", choices=["null", "float32"],
                       help="of the output layer's product; null: the model's (default: as the policy's run sampled)")
    group.add_argument("--quantization", choices=["null", "nf4"],
                       help="of the linear layers; null: none (default: as the policy's run trained over its base)")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the checkpoint")


def add_votes(parser: argparse.ArgumentParser) -> None:
    """How the completions are sampled whose answers are counted as votes."""
    group = parser.add_argument_group("how")
    group.add_argument("-k", type=int, default=16, help="completions of a question to sample (default 16)")
    group.add_argument("--temperature", type=float, default=1.0, help="default 1")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument(
        "--max-tokens", type=int, help="completions are cut at this length (default 2048, or what the context leaves)")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--last-number", action="store_true",
        help="a completion's last number counts where it states no answer otherwise")


def add_sampler(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the sampler")
    group.add_argument("--generator", choices=["auto", "transformers", "vllm"], default="auto",
                       help="default: vllm where there is a GPU and vLLM is installed, else transformers")
    group.add_argument(
        "--max-sequences", type=int, default=256, help="sequences decoded at the same time (default 256)")


def add_prompt(parser: argparse.ArgumentParser, *, several: bool) -> None:
    group = parser.add_argument_group("the prompt")
    more = "; several, joined by commas, are evaluated one after the other" if several else ""
    group.description = (
        "What is left out is that of the run that trained the policy, where there is one: of --adapter RUN, or of "
        "weights in a run's folder.")
    group.add_argument("--prompt", help=f"template in prompts/, or a path to one (default: the benchmark's){more}")
    group.add_argument("--chat-template", choices=["auto", "always", "never"],
                       help="render through the tokenizer's chat template; auto (the default): where it has one")
    group.add_argument(
        "--chat-template-kwargs", metavar="MAPPING", type=mapping,
        help="keyword arguments of the chat template, such as '{enable_thinking: false}'")
    group.add_argument(
        "--date", type=day, help="that a chat template which prints one is given, such as 2026-11-28 (default: the day "
        "on which the evaluation begins)")
    group.add_argument(
        "--stop-strings", metavar="TEXTS", type=texts,
        help="a text that ends a completion, or a list such as '[\"\\nQuestion:\", <|im_end|>]', beside the template's")
    group.add_argument(
        "--stop-token-ids", metavar="IDS", help="ids that end a completion, joined by commas, beside the model's own "
        "and what ends a turn of the chat template")


def positive_list(text: str, option: str) -> tuple[int, ...]:
    """"1,4,16" -> (1, 4, 16). Raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{option}: saw {text!r}; expected whole numbers joined by commas, such as 1,4,16") from None


def mapping(text: str) -> dict[str, Any]:
    """"{enable_thinking: false}", as YAML or JSON."""
    value = _yaml(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"saw {text!r}; expected a mapping, such as '{{enable_thinking: false}}'")
    return value


def texts(text: str) -> tuple[str, ...]:
    """A YAML list of texts; all else is one text, as it was typed."""
    value = _yaml(text)
    return tuple(map(str, value)) if isinstance(value, list) else (text,)


def day(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"saw {text!r}; expected a day, such as 2026-11-28") from None


def _yaml(text: str) -> Any:
    try:
        return read_value(text)
    except yaml.YAMLError:
        return None


def default_out(model: str | None, adapter: str | None) -> Path:
    """evaluations/NAME, by the adapter's run or the model."""
    parts = [
        part
        for part in Path(adapter or model or "model").parts
        if part not in ("adapter", "checkpoints", "runs", "/", "..", ".")]
    return Path("evaluations") / "-".join(parts[-2:])
