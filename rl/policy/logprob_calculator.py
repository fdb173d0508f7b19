"""Texts and rollouts -> token log-probabilities and statistics under the present policy, without a gradient.

Rewards with `needs_policy` (rewards/contract.py) receive `LogprobCalculator.after(prompt)`, and rollouts of a sampler
that tells no token statistics get them by `with_statistics`; the proof of the sampler, teachers and the warm-up's
held-out loss ask `logprobs`. Everything runs through rl/policy/forward.py, hence at its temperature, in passes of at
most `max_tokens` tokens (rl/policy/row_plan.py); equal pairs are computed once. Each rank computes its own share.

A text is tokenised together with what precedes it in the completion where that leaves the preceding tokens as they are,
and apart from it where a token would straddle the boundary. Neither needs to be the split that was sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rl.policy.forward import PolicyForward
from rl.policy.logprobs import TokenLogprobs
from rl.policy.policy import Policy
from rl.policy.row_plan import plan_rows
from rl.policy.rows import ModelRows
from rl.records import Group, Prompt, PromptCompletion, Rollout

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PromptPolicy:
    """rewards.contract.PolicyLike: the policy after one question's prompt."""

    calculator: LogprobCalculator
    prompt: Prompt

    def logprobs(self, continuations: Sequence[tuple[str, str]]) -> list[list[float]]:
        pairs = [self.calculator.tokenized(self.prompt, beginning, text) for beginning, text in continuations]
        return [found.logprobs_N.tolist() for found in self.calculator.logprobs(pairs)]


class LogprobCalculator:
    """max_tokens: of one forward pass, padding included; a longer pair gets one of its own."""

    def __init__(self, policy: Policy, forward: PolicyForward, *, max_tokens: int) -> None:
        self._policy, self._forward, self._max_tokens = policy, forward, max_tokens
        self._context: int | None = getattr(policy.causal_lm.config.get_text_config(), "max_position_embeddings", None)

    def after(self, prompt: Prompt) -> PromptPolicy:
        """The policy as a reward may ask it about one question."""
        return PromptPolicy(self, prompt)

    def with_statistics(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with entropies and self-certainties in every rollout; rollouts that have them already are left as
        they are."""
        pairs = [(group.prompt.token_ids, rollout.token_ids)
                 for group in groups for rollout in group.rollouts if rollout.entropies is None]
        if not pairs:
            return list(groups)
        computed = iter(self.logprobs(pairs, self_certainty=True))

        def complete(rollout: Rollout) -> Rollout:
            if rollout.entropies is not None:
                return rollout
            found = next(computed)
            assert found.self_certainties_N is not None
            return replace(
                rollout, entropies=tuple(found.entropies_N.tolist()),
                self_certainties=tuple(found.self_certainties_N.tolist()))

        return [replace(group, rollouts=tuple(map(complete, group.rollouts))) for group in groups]

    def tokenized(self, prompt: Prompt, beginning: str, text: str) -> PromptCompletion:
        """Token ids of prompt + beginning, and those of `text` after it. Raises ValueError where `text` has no tokens,
        or there is no room for it in the model's context."""
        beginning = beginning.removeprefix(prompt.assistant_prefix)  # the prompt ends with it
        before, both = self._encode(beginning), self._encode(beginning + text)
        asked = both[len(before):] if both[:len(before)] == before else self._encode(text)
        if not asked:
            raise ValueError(f"the text {text[:80]!r}, whose log-probability is asked for, has no tokens")
        context = (*prompt.token_ids, *before)
        if self._context is not None and len(context) + len(asked) > self._context:
            raise ValueError(
                f"prompt, reasoning and {text[:80]!r} are {len(context) + len(asked)} tokens, above the model's "
                f"context of {self._context}; a lower sampling.max_completion_tokens leaves room")
        return context, asked

    def logprobs(self, pairs: Sequence[PromptCompletion], *, self_certainty: bool = False) -> list[TokenLogprobs]:
        """For each pair the [T] log-probabilities and entropies of its completion's tokens, on the CPU;
        self-certainties where asked for."""
        def compute(rows: ModelRows, lengths: list[int]) -> list[TokenLogprobs]:
            result = self._forward(rows, self_certainty=self_certainty)
            certainties = result.self_certainties_N
            return list(map(
                TokenLogprobs, result.logprobs_N.cpu().split(lengths), result.entropies_N.cpu().split(lengths),
                [None] * len(lengths) if certainties is None else certainties.cpu().split(lengths)))

        return self._in_batches(pairs, compute)

    def reference_logprobs(self, pairs: Sequence[PromptCompletion]) -> list[Tensor]:
        """For each pair the [T] log-probabilities of its completion's tokens under the policy's reference
        (`Policy.has_reference`), on the CPU."""
        return self._in_batches(
            pairs, lambda rows, lengths: list(self._forward.reference(rows).cpu().split(lengths)))

    @torch.no_grad()
    def _in_batches(
        self, pairs: Sequence[PromptCompletion], compute: Callable[[ModelRows, list[int]], list[Result]]
    ) -> list[Result]:
        found: dict[PromptCompletion, Result] = {}
        model = self._policy.model
        was_training = model.training
        model.eval()  # the sampler knows no dropout
        try:
            for part in plan_rows(pairs, max_tokens=self._max_tokens, layout=self._forward.layout):
                batch = [pairs[number] for number in part.members]
                lengths = [len(completion) for _, completion in batch]
                found |= zip(batch, compute(self._forward.rows(batch), lengths), strict=True)
        finally:
            model.train(was_training)
        return [found[pair] for pair in pairs]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._policy.tokenizer(text, add_special_tokens=False)["input_ids"])


def unbatched_logprobs(model: PreTrainedModel, pair: PromptCompletion) -> Tensor:
    """[T] log-probabilities of the completion's tokens at temperature 1, by the model's own forward on this pair
    alone."""
    prompt, completion = pair
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1).logits[0, :-1]
    return torch.log_softmax(logits.float(), dim=-1).gather(1, ids[0, -len(completion):, None]).squeeze(1)
