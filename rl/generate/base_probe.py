"""Does a server serve the trainer's base model? The log-probabilities of one short text tell, before anything is
sampled.

rl/proof/proof.py finds another model too, in the first step and with the reason; this names the server, and costs no
step. Only where versions travel as adapters: merged weights replace what a server served before, which may be an
earlier run's policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rl.policy.forward import PolicyForward
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.policy import Policy
from rl.records import PromptCompletion

MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class BaseProbe:
    """pair: the text's first token, and the others. logprobs: of the others under the trainer's base at temperature 1.
    bound: nats, on the mean |difference|."""

    pair: PromptCompletion
    logprobs: tuple[float, ...]
    bound: float

    def difference(self, found: Sequence[float]) -> str | None:
        """How `found`, the server's log-probabilities of the same tokens, differ from the base's; None where they
        agree."""
        count = len(self.logprobs)
        distance = sum(abs(a - b) for a, b in zip(found, self.logprobs, strict=True)) / count
        if distance <= self.bound:  # NaN is no agreement
            return None
        return (
            f"the mean log-probability of the same {count} tokens is {sum(found) / count:.5g} there and "
            f"{sum(self.logprobs) / count:.5g} with the trainer's base; their mean |difference| is {distance:.3g} "
            f"nats, at most {self.bound:g} expected")


def measure_base(policy: Policy, token_ids: Sequence[int], *, bound: float) -> BaseProbe | None:
    """The probe of the last tokens of a text, such as a prompt; None where it has a single token. To be called before
    anything trains."""
    ids = tuple(token_ids[-MAX_TOKENS:])
    if len(ids) < 2:
        return None
    pair = ids[:1], ids[1:]
    calculator = LogprobCalculator(policy, PolicyForward(policy, temperature=1.0), max_tokens=MAX_TOKENS)
    [logprobs_N] = (
        calculator.reference_logprobs([pair]) if policy.has_reference
        else [found.logprobs_N for found in calculator.logprobs([pair])])
    return BaseProbe(pair, tuple(logprobs_N.tolist()), bound)
