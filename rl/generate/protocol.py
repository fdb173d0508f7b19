"""What a sampler is: requests in, whole groups out, and a way to take over a new policy version.

To add a back end: write a class that has these members in rl/generate/, and name it in rl/generate/build.py. The
trainer knows nothing else about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rl.config import SamplingSection
from rl.records import Group, Prompt, PromptCompletion

if TYPE_CHECKING:
    from rl.policy.policy import Policy


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """temperature >= 0; 0 is greedy, with log-probabilities at temperature 1. top_p in (0, 1]; top_k = 0 keeps all
    tokens; stop ids beside the model's own.

    stop_strings: a completion ends with the token that completes one of these, which may hold control tokens; rewards
    see the text before it.
    token_statistics: whether rollouts shall carry entropies and self_certainties; a back end that cannot tell them
    leaves them None, and the policy computes them (rl/policy/logprob_calculator.py)."""

    temperature: float
    top_p: float
    top_k: int
    max_completion_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    token_statistics: bool = False


def sampling_parameters(
    sampling: SamplingSection, stop_strings: tuple[str, ...] = (), turn_end_ids: tuple[int, ...] = ()
) -> SamplingParameters:
    """The parameters that a configuration gives; stop_strings: all of them, the template's too. turn_end_ids: stop ids
    beside the configuration's, of the chat template."""
    return SamplingParameters(
        sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_completion_tokens,
        tuple(dict.fromkeys([*sampling.stop_token_ids, *turn_end_ids])), stop_strings)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and a seed for each completion that is wanted of it."""

    prompt: Prompt
    seeds: tuple[int, ...]


Finished = Callable[[int, Group], None]
"""Called with a request's position and its whole group."""


class Generator(Protocol):
    """A sampler. Log-probabilities in its rollouts are at the sampling temperature, before top_p and top_k.

    description: one line for people: which sampler, and how new versions come to it; empty for the embedded one."""

    policy_version: int
    description: str

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        """One group per request, in the order of the requests, with one rollout per seed, in the order of the seeds.

        finished: called in this thread, once for each group as soon as it is whole, in whatever order they end.
        The same seeds, weights and requests give the same tokens. Raises GeneratorError where the sampler is lost."""
        ...

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        """Log-probabilities of the completions' tokens at temperature 1 (whatever the sampling temperature), computed
        afresh from the weights that the sampler has: nothing comes from a cache."""
        ...

    def rest(self) -> None:
        """Nothing is sampled for a while: memory may be given back until the next call."""
        ...

    def take_over(self, policy: Policy, version: int) -> None:
        """From now on sample from this policy's present weights. Raises GeneratorError where they cannot be brought to
        the sampler."""
        ...

    def metrics(self) -> dict[str, float]:
        """What the sampler has to tell since the last call, by the metric's name (sampler/...); empty where there is
        nothing."""
        ...

    def close(self) -> None:
        """Free what the sampler holds; safe to call twice."""
        ...


def request_seed(run_seed: int, purpose: str, step: int, question_id: str, sample_index: int) -> int:
    """63 bits from a hash of what identifies the request: a resumed run needs no engine state to sample the same."""
    text = f"{run_seed}\x1f{purpose}\x1f{step}\x1f{question_id}\x1f{sample_index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
