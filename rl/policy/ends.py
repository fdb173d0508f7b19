"""What ends a completion, for people: the model's own ids, the chat template's, the configuration's, and texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from rl.config import ModelSection
from rl.paths import resolve_path
from rl.policy.policy import load_generation_config, named_end_ids


def model_end_ids(model: ModelSection, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids at which the model ends a completion, whatever the prompt; () where the checkpoint names none."""
    return named_end_ids(load_generation_config(str(resolve_path(model.path)), model.revision), tokenizer)


def describe_ends(
    model: ModelSection, tokenizer: PreTrainedTokenizerBase, turn_end_ids: Sequence[int],
    stop_token_ids: Sequence[int] = (), stop_strings: Iterable[str] = (),
) -> str:
    """One line, such as "<|endoftext|> (151643), <|im_end|> (151645, ends a turn of the chat template)"."""
    sources = {token: "" for token in model_end_ids(model, tokenizer)}
    sources |= {token: ", ends a turn of the chat template" for token in turn_end_ids if token not in sources}
    sources |= {token: ", as configured" for token in stop_token_ids if token not in sources}
    ids = [f"{tokenizer.convert_ids_to_tokens(token)} ({token}{source})" for token, source in sources.items()]
    return ", ".join([*ids, *(f"the text {text!r}" for text in stop_strings)])
