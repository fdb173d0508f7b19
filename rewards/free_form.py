"""Completions with free-form answers -> rewards, where a model says which answers are equal.

Label-free, r_i by the agreement of the group (EMPO, arXiv:2504.05812, whose free-form runs asked a general verifier):
    verifier_entropy         a model behind an OpenAI-compatible endpoint (rewards/judges/openai.py)
    local_verifier_entropy   a transformers model in this process (rewards/judges/transformers.py)
    embedding_entropy        sentence embeddings and a threshold (rewards/judges/embeddings.py)
With a gold answer: verifier_accuracy, local_verifier_accuracy.

`answer_from` says what a completion's answer is: extracted (rules of extraction.py), last_line (the last that is not
empty), whole (the completion). An answer of more than `max_answer_length` characters is no answer. What is asked, how
clusters are made, and what `max_pairs` bounds: rewards/judges/clustering.py.

A missing verdict (no reply, or one that is neither yes nor no) is an error, or with `on_failure: skip` a counted skip:
a group whose clusters hang on it is skipped as a whole, a completion that is compared with a gold answer has no score.
It never means "different".
Another judge: a class like those, and a function like these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

from rewards.agreement import Agreement, Form
from rewards.contract import GroupScore
from rewards.extraction import extract
from rewards.judges.clustering import DEFAULT_MAX_PAIRS, both_ways, cluster_by_judge, one_line, verdict_metrics
from rewards.judges.embeddings import EmbeddingEquality
from rewards.judges.openai import Endpoint, OpenAIJudge
from rewards.judges.questions import DEFAULT_PROMPT, Judge, JudgeError, Judgement, Pair, encodable
from rewards.judges.transformers import TransformersJudge

AnswerFrom = Literal["extracted", "last_line", "whole"]
OnFailure = Literal["error", "skip"]


async def verifier_entropy(
    *, question: str, completions: list[str], url: str, model: str, form: Form = "share", power: float = 1.0,
    unanswered: float | None = None, answer_from: AnswerFrom = "extracted", max_answer_length: int = 2000,
    max_pairs: int = DEFAULT_MAX_PAIRS, on_failure: OnFailure = "error", api_key_env: str | None = None,
    judge_prompt: str = DEFAULT_PROMPT, concurrency: int = 32, timeout_s: float = 30.0, attempts: int = 4,
    max_tokens: int = 8, extra_body: Mapping[str, Any] | None = None, **columns: object,
) -> GroupScore:
    """What agreement is worth (agreement.Agreement; form `majority` is the majority vote) in clusters that a model
    behind an endpoint (judges.openai.Endpoint) judges. Raises JudgeError, ValueError."""
    judge = _openai_judge(
        Endpoint(url, model, api_key_env, concurrency, timeout_s, attempts, max_tokens, json.dumps(extra_body or {})),
        judge_prompt)
    answers = free_form_answers(completions, answer_from, max_answer_length)
    return await _entropy(judge, question, answers, Agreement(form, power, unanswered), max_pairs, on_failure)


async def local_verifier_entropy(
    *, question: str, completions: list[str], model: str, form: Form = "share", power: float = 1.0,
    unanswered: float | None = None, answer_from: AnswerFrom = "extracted", max_answer_length: int = 2000,
    max_pairs: int = DEFAULT_MAX_PAIRS, on_failure: OnFailure = "error", judge_prompt: str = DEFAULT_PROMPT,
    min_mass: float = 0.1, batch_tokens: int = 8192, device: str | None = None, dtype: str = "auto",
    **columns: object,
) -> GroupScore:
    """What agreement is worth (agreement.Agreement; form `majority` is the majority vote) in clusters that a
    transformers model in this process (judges.transformers.TransformersJudge) judges. Raises JudgeError, ValueError."""
    judge = _transformers_judge(model, judge_prompt, min_mass, batch_tokens, device, dtype)
    answers = free_form_answers(completions, answer_from, max_answer_length)
    return await _entropy(judge, question, answers, Agreement(form, power, unanswered), max_pairs, on_failure)


async def embedding_entropy(
    *, question: str, completions: list[str], model: str, threshold: float, form: Form = "share", power: float = 1.0,
    unanswered: float | None = None, answer_from: AnswerFrom = "extracted", max_answer_length: int = 2000,
    device: str | None = None, **columns: object,
) -> GroupScore:
    """What agreement is worth (agreement.Agreement; form `majority` is the majority vote) where answers are equal if
    the cosine similarity of their embeddings reaches `threshold`. Raises JudgeError, ValueError."""
    judge = _embeddings(model, threshold, device)
    answers = free_form_answers(completions, answer_from, max_answer_length)
    all_pairs = len(answers) * len(answers)
    return await _entropy(judge, question, answers, Agreement(form, power, unanswered), all_pairs, "error")


async def verifier_accuracy(
    *, question: str, completions: list[str], answer: str, url: str, model: str, answer_from: AnswerFrom = "extracted",
    max_answer_length: int = 2000, on_failure: OnFailure = "error", api_key_env: str | None = None,
    judge_prompt: str = DEFAULT_PROMPT, concurrency: int = 32, timeout_s: float = 30.0, attempts: int = 4,
    max_tokens: int = 8, extra_body: Mapping[str, Any] | None = None, **columns: object,
) -> GroupScore:
    """r_i = 1 if the model behind an endpoint (judges.openai.Endpoint) finds the answer of completion i equal to the
    gold answer in both directions, else 0; unanswered is 0."""
    judge = _openai_judge(
        Endpoint(url, model, api_key_env, concurrency, timeout_s, attempts, max_tokens, json.dumps(extra_body or {})),
        judge_prompt)
    answers = free_form_answers(completions, answer_from, max_answer_length)
    return await _accuracy(judge, question, answers, answer, on_failure)


async def local_verifier_accuracy(
    *, question: str, completions: list[str], answer: str, model: str, answer_from: AnswerFrom = "extracted",
    max_answer_length: int = 2000, on_failure: OnFailure = "error", judge_prompt: str = DEFAULT_PROMPT,
    min_mass: float = 0.1, batch_tokens: int = 8192, device: str | None = None, dtype: str = "auto",
    **columns: object,
) -> GroupScore:
    """r_i = 1 if a transformers model in this process (judges.transformers.TransformersJudge) finds the answer of
    completion i equal to the gold answer in both directions, else 0; unanswered is 0."""
    judge = _transformers_judge(model, judge_prompt, min_mass, batch_tokens, device, dtype)
    answers = free_form_answers(completions, answer_from, max_answer_length)
    return await _accuracy(judge, question, answers, answer, on_failure)


verifier_accuracy.needs_answer = True  # type: ignore[attr-defined]
local_verifier_accuracy.needs_answer = True  # type: ignore[attr-defined]


def free_form_answers(completions: Sequence[str], answer_from: AnswerFrom, max_answer_length: int) -> list[str | None]:
    """[G] completions -> [G] answers on one line each, None for an empty or an overlong one. Raises ValueError for
    another answer_from."""
    if answer_from not in get_args(AnswerFrom):
        raise ValueError(f"answer_from is {answer_from!r}, expected one of {', '.join(get_args(AnswerFrom))}")
    found = [encodable(one_line(_answer_text(completion, answer_from))) for completion in completions]
    return [text if 0 < len(text) <= max_answer_length else None for text in found]


def _answer_text(completion: str, answer_from: AnswerFrom) -> str:
    if answer_from == "extracted":
        # As written: cut down to the value that it states, "bats are blind" would be "moles are blind".
        found = extract(completion)
        return found.written or found.answer or ""
    return completion if answer_from == "whole" else completion.rstrip().rpartition("\n")[2]


async def _entropy(
    judge: Judge, question: str, answers: list[str | None], agreement: Agreement, max_pairs: int, on_failure: OnFailure
) -> GroupScore:
    _check_on_failure(on_failure)

    async def ask(pairs: Sequence[Pair]) -> list[Judgement]:
        judgements = await judge.judge(question, pairs)
        if on_failure == "error":
            _refuse_failures(judge, dict(zip(pairs, judgements, strict=True)))
        return judgements

    judged = await cluster_by_judge(answers, ask, max_pairs)
    if judged.clusters is None:
        return GroupScore([None] * len(answers), judged.metrics(), answers=answers, skipped=True)
    return GroupScore(agreement.of(judged.clusters), judged.metrics(), judged.clusters.labels, answers)


async def _accuracy(
    judge: Judge, question: str, answers: list[str | None], gold: str, on_failure: OnFailure
) -> GroupScore:
    """Answers with the gold answer's text are right without a call. No labels: answers were not compared with each
    other."""
    _check_on_failure(on_failure)
    gold = encodable(one_line(gold))
    others = [text for text in dict.fromkeys(answers) if text is not None and text != gold]
    pairs = [pair for text in others for pair in ((gold, text), (text, gold))]
    judgements = dict(zip(pairs, await judge.judge(question, pairs), strict=True))
    if on_failure == "error":
        _refuse_failures(judge, judgements)
    scores = [_right(judgements, gold, text) for text in answers]
    nothing_judged = all(score is None for score in scores)
    return GroupScore(scores, verdict_metrics(judgements, is_complete=False), answers=answers, skipped=nothing_judged)


def _right(judgements: Mapping[Pair, Judgement], gold: str, text: str | None) -> float | None:
    if text is None or text == gold:
        return float(text == gold)
    same = both_ways(judgements, gold, text)
    return None if same is None else float(same)


def _check_on_failure(on_failure: str) -> None:
    if on_failure not in get_args(OnFailure):
        raise ValueError(f"on_failure is {on_failure!r}, expected one of {', '.join(get_args(OnFailure))}")


def _refuse_failures(judge: Judge, judgements: Mapping[Pair, Judgement]) -> None:
    """Raises JudgeError for the first judgement without a verdict."""
    missing = [(pair, judgement) for pair, judgement in judgements.items() if judgement.equal is None]
    if not missing:
        return
    (first, second), judgement = missing[0]
    if judgement.replied:
        what = (f"replied {judgement.seen}, expected Yes or No; use a model that follows instructions, or another "
                "judge_prompt")
    else:
        what = f"gave no reply: {judgement.seen}; is the server up, and fast enough for timeout_s and concurrency?"
    raise JudgeError(
        f"{judge.place} {what} ({len(missing)} of {len(judgements)} calls without a verdict; "
        f"this one asked about {first[:80]!r} and {second[:80]!r}). To go on without such groups: on_failure: skip")


@lru_cache(maxsize=8)
def _openai_judge(endpoint: Endpoint, prompt: str) -> Judge:
    """One judge for all groups, so that they share its bound on concurrent requests."""
    return OpenAIJudge(endpoint, prompt)


@lru_cache(maxsize=2)
def _transformers_judge(
    model: str, prompt: str, min_mass: float, batch_tokens: int, device: str | None, dtype: str
) -> Judge:
    return TransformersJudge(
        model, prompt=prompt, min_mass=min_mass, batch_tokens=batch_tokens, device=device, dtype=dtype)


@lru_cache(maxsize=2)
def _embeddings(model: str, threshold: float, device: str | None) -> Judge:
    return EmbeddingEquality(model, threshold, device=device)
