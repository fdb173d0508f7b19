"""What of a GPU's memory the vLLM engine is given beside the trainer: the arithmetic, on a GPU whose figures are set
here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.config import GeneratorSection
from rl.generate.generator_plan import CACHE_BLOCK, GPU_RESERVE, GeneratorPlan, cache_bytes
from rl.generate.vllm_generator import VllmGenerator, _memory_share

GB = 10**9
DEVICE = torch.device("cuda", 0)


def plan(trainer_gb: int, kept_gb: int) -> GeneratorPlan:
    return GeneratorPlan(
        100, 1, trainer_gb * GB, "base", None, False, "processed_logprobs", 1, 0, Path(), kept_bytes=kept_gb * GB)


def share(
    monkeypatch: pytest.MonkeyPatch, *, free: int, reserved: int, trainer: int, kept: int, **settings: Any
) -> float | None:
    """Of a GPU with 80 GB; all other sizes in GB."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved * GB)
    return _memory_share(GeneratorSection(backend="vllm", **settings), plan(trainer, kept), DEVICE)


@pytest.mark.parametrize(
    ("sleep", "left"), [("off", 62 - (24 - 16)), ("offload", 62 - (18 - 16)), ("discard", 62 - (18 - 16))]
)
def test_the_engine_gets_what_is_free_less_what_the_trainer_will_add_while_it_is_awake(
    monkeypatch: pytest.MonkeyPatch, sleep: str, left: int
) -> None:
    found = share(monkeypatch, free=62, reserved=16, trainer=24, kept=18, sleep=sleep)
    assert found == pytest.approx(GPU_RESERVE * left / 80)


@pytest.mark.parametrize("sleep", ["off", "offload"])
def test_what_the_trainer_has_reserved_beyond_its_need_is_not_given_twice(
    monkeypatch: pytest.MonkeyPatch, sleep: str
) -> None:
    found = share(monkeypatch, free=50, reserved=30, trainer=24, kept=18, sleep=sleep)
    assert found == pytest.approx(GPU_RESERVE * 50 / 80)


def test_the_share_is_never_nothing_and_a_configured_one_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict(free=10, reserved=1, trainer=60, kept=60)
    assert share(monkeypatch, **sizes) == 0.05
    assert share(monkeypatch, **sizes, memory_share=0.4) == 0.4


def test_the_trainers_free_blocks_are_returned_before_the_engine_wakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine only a GPU could put to sleep: its calls are written down."""
    calls: list[str] = []

    class Sleeping:
        def sleep(self, level: int) -> None:
            calls.append(f"sleep {level}")

        def wake(self) -> None:
            calls.append("wake")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("empty"))
    generator: Any = object.__new__(VllmGenerator)
    generator._engine, generator._asleep, generator._sleep_level = Sleeping(), False, 1
    for step in (generator._wake, generator.rest, generator._wake, generator._wake):
        step()
    assert calls == ["sleep 1", "empty", "wake"]


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 2), (CACHE_BLOCK, 2), (CACHE_BLOCK + 1, 3)])
def test_each_sequence_of_the_cache_has_whole_blocks_and_one_more(tokens: int, blocks: int) -> None:
    assert cache_bytes(3, tokens, 7) == 3 * blocks * CACHE_BLOCK * 7
