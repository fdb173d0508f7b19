"""What a warm-up reads before it loads a model: solutions, held-out questions, prompts. Loads the tokenizer but no
weights."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rewards.errors import named
from rewards.scoring import RewardSum
from rl.errors import ConfigError
from rl.paths import resolve_path
from rl.policy.policy import end_of_sequence_ids, load_generation_config
from rl.questions.inputs import build_grader, load_model_config, load_tokenizer, read_held_out, warn_of_overlap
from rl.questions.prompting import make_renderer, warn_of_plain_text
from rl.questions.usual_ranges import warn_of_learning_rate
from rl.records import Prompt
from rl.supervised.config import WarmupConfig
from rl.supervised.solutions import SolutionRow, end_token, load_solutions, render_solutions

NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class WarmupInputs:
    """rows: train. held_out_rows: give the held-out loss. prompts: held-out questions, for accuracy; grader: judges
    them, None without any.

    max_tokens: of a row. dropped: how much of either file was left out, by reason. stop_strings: the template's.
    turn_end_ids: end an assistant's turn in the chat template. digest: of all rows and prompts; a checkpoint belongs to
    them."""

    tokenizer: PreTrainedTokenizerBase
    rows: tuple[SolutionRow, ...]
    held_out_rows: tuple[SolutionRow, ...]
    prompts: tuple[Prompt, ...]
    grader: RewardSum | None
    max_tokens: int
    dropped: Mapping[str, int]
    stop_strings: tuple[str, ...]
    turn_end_ids: tuple[int, ...]
    digest: str


def read_warmup_inputs(config: WarmupConfig) -> WarmupInputs:
    """Everything but the model. Raises ConfigError, DataError, PromptError, PolicyError or RewardError with the
    remedy."""
    grader = build_grader(config.evaluation, config.evaluation.max_completion_tokens)
    tokenizer, model_config = load_tokenizer(config.model), load_model_config(config.model)
    # transformers would warn of a row longer than the context; it is refused here with its place, or counted.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    context: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    max_tokens = _max_tokens(config, context)
    renderer = make_renderer(config.prompt, tokenizer)
    warn_of_plain_text(renderer)
    warn_of_learning_rate(config.optim, config.lora)
    path = str(resolve_path(config.model.path))
    model_ends = end_of_sequence_ids(load_generation_config(path, config.model.revision), tokenizer, path)
    eos_ids = (*model_ends, *renderer.turn_end_ids)
    end_id = end_token(renderer, eos_ids, tokenizer.eos_token_id)
    rows, num_too_long = render_solutions(
        load_solutions(config.data), renderer, eos_ids, end_id, max_tokens, config.data.too_long)
    dropped = {"rows too long": num_too_long}
    prompts: tuple[Prompt, ...] = ()
    if grader is not None:
        prompts, left_out = read_held_out(
            config.evaluation, grader, renderer, NO_LIMIT, {row.prompt.question.text for row in rows})
        dropped |= left_out
        _check_held_out_length(config, prompts, context)
        warn_of_overlap([row.prompt for row in rows], prompts)
    training, held_out = _set_aside(rows, config)
    digest = hashlib.sha256(repr([(row.prompt.token_ids, row.completion_ids) for row in rows]).encode())
    digest.update(
        repr([(prompt.token_ids, prompt.question.answer) for prompt in prompts]).encode("utf-8", "backslashreplace"))
    return WarmupInputs(
        tokenizer, training, held_out, prompts, grader, max_tokens, dropped, renderer.template.stop_strings,
        renderer.turn_end_ids, digest.hexdigest())


def _max_tokens(config: WarmupConfig, context: int | None) -> int:
    asked, where = config.data.max_tokens, named("data.max_tokens")
    if asked is not None and context is not None and asked > context:
        raise ConfigError(
            f"{asked} tokens, above the model's context of {context}", where=where,
            remedy=f"{named('data.max_tokens', context)} or less, or null")
    if asked is None and context is None and config.packing:
        raise ConfigError(
            "null, and the model's config.json names no context; packing needs the length of a row", where=where,
            remedy=f"{named('data.max_tokens', 4096)}, or {named('packing', 'false')}")
    return asked or context or NO_LIMIT


def _check_held_out_length(config: WarmupConfig, prompts: tuple[Prompt, ...], context: int | None) -> None:
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    needed = len(longest.token_ids) + config.evaluation.max_completion_tokens
    if context is not None and needed > context:
        raise ConfigError(
            f"{config.evaluation.max_completion_tokens} tokens after the longest prompt ({len(longest.token_ids)} "
            f"tokens, question {longest.question.id!r}) make {needed}, above the model's context of {context}",
            where=named("evaluation.max_completion_tokens"), remedy="fewer, or held-out questions with shorter prompts")


def _set_aside(
    rows: tuple[SolutionRow, ...], config: WarmupConfig
) -> tuple[tuple[SolutionRow, ...], tuple[SolutionRow, ...]]:
    """(rows that train, held-out rows). All solutions of a question are on the same side: else the loss would flatter
    the policy."""
    wanted = config.data.held_out_rows
    if not wanted:
        return rows, ()
    by_question: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        by_question.setdefault(row.prompt.token_ids, []).append(index)
    questions = list(by_question.values())
    random.Random(config.seed).shuffle(questions)
    chosen: set[int] = set()
    for members in questions:
        if len(chosen) >= wanted:
            break
        chosen |= set(members)
    if len(chosen) >= len(rows):
        raise ConfigError(
            f"{wanted} of {len(rows)} rows leave none to train on", where=named("data.held_out_rows"),
            remedy=f"fewer, or more rows in {config.data.path}")
    return tuple(row for i, row in enumerate(rows) if i not in chosen), tuple(rows[i] for i in sorted(chosen))
