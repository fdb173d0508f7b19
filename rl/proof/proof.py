"""Proof at run time that the policy which is trained is the one that samples.

On a few completions that the present version has just sampled, the log-probabilities that the sampler recorded are
compared with the trainer's and with the base's (rl/proof/distances.py), before anything trains on them. A run whose
sampler fails stops, and is told which side is wrong (rl/proof/diagnosis.py). Nothing of this draws random numbers or
changes the model's state.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Self, TypeVar

import torch

from rewards.errors import UserError
from rl.collect import Collected
from rl.config import RunConfig
from rl.generate.protocol import Generator
from rl.generate.weight_sync import choose_sync
from rl.policy.policy import Policy, dtype_name
from rl.policy.rounding import MOST, surviving_share
from rl.proof.diagnosis import Evidence, find_cause, fresh_logprobs, trainer_logprobs
from rl.proof.diagnosis_text import describe
from rl.proof.distances import Distances, Judgement, Verdict, distances, pooled
from rl.ranks import gather, share_of_rank
from rl.records import Group, Prompt, PromptCompletion, Rollout

T = TypeVar("T")

MISMATCH_BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # nats, mean over tokens

UNMOVED_UPDATES = 10
"""Updates with a gradient after which a policy that still equals its base to the last bit is an error."""

SECOND_LOOK = 4
"""Times as many completions for a second look, where the first one fails or tells too little."""

SHOWS_SIDE = 0.75
"""A merge in bfloat16 of which less survives (rl/policy/rounding.py) is near the base by rounding alone: it is on no
side."""


class GeneratorMismatchError(UserError):
    """The sampler does not sample from the policy that is trained."""


def mismatch_bound(config: RunConfig, policy: Policy) -> float:
    return config.generator.max_mismatch or MISMATCH_BOUND[policy.dtype]


@dataclass(frozen=True, slots=True)
class ProofState:
    """is_owed: no version above 0 has been proven since the last proof that was due. num_updates: updates with a
    gradient, as far as they are of interest. num_open: proofs that stayed open since then. next_step: the first one in
    which what is owed is tried again. Empty JSON, of a version that knew no proof, is the state of the start."""

    is_owed: bool = True
    num_updates: int = 0
    num_open: int = 0
    next_step: int = 0

    def to_json(self) -> dict[str, int | bool]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, int | bool]) -> Self:
        """Of an earlier version too, which had fewer of them."""
        return cls(**{field.name: type(field.default)(value[field.name])  # type: ignore[misc]
                      for field in fields(cls) if field.name in value})


@dataclass(frozen=True, slots=True)
class _Finding:
    """What one rank has found."""

    distances: Distances
    num_completions: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class _Look:
    """evidence: this rank's, None where no rank has any. of_ranks: what each rank found, None where it had no share."""

    evidence: Evidence | None
    of_ranks: list[_Finding | None]

    @property
    def findings(self) -> list[_Finding]:
        return [finding for finding in self.of_ranks if finding is not None]

    @property
    def failed_ranks(self) -> list[int]:
        return [rank for rank, finding in enumerate(self.of_ranks)
                if finding is not None and finding.verdict in ("base", "other")]

    @property
    def is_open(self) -> bool:
        return any(finding.verdict == "open" for finding in self.findings)


class Proof:
    """Due in the run's first step (does the sampler have the same model?), in the first one after an update, then every
    `generator.proof_every` steps; one that stays open, because the policy has moved too little, is repeated after one
    step, after two more, after four more, and so on, and so at most log2(proof_every) times before the next that is
    due. What fails, or stays open, is looked at a second time, on more completions: nothing stops a run on one look.

    A run that goes on from a checkpoint is proven once more in its first step, without a trace in metrics or state: its
    metrics equal the uninterrupted run's."""

    def __init__(self, config: RunConfig, policy: Policy, generator: Generator, *, rank: int, num_ranks: int) -> None:
        self._config, self._policy, self._generator = config, policy, generator
        self._rank, self._num_ranks = rank, num_ranks
        self._bound = mismatch_bound(config, policy)
        self._way = choose_sync(config.generator, policy).way
        self._state = ProofState()
        self._is_resumed = False
        self._survives: float | None = None  # of the adapter's change in a merge that rounds; None: nothing is rounded
        self._has_warned = False

    def state(self) -> ProofState:
        return self._state

    def resume(self, state: ProofState) -> None:
        """state: of the checkpoint."""
        self._state, self._is_resumed = state, True

    def note_update(self, num_updates: int, grad_norm: float | None) -> None:
        """Of what a step has made; grad_norm: the mean of its updates, None where there was none."""
        if grad_norm is not None and grad_norm > 0.0:
            self._state = replace(
                self._state, num_updates=min(UNMOVED_UPDATES, self._state.num_updates + num_updates))

    def check(self, step: int, version: int, collected: Collected) -> dict[str, float]:
        """The metrics of step `step`'s proof, empty where none is due or there is nothing to prove it on; collective
        over ranks.

        Raises GeneratorMismatchError, on every rank, where the sampler does not have version `version` of the
        policy."""
        every, is_resumed, self._is_resumed = self._config.generator.proof_every, self._is_resumed, False
        is_due = every > 0 and (step % every == 0 or (
            version > 0 and self._state.is_owed and step >= self._state.next_step))
        if not is_due and not (every > 0 and is_resumed):
            return {}
        started = time.perf_counter()
        self._measure_rounding(version)
        look = self._look(version, collected, self._config.generator.proof_completions)
        if look.failed_ranks or (look.is_open and version > 0):
            look = self._look(version, collected, SECOND_LOOK * self._config.generator.proof_completions)
        if not look.findings:
            self._state = replace(self._state, is_owed=self._state.is_owed or is_due)
            return {}
        self._refuse_failed(step, version, look)
        total = pooled([finding.distances for finding in look.findings])
        self._refuse_unmoved(step, version, total)
        if not is_due:
            return {}
        is_open = version > 0 and look.is_open
        self._note_verdict(step, version, is_open=is_open)
        values = {
            "agreement": total.agreement, "from_base": total.from_base, "moved": total.moved, "share": total.share,
            "survives": self._survives, "inconclusive": float(is_open),
            "completions": float(sum(found.num_completions for found in look.findings))}
        return {f"proof/{name}": value for name, value in values.items() if value is not None} | {
            "proof_s": time.perf_counter() - started}

    def _note_verdict(self, step: int, version: int, *, is_open: bool) -> None:
        every, num_open = self._config.generator.proof_every, self._state.num_open + 1 if is_open else 0
        # Where the pause would reach the next proof that is due anyway, that one comes first.
        pause = min(2 ** min(num_open - 1, 30), every - step % every) if is_open else 0
        self._state = replace(
            self._state, is_owed=is_open or version == 0, num_open=num_open, next_step=step + pause)

    def _measure_rounding(self, version: int) -> None:
        """Of a merge that the user has asked for in bfloat16."""
        if self._way != "merge" or not self._policy.is_adapter or self._policy.dtype == torch.float32 or version == 0:
            return
        self._survives = surviving_share(self._policy)
        if self._survives < MOST and not self._has_warned and self._rank == 0:
            self._has_warned = True
            warnings.warn(
                f"generator.sync=merge: of what version {version} has changed, {self._survives:.0%} survives rounding "
                f"to {dtype_name(self._policy.dtype)}, so that the sampler is behind the policy by the rest, and while "
                f"that is below {SHOWS_SIDE:.0%} the proof cannot tell the policy from its base. Remedy: "
                "generator.sync=auto (the adapter beside its base), in a new run", stacklevel=2)

    def _look(self, version: int, collected: Collected, num_completions: int) -> _Look:
        evidence = self._evidence(version, collected, max(1, num_completions // self._num_ranks))
        mine = self._compare(evidence) if evidence is not None and evidence.pairs else None
        return _Look(evidence, self._gather(mine))

    def _evidence(self, version: int, collected: Collected, num_each: int) -> Evidence | None:
        """What this rank compares: completions that `version` has sampled in this step; where there are none (refilling
        left enough over, or the step before has sampled this one's), some of the batch, with the log-probabilities that
        the sampler computes by the weights that it has now.

        None where its weights are not those of `version`, alike on every rank."""
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

    @property
    def _judgement(self) -> Judgement:
        return Judgement(self._bound, judges_side=self._survives is None or self._survives >= SHOWS_SIDE)

    def _compare(self, evidence: Evidence) -> _Finding:
        trainer_T, base_T = trainer_logprobs(
            self._policy, evidence.pairs, temperature=evidence.temperature,
            max_tokens=self._config.optim.micro_batch_tokens)
        found = distances(evidence.sampler_T, trainer_T, base_T)
        return _Finding(found, len(evidence.pairs), found.verdict(self._judgement))

    def _refuse_failed(self, step: int, version: int, look: _Look) -> None:
        """Raise what the first rank that failed tells, on every rank, where one has failed; the others are named."""
        failed, evidence = look.failed_ranks, look.evidence
        if not failed:
            return
        mine, cause = look.of_ranks[self._rank], None
        if self._rank in failed and evidence is not None and mine is not None:
            cause = find_cause(
                self._policy, self._generator, evidence, mine.distances, self._judgement,
                max_tokens=self._config.optim.micro_batch_tokens)
        told, finding = self._gather(cause)[failed[0]], look.of_ranks[failed[0]]
        assert told is not None and finding is not None
        found, words = finding.distances, describe(told, self._config, self._way, version=version)
        ranks = "" if self._num_ranks == 1 else f" (process {', '.join(map(str, failed))} of {self._num_ranks})"
        to_base = "" if found.from_base is None else (
            f", sampler and base {found.from_base:.3g}, trainer and base {found.moved:.3g}; at "
            f"{found.num_nearer_base} tokens the sampler is nearer to the base, at {found.num_nearer_policy} to the "
            "trainer")
        raise GeneratorMismatchError(
            f"the sampler does not sample from version {version} of the policy{ranks}. Mean |difference| of their "
            f"log-probabilities over {found.num_tokens} tokens of {finding.num_completions} completions: sampler and "
            f"trainer {found.agreement:.3g} nats (at most {self._bound:g} expected){to_base}. {words}",
            where=f"step {step}")

    def _refuse_unmoved(self, step: int, version: int, total: Distances) -> None:
        """Raise where updates do not show in the trainer's own log-probabilities; in bfloat16 only where they are
        large enough to show."""
        if total.moved != 0.0 or self._state.num_updates < UNMOVED_UPDATES:
            return
        if self._policy.dtype != torch.float32 and surviving_share(self._policy) < 0.5:
            return
        raise self._unmoved(step, version, total)

    def _gather(self, mine: T) -> list[T]:
        """Every rank's value, in the order of the ranks."""
        return gather(mine, self._num_ranks, "prove its sampler")

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
