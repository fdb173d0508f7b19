"""A reward for random models, whose completions mean nothing: every group trains, and it costs no time."""

from __future__ import annotations


def length_and_position(*, completions: list[str], **columns: object) -> list[float]:
    """r_i = words of the completion + 0.001 i: no two rewards of a group are equal, whatever was sampled."""
    return [len(text.split()) + 0.001 * i for i, text in enumerate(completions)]


def for_trl(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """The reward of each completion of TRL's flat batch, in which i is the position."""
    return length_and_position(completions=completions)
