"""Completions that end in any order -> whole groups in the order of the requests: what the back ends share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from transformers import PreTrainedTokenizerBase

from rl.generate.protocol import Finished, Request
from rl.generate.stop_strings import text_before
from rl.records import FinishReason, Group, Rollout


@dataclass(frozen=True, slots=True)
class Completion:
    """token_ids: [T], with the token that stopped it. logprobs: [T], as the back end gives them. finish_reason: stop:
    by a token or a text that stops. entropies, self_certainties: [T], None where the back end does not tell them."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    entropies: tuple[float, ...] | None = None
    self_certainties: tuple[float, ...] | None = None


class CompletedGroups:
    """Takes completions by their numbers, which count through all requests in the order of their seeds."""

    def __init__(
        self, requests: Sequence[Request], tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str],
        policy_version: int, finished: Finished | None,
    ) -> None:
        self._requests = requests
        self._tokenizer = tokenizer
        self._stop_strings = stop_strings
        self._policy_version = policy_version
        self._finished = finished
        self._places = [
            (index, sample) for index, request in enumerate(requests) for sample in range(len(request.seeds))]
        self._rollouts: list[dict[int, Rollout]] = [{} for _ in requests]

    def add(self, number: int, completion: Completion) -> None:
        """Each number is added once; what hears of finished groups is called with the last one of a group."""
        index, sample = self._places[number]
        request, rollouts = self._requests[index], self._rollouts[index]
        assert sample not in rollouts, "a completion must not count twice"
        text = text_before(self._tokenizer, completion.token_ids, self._stop_strings)
        rollouts[sample] = Rollout(
            token_ids=completion.token_ids, logprobs=completion.logprobs, text=request.prompt.assistant_prefix + text,
            finish_reason=completion.finish_reason, policy_version=self._policy_version, seed=request.seeds[sample],
            entropies=completion.entropies, self_certainties=completion.self_certainties)
        if self._finished is not None and len(rollouts) == len(request.seeds):
            self._finished(index, self._group(index))

    def groups(self) -> list[Group]:
        """All groups, once every completion was added."""
        return [self._group(index) for index in range(len(self._requests))]

    def _group(self, index: int) -> Group:
        request, rollouts = self._requests[index], self._rollouts[index]
        assert len(rollouts) == len(request.seeds), "a completion is missing"
        return Group(request.prompt, tuple(rollouts[sample] for sample in range(len(request.seeds))))


def first_numbers(requests: Sequence[Request]) -> list[int]:
    """The number of each request's first completion."""
    return [0, *accumulate(len(request.seeds) for request in requests)][: len(requests)]
