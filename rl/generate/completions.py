"""Completions that end in any order -> whole groups in the order of the requests: what the vLLM back ends share."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rl.generate.protocol import Finished, Request
from rl.records import FinishReason, Group, Rollout


class CompletedGroups:
    """Completions are numbered through all requests, in the order of their seeds."""

    def __init__(
        self,
        requests: Sequence[Request],
        tokenizer: PreTrainedTokenizerBase,
        stop_strings: Sequence[str],
        policy_version: int,
        finished: Finished | None,
    ) -> None:
        self._requests = requests
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._policy_version = policy_version
        self._finished = finished
        self._places = [
            (index, sample) for index, request in enumerate(requests) for sample in range(len(request.seeds))]
        self._rollouts: list[dict[int, Rollout]] = [{} for _ in requests]

    def add(
        self, number: int, token_ids: Sequence[int], logprobs: Sequence[float], finish_reason: FinishReason
    ) -> None:
        """token_ids: with the stop token. Each number is added once."""
        index, sample = self._places[number]
        request, rollouts = self._requests[index], self._rollouts[index]
        assert sample not in rollouts, "a completion must not count twice"
        text = before_any(self._tokenizer.decode(token_ids, skip_special_tokens=True), self._stop_strings)
        rollouts[sample] = Rollout(
            token_ids=tuple(token_ids), logprobs=tuple(logprobs), text=request.prompt.assistant_prefix + text,
            finish_reason=finish_reason, policy_version=self._policy_version, seed=request.seeds[sample])
        if self._finished is not None and len(rollouts) == len(request.seeds):
            self._finished(index, self._group(index))

    def groups(self) -> list[Group]:
        """All groups, once every completion was added."""
        return [self._group(index) for index in range(len(self._requests))]

    def _group(self, index: int) -> Group:
        request, rollouts = self._requests[index], self._rollouts[index]
        assert len(rollouts) == len(request.seeds), "a completion is missing"
        return Group(request.prompt, tuple(rollouts[sample] for sample in range(len(request.seeds))))


def before_any(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first of the strings; all of it where there is none."""
    return text[: min((place for string in stop_strings if (place := text.find(string)) >= 0), default=len(text))]
