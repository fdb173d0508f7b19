"""The memory estimate against what a process really takes."""

from __future__ import annotations

import sys

import pytest
from memory_peaks import CASES, measure_alone

TINY = ("optim.micro_batch_tokens=2048", "generator.max_sequences=64")
# With four small layers one layer's part, which is estimated at its largest, is a quarter of all: the case measured is
# one that comes to it. 154 tokens: the cache grows just before the end.
LARGE, GROWS_LATE = ("optim.micro_batch_tokens=8210",), ("sampling.max_completion_tokens=154",)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets glibc's malloc")
@pytest.mark.parametrize(("kind", "case", "sizes"), [
    ("training", "LoRA, float32", ()), ("training", "LoRA, float32, selective", LARGE),
    ("training", "LoRA, float32, full", ()), ("training", "all parameters, float32", ()),
    ("sampling", "LoRA, float32", GROWS_LATE)])
def test_the_estimated_growth_is_within_15_percent_of_the_measured_one(
    kind: str, case: str, sizes: tuple[str, ...]
) -> None:
    assert measure_alone(kind, [*CASES[case], *TINY, *sizes]).ratio == pytest.approx(1.0, abs=0.15)
