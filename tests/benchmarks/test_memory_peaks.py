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
def test_the_estimated_growth_is_within_15_percent_of_the_measured_one(kind: str, case: str) -> None:
    assert measure_alone(kind, [*CASES[case], *TINY]).ratio == pytest.approx(1.0, abs=0.15)
