"""Completions -> 1 where the form that the prompt asked for was kept, else 0, whatever the answer is. One function per
form."""

from __future__ import annotations

from rewards.extraction import extract

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_boxed(*, completions: list[str], **columns: object) -> list[float]:
    """r_i = 1 if the last \\boxed{} of completion i is closed and not empty."""
    extractions = [extract(completion) for completion in completions]
    return [float(found.rule == "boxed" and found.answer is not None) for found in extractions]


def format_think(*, completions: list[str], **columns: object) -> list[float]:
    """r_i = 1 if completion i is <think>...</think> <answer>...</answer>: each tag once, in order.

    Nothing but spaces outside of them, and neither of them empty (arXiv:2501.12948).
    """
    return [float(_is_think_then_answer(completion.strip())) for completion in completions]


def _is_think_then_answer(text: str) -> bool:
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    before, _, rest = text.partition("<think>")
    thought, _, rest = rest.partition("</think>")
    between, _, rest = rest.partition("<answer>")
    answer, _, after = rest.partition("</answer>")
    # A tag out of order leaves a later partition empty-handed: then answer is all of an empty rest.
    return bool(thought.strip() and answer.strip()) and not (before.strip() or between.strip() or after.strip())
