"""A judge in this process: verdicts equal a literal comparison of log-probabilities, whatever the batches. The model
knows no words."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rewards.contract import RewardError
from rewards.judges.questions import JudgeError, Judgement
from rewards.judges.transformers import TransformersJudge
from rewards.scoring import GroupInput, RewardSpec, RewardSum

pytestmark = pytest.mark.slow

MODEL = str(Path(__file__).parents[3] / "models" / "tiny-arith")
PROMPT = "{{ first }}={{ second }}?"
PAIRS = [(str(a), "+".join(["7"] * b)) for a in (3, 12, 1234) for b in range(1, 9)]


def judge(**settings: Any) -> list[Judgement]:
    return asyncio.run(TransformersJudge(MODEL, **{"prompt": PROMPT, "min_mass": 0.0, **settings}).judge("?", PAIRS))


@cache
def literal_probabilities(chat_template: str | None = None) -> list[tuple[float, float]]:
    """One prompt at a time, without padding, from the whole distribution."""
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModelForCausalLM.from_pretrained(MODEL)
    yes, no = (tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))
    found = []
    for first, second in PAIRS:
        text = f"{first}={second}?\n" if chat_template is None else f"User: {first}={second}?\nAssistant: "
        with torch.no_grad():
            logits_V = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]
        logprobs_V = logits_V - logits_V.exp().sum().log()
        found.append((float(logprobs_V[yes].exp()), float(logprobs_V[no].exp())))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 60, 8192])
def test_verdicts_equal_a_literal_comparison_in_batches_of_any_size(batch_tokens: int) -> None:
    for judgement, (yes, no) in zip(judge(batch_tokens=batch_tokens), literal_probabilities(), strict=True):
        assert judgement.equal is (yes > no)
        seen_yes, seen_no = (float(part.split(" = ")[1]) for part in judgement.seen.split(", "))
        assert seen_yes == pytest.approx(yes, rel=0.01) and seen_no == pytest.approx(no, rel=0.01)


def test_the_chat_template_is_used_where_there_is_one(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}Assistant: {% "
        "endif %}")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained(tmp_path)
    found = asyncio.run(TransformersJudge(str(tmp_path), prompt=PROMPT, min_mass=0.0).judge("?", PAIRS))
    expected = literal_probabilities(template)
    assert [judgement.equal for judgement in found] == [yes > no for yes, no in expected]
    assert float(found[0].seen.split()[2].rstrip(",")) == pytest.approx(expected[0][0], rel=0.01)


def test_a_model_that_would_say_something_else_gives_no_verdict() -> None:
    """tiny-arith would go on with a digit: Yes and No together have next to no probability."""
    assert all(yes + no < 0.1 for yes, no in literal_probabilities())
    assert {judgement.equal for judgement in judge(min_mass=0.1)} == {None}
    group = GroupInput("q1", "?", ["answer: 1", "answer: 2"])

    def score(**arguments: Any) -> RewardSum:
        settings = {"model": MODEL, "judge_prompt": PROMPT, **arguments}
        return RewardSum([RewardSpec("rewards.free_form:local_verifier_entropy", arguments=settings)])

    with pytest.raises(RewardError, match=r"replied P\(Yes\) = .*expected Yes or No"):
        score().score([group])
    assert score(on_failure="skip").score([group])[0].skipped
    [result] = score(min_mass=0.0).score([group])
    assert not result.skipped and result.metrics["local_verifier_entropy/num_pairs"] == 2.0


def test_accuracy_asks_the_same_model() -> None:
    spec = RewardSpec(
        "rewards.free_form:local_verifier_accuracy", arguments={"model": MODEL, "judge_prompt": PROMPT, "min_mass": 0.0}
    )
    [result] = RewardSum([spec]).score([GroupInput("q1", "?", ["answer: 1", "answer: 2", "hm"], "1")])
    verdicts = {
        pair: judgement.equal
        for pair, judgement in zip(
            [("1", "2"), ("2", "1")],
            asyncio.run(TransformersJudge(MODEL, prompt=PROMPT, min_mass=0.0).judge("?", [("1", "2"), ("2", "1")])),
            strict=True)}
    assert result.rewards == (1.0, float(all(verdicts.values())), 0.0)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(JudgeError, match="judge model '/no/such/model' cannot be loaded"):
        TransformersJudge("/no/such/model")
    for settings in ({"min_mass": 1.5}, {"batch_tokens": 0}):
        with pytest.raises(ValueError, match="expected"):
            judge(**settings)
