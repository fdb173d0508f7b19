"""Texts that end a completion. They are looked for in the text with its control tokens (<|im_end|>), which decoding
otherwise leaves out, so that a stop string may hold some; rewards see the text before it, without control tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def text_before(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], stop_strings: Sequence[str]
) -> str:
    """The completion's text without control tokens, up to the first of the stop strings; all where there is none."""
    if stop_strings:
        whole = str(tokenizer.decode(list(token_ids), skip_special_tokens=False))
        places = [place for string in stop_strings if (place := whole.find(string)) >= 0]
        if places:
            text = whole[: min(places)]
            for token in tokenizer.added_tokens_decoder.values():
                text = text.replace(str(token), "") if token.special else text
            return text
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))
