"""Warnings of settings under which policies hardly learn, with the usual range. They stop nothing: an experiment may
want them. Imports no torch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from rl.config import AdamSection, LoraSection, RunConfig
from rl.questions.prompting import PromptTokenizer
from rl.records import Prompt

LOWEST_LORA_LR = 5e-6  # full-parameter training has 5e-7 to 3e-6; adapters need about ten times as much
LOWEST_GROUP_SIZE = 4
LOWEST_REASONING_TOKENS = 256
TOO_LONG_SHARE = 0.1  # of gold answers that alone are longer than a completion may be

_ASKS_FOR_REASONING = re.compile(r"step by step|\\boxed|<think>(?!\s*</think>)", re.IGNORECASE)


def warn_of_unusual(
    config: RunConfig, prompts: Sequence[Prompt], tokenizer: PromptTokenizer, context: int | None
) -> None:
    """Of a training run; prompts: of its questions. context: tokens of the model's longest sequence, None where it does
    not say."""
    warn_of_learning_rate(config.optim, config.lora)
    size = config.sampling.group_size
    if config.rewards and size < LOWEST_GROUP_SIZE:
        _warn(f"sampling.group_size={size}: a completion is compared with {size - 1} other(s) of its question, and "
              "rewards that need no answer give two completions the same", "8 to 16 completions")
    room = None if context is None else context - max(len(prompt.token_ids) for prompt in prompts)
    _warn_of_length(config.sampling.max_completion_tokens, prompts, tokenizer, room)


def warn_of_learning_rate(optim: AdamSection, lora: LoraSection) -> None:
    if lora.enabled and optim.lr < LOWEST_LORA_LR:
        _warn(f"optim.lr={optim.lr:g} is a learning rate of full-parameter training, and lora.enabled=true trains an "
              "adapter, which hardly moves at it", "optim.lr=1e-5 to 5e-4 with an adapter")


def _warn_of_length(limit: int, prompts: Sequence[Prompt], tokenizer: PromptTokenizer, room: int | None) -> None:
    """room: tokens behind the longest prompt. A tiny model's own context is below the usual length."""
    has_room = room is None or room >= LOWEST_REASONING_TOKENS
    if has_room and limit < LOWEST_REASONING_TOKENS and _ASKS_FOR_REASONING.search(prompts[0].text):
        _warn(f"sampling.max_completion_tokens={limit}: the prompt asks for reasoning, and completions are cut before "
              "they answer", "1024 to 8192 tokens for questions of mathematics")
        return
    answers = [str(prompt.question.answer) for prompt in prompts[:1000] if prompt.question.answer is not None]
    too_long = sum(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) >= limit for answer in answers)
    if too_long > TOO_LONG_SHARE * len(answers):
        _warn(f"sampling.max_completion_tokens={limit}: {too_long} of {len(answers)} gold answers alone have as many "
              "tokens or more, and cannot be given", "several times the longest answer")


def _warn(what: str, usual: str) -> None:
    warnings.warn(f"{what}. Usual: {usual}", stacklevel=3)
