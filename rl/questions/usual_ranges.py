"""Warnings of settings under which policies hardly learn, with the usual range. They stop nothing: an experiment may
want them. Imports no torch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

from rl.config import AdamSection, LoraSection, RunConfig
from rl.questions.prompting import PromptTokenizer
from rl.questions.splits import acting
from rl.records import Prompt
from rl.selection import ROUNDING

LOWEST_LORA_LR = 5e-6  # full-parameter training has 5e-7 to 3e-6; adapters need about ten times as much
LOWEST_GROUP_SIZE = 4
LOWEST_REASONING_TOKENS = 256
LEAST_BOUNDED = 5  # answers; of fewer, bounds that act on both sides would refuse all that can train
TOO_LONG_SHARE = 0.1  # of gold answers that alone are longer than a completion may be

_AGREEMENT = re.compile(r"rewards\.(semantic_entropy|majority|free_form):\w*(entropy|majority_vote)$")
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
    warn_of_thresholds(config)
    room = None if context is None else context - max(len(prompt.token_ids) for prompt in prompts)
    _warn_of_length(config.sampling.max_completion_tokens, prompts, tokenizer, room)


def warn_of_learning_rate(optim: AdamSection, lora: LoraSection) -> None:
    if lora.enabled and optim.lr < LOWEST_LORA_LR:
        _warn(f"optim.lr={optim.lr:g} is a learning rate of full-parameter training, and lora.enabled=true trains an "
              "adapter, which hardly moves at it", "optim.lr=1e-5 to 5e-4 with an adapter")


def warn_of_thresholds(config: RunConfig) -> None:
    """Of bounds that refuse only groups without a difference in their rewards, and of agreement without any bound."""
    size, bounds = config.sampling.group_size, config.selection
    rewarded = [reward.use for reward in config.rewards if _AGREEMENT.match(reward.use)]
    if rewarded and bounds.low is None and bounds.high is None:
        _warn(f"{rewarded[0]} rewards agreement, and selection has no bounds: groups that are nearly sure, or only "
              "guess, train too", "selection.low and selection.high; --dry-run shows what they refuse")
    if size < LEAST_BOUNDED:
        return
    (lowest, above), (below, highest) = acting(size)
    if bounds.low is not None and bounds.low < lowest - ROUNDING:
        _warn(f"selection.low={bounds.low} refuses only groups of {size} whose answers all agree; {size - 1}+1 has "
              f"H / ln G = {lowest:.3f}", f"selection.low={(lowest + above) / 2:.2f}")
    if bounds.high is not None and bounds.high > highest + ROUNDING:
        _warn(f"selection.high={bounds.high} refuses only groups of {size} whose answers all differ; two that agree "
              f"have H / ln G = {highest:.3f}", f"selection.high={(below + highest) / 2:.2f}")


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
