"""benchmarks/random_models.py and the table of gpu.py: lengths have the mean that was asked for, and ratios compare the
same model."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch
from gpu import PARTS, Measurement, ratios, table
from random_models import SHAPES, drawn_lengths, stop_token_ids, write_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer


def test_drawn_lengths_have_the_mean_and_the_limit_that_were_asked_for() -> None:
    lengths = drawn_lengths(20_000, mean_tokens=400, max_tokens=1024)
    assert statistics.mean(lengths) == pytest.approx(400, rel=0.02)
    assert min(lengths) >= 1 and max(lengths) == 1024


def test_a_uniform_sampler_with_these_stop_tokens_has_the_mean_length() -> None:
    shape = SHAPES["qwen2.5-1.5b"]
    stops = stop_token_ids(shape, mean_tokens=400, max_tokens=1024)
    assert len(set(stops)) == len(stops) and min(stops) > 1 and max(stops) < shape.vocabulary
    share = len(stops) / shape.vocabulary
    mean = sum(length * share * (1 - share) ** (length - 1) for length in range(1, 1024)) + 1024 * (1 - share) ** 1023
    assert mean == pytest.approx(400, rel=0.01)


@pytest.mark.parametrize("mean", [1, 1024])
def test_a_mean_that_no_share_gives_is_refused(mean: int) -> None:
    with pytest.raises(ValueError, match=f"mean_tokens: {mean}; expected more than 1 and less than max_tokens, 1024"):
        drawn_lengths(1, mean_tokens=mean, max_tokens=1024)


def test_a_checkpoint_reads_back_and_a_letter_is_a_token(tmp_path: Path) -> None:
    folder = write_checkpoint(SHAPES["tiny"], tmp_path / "tiny", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("hello")["input_ids"]
    assert len(ids) == 5 and tokenizer.decode(ids) == "hello" and tokenizer.decode([300, 511]) == " w300 w511"
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == len(tokenizer)


def test_the_table_says_why_a_value_is_missing_and_the_ratio_is_of_one_model() -> None:
    rows = [
        Measurement("step", "a", "", "step, s", 2.0),
        Measurement("trl", "a", "off", "step, s", 8.0),
        Measurement("trl", "b", "off", "step, s", 1.0),
        Measurement("train", "b", "full", "", None, "cut after 5 s")]
    assert ratios(rows) == [Measurement("trl", "a", "off", "our step / TRL's", 0.25)]
    assert "| train | b | full |  | cut after 5 s |" in table(rows)
    assert set(PARTS) == {"decode", "swap", "train", "step", "trl", "run"}
