"""Proof at run time that the policy which is trained is the one that samples.

On a few completions that the present version has just sampled, the log-probabilities that the sampler recorded are
compared with the trainer's and with the base's (rl/proof/distances.py), before anything trains on them. A run whose
sampler fails stops, and is told which side is wrong (rl/proof/diagnosis.py). Nothing of this draws random numbers or
changes the model's state.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self, TypeVar

import torch
from accelerate.utils import gather_object

from rewards.errors import UserError
from rl.collect import Collected
from rl.config import RunConfig
from rl.generate.protocol import Generator
from rl.generate.weight_sync import choose_sync
from rl.policy.policy import Policy
from rl.proof.diagnosis import Evidence, find_cause, fresh_logprobs, trainer_logprobs
from rl.proof.diagnosis_text import describe
from rl.proof.distances import Distances, distances, pooled
from rl.ranks import share_of_rank
from rl.records import Group, Prompt, PromptCompletion, Rollout

T = TypeVar("T")

MISMATCH_BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # nats, mean over tokens

UNMOVED_UPDATES = 10
"""Updates with a gradient after which a policy that still equals its base to the last bit is an error."""


class GeneratorMismatchError(UserError):
    """The sampler does not sample from the policy that is trained."""


def mismatch_bound(config: RunConfig, policy: Policy) -> float:
    return config.generator.max_mismatch or MISMATCH_BOUND[policy.dtype]


@dataclass(frozen=True, slots=True)
class ProofState:
    """is_owed: no version above 0 has been proven since the last proof that was due. num_updates: updates with a
    gradient, as far as they are of interest. Empty JSON, of a version that knew no proof, is the state of the start."""

    is_owed: bool = True
    num_updates: int = 0

    def to_json(self) -> dict[str, int | bool]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, int | bool]) -> Self:
        return cls(bool(value.get("is_owed", True)), int(value.get("num_updates", 0)))


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one rank has found."""

    distances: Distances
    num_completions: int


class Proof:
    """Due in the run's first step (does the sampler have the same model?), in the first one after an update, then every
    `generator.proof_every` steps; one that stays open, because the policy has moved too little, is repeated in each
    step until it is not.

    A run that goes on from a checkpoint is proven once more in its first step, without a trace in metrics or state: its
    metrics equal the uninterrupted run's."""

    def __init__(self, config: RunConfig, policy: Policy, generator: Generator, *, rank: int, num_ranks: int) -> None:
        self._config, self._policy, self._generator = config, policy, generator
        self._rank, self._num_ranks = rank, num_ranks
        self._bound = mismatch_bound(config, policy)
        self._way = choose_sync(config.generator, policy).way
        self._is_owed, self._num_updates = True, 0  # see ProofState
        self._is_resumed = False

    def state(self) -> ProofState:
        return ProofState(self._is_owed, self._num_updates)

    def resume(self, state: ProofState) -> None:
        """state: of the checkpoint."""
        self._is_owed, self._num_updates, self._is_resumed = state.is_owed, state.num_updates, True

    def note_update(self, metrics: Mapping[str, float]) -> None:
        """metrics: of the update that a step has made."""
        if metrics.get("optim/grad_norm", 0.0) > 0.0:
            self._num_updates = min(UNMOVED_UPDATES, self._num_updates + int(metrics["optim/updates"]))

    def check(self, step: int, version: int, collected: Collected) -> dict[str, float]:
        """The metrics of step `step`'s proof, empty where none is due or there is nothing to prove it on; collective
        over ranks.

        Raises GeneratorMismatchError, on every rank, where the sampler does not have version `version` of the
        policy."""
        every, is_resumed, self._is_resumed = self._config.generator.proof_every, self._is_resumed, False
        is_due = every > 0 and (step % every == 0 or (version > 0 and self._is_owed))
        if not is_due and not (every > 0 and is_resumed):
            return {}
        started = time.perf_counter()
        evidence = self._evidence(version, collected)
        of_ranks = self._gather(self._compare(evidence) if evidence is not None and evidence.pairs else None)
        findings = [finding for finding in of_ranks if finding is not None]
        if not findings:
            self._is_owed |= is_due
            return {}
        self._refuse_failed(step, version, evidence, of_ranks)
        total = pooled([finding.distances for finding in findings])
        if total.moved == 0.0 and self._num_updates >= UNMOVED_UPDATES:
            raise self._unmoved(step, version, total)
        if not is_due:
            return {}
        is_open = version > 0 and any(finding.distances.verdict(self._bound) == "open" for finding in findings)
        self._is_owed = is_open or version == 0
        values = {
            "agreement": total.agreement, "from_base": total.from_base, "moved": total.moved, "share": total.share,
            "inconclusive": float(is_open), "completions": float(sum(found.num_completions for found in findings))}
        return {f"proof/{name}": value for name, value in values.items() if value is not None} | {
            "proof_s": time.perf_counter() - started}

    def _evidence(self, version: int, collected: Collected) -> Evidence | None:
        """What this rank compares: completions that `version` has sampled in this step; where there are none (refilling
        left enough over, or the step before has sampled this one's), some of the batch, with the log-probabilities that
        the sampler computes by the weights that it has now.

        None where its weights are not those of `version`, alike on every rank."""
        num_each = max(1, self._config.generator.proof_completions // self._num_ranks)
        fresh = [found for scored in collected.sampled if (found := _sampled_by(version, scored.group)).rollouts]
        if fresh:
            chosen = spread(share_of_rank(fresh, self._rank, self._num_ranks), num_each)
            recorded = [value for _, rollout in chosen for value in rollout.logprobs]
            return Evidence(_pairs(chosen), torch.tensor(recorded), self._config.sampling.temperature)
        if self._generator.policy_version != version:
            return None
        batch = [scored.group for scored in collected.batch]
        pairs = _pairs(spread(share_of_rank(batch, self._rank, self._num_ranks), num_each))
        return Evidence(pairs, fresh_logprobs(self._generator, pairs), 1.0)

    def _compare(self, evidence: Evidence) -> _Finding:
        trainer_T, base_T = trainer_logprobs(
            self._policy, evidence.pairs, temperature=evidence.temperature,
            max_tokens=self._config.optim.micro_batch_tokens)
        return _Finding(distances(evidence.sampler_T, trainer_T, base_T), len(evidence.pairs))

    def _refuse_failed(
        self, step: int, version: int, evidence: Evidence | None, of_ranks: Sequence[_Finding | None]
    ) -> None:
        """Raise what the first rank that failed tells, on every rank, where one has failed; the others are named."""
        failed = [rank for rank, finding in enumerate(of_ranks)
                  if finding is not None and finding.distances.verdict(self._bound) in ("base", "other")]
        if not failed:
            return
        mine, cause = of_ranks[self._rank], None
        if self._rank in failed and evidence is not None and mine is not None:
            cause = find_cause(
                self._policy, self._generator, evidence, mine.distances, bound=self._bound,
                max_tokens=self._config.optim.micro_batch_tokens)
        told, finding = self._gather(cause)[failed[0]], of_ranks[failed[0]]
        assert told is not None and finding is not None
        found, words = finding.distances, describe(told, self._config, self._way, version=version)
        ranks = "" if self._num_ranks == 1 else f" (process {', '.join(map(str, failed))} of {self._num_ranks})"
        to_base = "" if found.from_base is None else (
            f", sampler and base {found.from_base:.3g}, trainer and base {found.moved:.3g}")
        raise GeneratorMismatchError(
            f"the sampler does not sample from version {version} of the policy{ranks}. Mean |difference| of their "
            f"log-probabilities over {found.num_tokens} tokens of {finding.num_completions} completions: sampler and "
            f"trainer {found.agreement:.3g} nats (at most {self._bound:g} expected){to_base}. {words}",
            where=f"step {step}")

    def _gather(self, mine: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        return gather_object([mine]) if self._num_ranks > 1 else [mine]

    def _unmoved(self, step: int, version: int, total: Distances) -> GeneratorMismatchError:
        return GeneratorMismatchError(
            f"version {version} of the policy equals its base to the last bit (mean |difference| of their "
            f"log-probabilities over {total.num_tokens} tokens is 0), after at least {UNMOVED_UPDATES} updates with a "
            "gradient. The trainer's side is wrong: the adapter takes no part in its forward, or the updates vanish "
            "in rounding. Check: that nothing has switched the adapter off (rl/policy/policy.py, "
            f"rl/policy/fused_lora.py); optim.lr={self._config.optim.lr:g} in {self._policy.dtype}",
            where=f"step {step}", remedy="mend that, or a higher optim.lr, in a new run")


def spread(groups: Sequence[Group], count: int) -> list[tuple[Prompt, Rollout]]:
    """At most `count` completions: of evenly spaced groups where there are more groups than that, else of every group
    in turn; the first of one group, the second of the next. Depends on nothing but the groups."""
    chosen: list[tuple[Prompt, Rollout]] = []
    for turn in range(max((len(group.rollouts) for group in groups), default=0)):
        wanted = min(count - len(chosen), len(groups))
        for index in (position * len(groups) // wanted for position in range(wanted)):
            rollouts = groups[index].rollouts
            if turn < len(rollouts):
                chosen.append((groups[index].prompt, rollouts[(index + turn) % len(rollouts)]))
    return chosen


def _sampled_by(version: int, group: Group) -> Group:
    return replace(group, rollouts=tuple(rollout for rollout in group.rollouts if rollout.policy_version == version))


def _pairs(chosen: Sequence[tuple[Prompt, Rollout]]) -> list[PromptCompletion]:
    return [(prompt.token_ids, rollout.token_ids) for prompt, rollout in chosen]
