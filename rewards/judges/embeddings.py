"""Texts -> which of them are equal because their sentence embeddings point the same way: cosine similarity >=
threshold.

Cheap (one forward pass of a small model per different answer) and coarse: embeddings hear the topic more than the fact,
so 600 and 601, or a sentence and its negation, may well be equal. For answers in words where no judge can be afforded.
sentence-transformers is imported when the model is loaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from rewards.judges.questions import JudgeError, Judgement, Pair

_PACKAGE = "package:"


class EmbeddingEquality:
    """model: folder or hub id of a sentence-transformers model, or `package:NAME` for the one that lies in an installed
    Python package, which needs no hub. threshold: cosine similarity, in [-1, 1]. device: None for the GPU if there is
    one. Raises ValueError for an impossible threshold, JudgeError where the package or the model is missing."""

    def __init__(self, model: str, threshold: float, *, device: str | None = None) -> None:
        if not -1 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold!r}, expected a cosine similarity in [-1, 1], such as 0.8")
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise JudgeError(
                f"sentence-transformers cannot be imported ({error}); pip install -e '.[embeddings]'") from error
        self._threshold = threshold
        folder = _packaged(model.removeprefix(_PACKAGE)) if model.startswith(_PACKAGE) else model
        try:
            self._model = SentenceTransformer(folder, device=device)
        except (OSError, ValueError) as error:
            raise JudgeError(f"embedding model {model!r} cannot be loaded: {error}") from error
        self.place = f"model {model!r}"

    def similarities(self, texts: Sequence[str]) -> dict[Pair, float]:
        """Cosine similarity in [-1, 1], up to rounding, of each pair of different texts, in both orders the same
        number."""
        different = list(dict.fromkeys(texts))
        if len(different) < 2:
            return {}
        vectors_UD = self._model.encode(different, normalize_embeddings=True, show_progress_bar=False)
        similarities: dict[Pair, float] = {}
        for i, j in combinations(range(len(different)), 2):
            similarity = float(vectors_UD[i] @ vectors_UD[j])
            similarities[different[i], different[j]] = similarities[different[j], different[i]] = similarity
        return similarities

    async def judge(self, question: str, pairs: Sequence[Pair]) -> list[Judgement]:
        """By similarity, hence equal in both directions; the question is not read, and nothing is awaited."""
        similarities = self.similarities([text for pair in pairs for text in pair])
        return [Judgement(pair[0] == pair[1] or similarities[pair] >= self._threshold) for pair in pairs]


def _packaged(name: str) -> str:
    """The folder of the sentence-transformers model in the package, which is not imported. Raises JudgeError."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise JudgeError(f"no package {name!r} is installed, which is to hold the embedding model")
    folders = [file.parent for file in Path(found.submodule_search_locations[0]).rglob("modules.json")]
    if len(folders) != 1:
        raise JudgeError(f"package {name!r} holds {len(folders)} sentence-transformers models (folders with a "
                         "modules.json), expected one")
    return str(folders[0])
