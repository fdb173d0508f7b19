"""models/make_tiny_arith.py: documents of the tiny bases, and that a checkpoint is made, and trained further, by a
recipe."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from arith import BOXED, Sum, hasty_guess, worked_solution
from make_tiny_arith import EOS, Recipe, draw_document, pretrain
from safetensors.torch import load_file

from rewards.extraction import extract
from rl.paths import project_root

MODELS = project_root() / "models"
SOME = Sum((12, 7, 3), (1, -1))


def recipe(name: str, **changes: object) -> Recipe:
    values = yaml.safe_load((MODELS / f"{name}.yaml").read_text())
    return Recipe.model_validate(values | changes)


def test_a_worked_document_carries_the_sum_out_and_ends_in_the_answers_form() -> None:
    assert worked_solution(SOME) == "12+7=19\n19-3=16\n\\boxed{16}"
    assert worked_solution(SOME, "so ANSWER") == "12+7=19\n19-3=16\nso 16"
    assert hasty_guess(SOME, Random(0), right_share=1.0) == "\\boxed{16}"


@pytest.mark.parametrize(
    ("name", "has_answer"), [("tiny-arith", True), ("tiny-arith-brief", True), ("tiny-arith-plain", False)]
)
def test_only_the_documents_of_the_plain_base_have_no_answer_that_is_read(name: str, has_answer: bool) -> None:
    random, line = Random(0), recipe(name).answer_line
    documents = [draw_document(random, 0.5, line).removesuffix(EOS) for _ in range(200)]
    assert {extract(document).answer is not None for document in documents} == {has_answer}


def test_the_bases_read_the_same_sums_and_guesses_in_the_order_of_the_seed() -> None:
    boxed, plain = Random(7), Random(7)
    for _ in range(50):
        document = draw_document(boxed, 0.5, BOXED)
        assert draw_document(plain, 0.5, "so ANSWER") == document.replace("\\boxed{", "so ").replace("}", "")


def test_a_recipe_makes_a_checkpoint_and_start_from_trains_it_further(tmp_path: Path) -> None:
    small = {"steps": 1, "documents_per_step": 2, "num_layers": 1, "width": 16, "num_heads": 2, "intermediate_size": 16}
    pretrain(recipe("tiny-arith-brief", out=tmp_path / "first", **small))
    pretrain(
        recipe("tiny-arith-plain", out=tmp_path / "second", start_from=tmp_path / "first", warmup_steps=1, **small))
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert {name: tensor.shape for name, tensor in first.items()} == {
        name: tensor.shape for name, tensor in second.items()}
    moved = max((first[name] - second[name]).abs().max().item() for name in first)
    assert 0 < moved < 2e-3  # one step of AdamW at a rate of 1e-3; other random weights would be further away
    assert all(torch.isfinite(tensor).all() for tensor in second.values())
