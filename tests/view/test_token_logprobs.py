from pathlib import Path

import pytest

from tests.reference.viewed import lines_of
from tests.reference.whole_run import GRPO, metrics_of, no_pixels, train
from view.groups import from_rollouts

pytestmark = pytest.mark.slow


def test_recording_tokens_changes_no_number_and_the_tokens_make_up_the_text(tmp_path: Path) -> None:
    short = (*GRPO, "steps=2", "evaluation.path=null", "data.limit=16")
    with no_pixels():
        assert train(tmp_path / "plain", *short) == 0
        assert train(tmp_path / "tokens", *short, "tracking.token_logprobs=true") == 0
    assert metrics_of(tmp_path / "plain") == metrics_of(tmp_path / "tokens")
    plain, recorded = (lines_of(tmp_path / name / "rollouts.jsonl") for name in ("plain", "tokens"))
    assert [from_rollouts(line).completions[0].tokens for line in plain] == [None] * len(plain)
    for without, line in zip(plain, recorded, strict=True):
        for one in line["completions"]:
            texts, logprobs = zip(*one.pop("tokens"), strict=True)
            assert len(texts) == one["num_tokens"] and max(logprobs) <= 0.0
            assert "".join(texts).startswith(one["text"])
        assert line == without
