"""Scored groups to JSON values and back, exactly: a checkpoint holds what was sampled but not yet trained on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rl.records import Group, Prompt, Question, Rollout, ScoredGroup


def scored_group_to_json(scored: ScoredGroup) -> dict[str, Any]:
    """A JSON object; Python writes floats so that they read back as the same number."""
    value = asdict(scored)
    del value["group"]["votes"]  # which nobody reads after the rewards
    if not scored.group.num_vote_tokens:  # as runs without votes have always written it
        del value["group"]["num_vote_tokens"]
    if not scored.is_anchor:  # as runs without anchors have always written it
        del value["group"]["prompt"]["question"]["is_anchor"]
    return value


def scored_group_from_json(value: dict[str, Any]) -> ScoredGroup:
    """The inverse of scored_group_to_json."""
    prompt = value["group"]["prompt"]
    return ScoredGroup(
        group=Group(
            prompt=Prompt(
                question=Question(**prompt["question"]), text=prompt["text"], token_ids=tuple(prompt["token_ids"]),
                assistant_prefix=prompt["assistant_prefix"],
            ),
            rollouts=tuple(
                Rollout(**{**rollout, "token_ids": tuple(rollout["token_ids"]), "logprobs": tuple(rollout["logprobs"])})
                for rollout in value["group"]["rollouts"]
            ),
            num_vote_tokens=value["group"].get("num_vote_tokens", 0),
        ),
        rewards=tuple(value["rewards"]),
        scores={name: tuple(scores) for name, scores in value["scores"].items()},
        answers=tuple(value["answers"]),
        labels=tuple(value["labels"]),
        entropy=value["entropy"],
        metrics=dict(value["metrics"]),
        skipped=value.get("skipped", False),
    )
