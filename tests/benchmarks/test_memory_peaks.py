"""The memory estimate against what a process really takes."""

from __future__ import annotations

import sys

import pytest
from memory_peaks import CASES, measure_alone

TINY = ("optim.micro_batch_tokens=2048", "generator.max_sequences=64")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets glibc's malloc")
@pytest.mark.parametrize(("kind", "case"), [
    ("training", "LoRA, float32"), ("training", "LoRA, float32, selective"),
    ("training", "LoRA, float32, full"),
    ("training", "all parameters, float32"), ("sampling", "LoRA, float32")])
def test_the_estimated_growth_is_near_the_measured_one(kind: str, case: str) -> None:
    """On four small layers a single layer's part, which is estimated at its largest, is a quarter of all."""
    assert 0.85 < measure_alone(kind, [*CASES[case], *TINY]).ratio < 1.25
