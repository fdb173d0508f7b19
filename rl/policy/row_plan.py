"""Prompts and completions -> which of them share a forward pass, within a budget of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rl.policy.rows import Layout
from rl.records import PromptCompletion

OVERHEAD_TOKENS = 128
"""A forward pass costs about as much as so many tokens of computation, whatever it holds: launches, Python, small
kernels."""


@dataclass(frozen=True, slots=True)
class Part:
    """members: numbers of the pairs of one forward pass. num_tokens: what the model computes for them, padding
    included."""

    members: tuple[int, ...]
    num_tokens: int


def plan_rows(pairs: Sequence[PromptCompletion], *, max_tokens: int, layout: Layout) -> list[Part]:
    """Each pair in exactly one part of at most `max_tokens` tokens, longest first; equal pairs stand together and cost
    nothing. The same pairs give the same plan.

    shared: the completions of a prompt stay together where there is room; else their prompt is computed in each part.
    A pair longer than max_tokens gets a part of its own: refusing it would lose a completion after it was sampled;
    check the longest possible row (prompt + completion limits) before training instead.

    Raises: ValueError for max_tokens < 1."""
    if max_tokens < 1:
        raise ValueError(f"optim.micro_batch_tokens is {max_tokens}; it must be at least 1")
    same: dict[PromptCompletion, list[int]] = {}
    for number, pair in enumerate(pairs):
        same.setdefault(pair, []).append(number)
    plan = _padded(list(same), max_tokens) if layout == "padded" else _shared(list(same), max_tokens)
    return [Part(tuple(n for pair in pairs for n in same[pair]), num_tokens) for pairs, num_tokens in plan]


def _padded(pairs: list[PromptCompletion], max_tokens: int) -> list[tuple[list[PromptCompletion], int]]:
    """Consecutive runs of the sorted pairs with the least sum of (padded tokens + OVERHEAD_TOKENS), by dynamic
    programming.

    Filling each part to max_tokens would pad short completions to the longest of a part that has room for all."""
    pairs = sorted(pairs, key=lambda pair: -_num_tokens(pair))  # stable: in their order where as long
    lengths = [_num_tokens(pair) for pair in pairs]
    # cost[i]: least cost of the first i pairs; start[i]: where the last part of that plan begins.
    cost, start = [0] * (len(lengths) + 1), [0] * (len(lengths) + 1)
    for end in range(1, len(lengths) + 1):
        best = None
        for begin in range(end - 1, -1, -1):
            padded = (end - begin) * lengths[begin]
            if padded > max_tokens and end - begin > 1:
                break
            total = cost[begin] + padded + OVERHEAD_TOKENS
            if best is None or total < best:
                best, start[end] = total, begin
        assert best is not None
        cost[end] = best
    plan, end = [], len(lengths)
    while end:
        begin = start[end]
        plan.append((pairs[begin:end], (end - begin) * lengths[begin]))
        end = begin
    return plan[::-1]


def _shared(pairs: list[PromptCompletion], max_tokens: int) -> list[tuple[list[PromptCompletion], int]]:
    """First fit, largest first: a prompt with its completions, or with as many of them as there is room for."""
    groups: dict[tuple[int, ...], list[PromptCompletion]] = {}
    for pair in pairs:
        groups.setdefault(pair[0], []).append(pair)
    units = []
    for prompt, members in groups.items():
        sizes = [len(completion) - 1 for _, completion in members]
        units += [([members[number] for number in sorted(part)], len(prompt) + size)
                  for part, size in _first_fit(sizes, max_tokens - len(prompt))]
    return [([pair for number in part for pair in units[number][0]], size)
            for part, size in _first_fit([size for _, size in units], max_tokens)]


def _first_fit(sizes: Sequence[int], room: int) -> list[tuple[list[int], int]]:
    """Numbers of the sizes that stand together, with their sum: at most `room`, but for a size that alone is more."""
    parts: list[tuple[list[int], int]] = []
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        size = sizes[number]
        place = next((index for index, (_, used) in enumerate(parts) if used + size <= room), None)
        if place is None:
            parts.append(([number], size))
        else:
            members, used = parts[place]
            parts[place] = ([*members, number], used + size)
    return parts


def _num_tokens(pair: PromptCompletion) -> int:
    """That the model reads: the last one predicts nothing."""
    return len(pair[0]) + len(pair[1]) - 1
