"""One step's questions -> sampled, scored and selected groups.

Under `selection.mode: refill` further questions are sampled until the batch is full, at most `max_refills` rounds;
groups beyond a full batch are kept for the next step, which then trains them with the importance ratio of the version
that sampled them.

Finished groups are scored while others still decode, where that is safe. With `generator.max_staleness: 1` the first
round of the next step is sampled ahead, in a thread, while the present step trains. It begins when the present step's
groups are complete: the sampler never has two things to do, refilling takes the newest version, and how many questions
to draw is known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from rl.config import RunConfig
from rl.generate.protocol import Generator, Request, request_seed, sampling_parameters
from rl.policy.moving_average import MovingAverage
from rl.prefetch import Prefetch
from rl.questions.inputs import Inputs
from rl.questions.order import OrderState, QuestionOrder
from rl.ranks import gather_shares, meet, share_of_rank
from rl.records import Group, Prompt, ScoredGroup
from rl.records_json import scored_group_from_json, scored_group_to_json
from rl.runs.stopwatch import Stopwatch
from rl.scoring.rewarding import AskedPolicy, score_mixed
from rl.scoring.thread import ScoringThread
from rl.selection import Selection, select


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, this rank's. generate_s: sampling. reward_s: scoring after sampling had ended. reward_overlapped_s:
    scoring during it."""

    generate_s: float = 0.0
    reward_s: float = 0.0
    reward_overlapped_s: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(self.generate_s + other.generate_s, self.reward_s + other.reward_s,
                     self.reward_overlapped_s + other.reward_overlapped_s)


@dataclass(frozen=True, slots=True)
class Round:
    """The scored groups of one round of sampling, over all ranks, in the order of the draw."""

    groups: tuple[ScoredGroup, ...]
    times: Times

    def to_json(self) -> dict[str, Any]:
        return {"groups": [scored_group_to_json(group) for group in self.groups], "times": asdict(self.times)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(tuple(map(scored_group_from_json, value["groups"])), Times(**value["times"]))


@dataclass(frozen=True, slots=True)
class Collected:
    """sampled: every group sampled for this step, over all ranks, in the order of the draw. selection: which of those
    were kept and refused. batch: the groups that train now: those left over by the step before, then newly kept
    ones."""

    sampled: tuple[ScoredGroup, ...]
    selection: Selection
    batch: tuple[ScoredGroup, ...]
    num_refills: int
    times: Times = Times()


@dataclass(frozen=True, slots=True)
class CollectorState:
    """What decides the groups of the next step. surplus: groups left over for it. ahead: its first round, where that
    was sampled ahead; otherwise None. anchors: their own order; None where there are none."""

    order: OrderState
    surplus: tuple[ScoredGroup, ...]
    ahead: Round | None
    anchors: OrderState | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "order": self.order.to_json(), "surplus": [scored_group_to_json(group) for group in self.surplus],
            "ahead": None if self.ahead is None else self.ahead.to_json(),
            **({} if self.anchors is None else {"anchors": self.anchors.to_json()})}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of to_json. Raises: KeyError, TypeError or ValueError where it is not one."""
        ahead, anchors = value.get("ahead"), value.get("anchors")
        return cls(OrderState.from_json(value["order"]), tuple(map(scored_group_from_json, value.get("surplus", ()))),
                   None if ahead is None else Round.from_json(ahead),
                   None if anchors is None else OrderState.from_json(anchors))


@dataclass(frozen=True, slots=True)
class _Share:
    """What this rank sampled of a round. scored: the same groups, where they were scored as they came."""

    groups: Sequence[Group]
    scored: Sequence[ScoredGroup] | None
    times: Times


class Collector:
    """Draws questions in order, anchors in an order of their own, and returns groups; the same on every rank. State:
    the orders, the surplus, the round sampled ahead."""

    def __init__(
        self, config: RunConfig, inputs: Inputs, generator: Generator, *, rank: int, num_ranks: int,
        policy: AskedPolicy | None = None, average: MovingAverage | None = None,
    ) -> None:
        self.order = QuestionOrder(len(inputs.prompts), seed=config.seed, shuffle=config.data.shuffle)
        self._anchors, self._anchor_rewards = inputs.anchors, inputs.anchor_rewards
        self._anchor_order = (
            QuestionOrder(len(self._anchors), seed=config.seed, shuffle=True) if self._anchors else None)
        self.surplus: tuple[ScoredGroup, ...] = ()
        self._ahead: Round | None = None
        self._prefetch: Prefetch[_Share] = Prefetch()
        # The state before a draw whose groups are not there yet, or not yet trained on.
        self._repeatable: CollectorState | None = None
        self._config = config
        self._prompts, self._rewards = inputs.prompts, inputs.rewards
        self._each = (
            [section.weight for section in config.rewards] if config.advantage.normalise == "each" else None)
        self._generator = generator
        self._policy, self._average = policy, average
        self._rank, self._num_ranks = rank, num_ranks
        self._parameters = replace(sampling_parameters(config.sampling, inputs.stop_strings, inputs.turn_end_ids),
                                   token_statistics=inputs.rewards.needs_token_statistics)

    def collect(self, step: int) -> Collected:
        """The groups of training step `step`; collective over ranks. Nothing may be in flight (`settle`).

        Until `move_on` the state stays that from which the same groups are collected again."""
        assert not self.in_flight
        self._repeatable = self._present()
        wanted, selection_config = self._config.sampling.questions_per_step, self._config.selection
        refills = selection_config.max_refills if selection_config.mode == "refill" else 0
        selection, times, num_rounds = Selection((), ()), Times(), 0
        sampled: tuple[ScoredGroup, ...] = ()
        missing = wanted - len(self.surplus)
        while missing > 0 and num_rounds <= refills:
            if self._ahead is not None:
                found, self._ahead = self._ahead, None
            else:
                found = self._complete(self._sample(self._draw(self._round_size(missing, selection), step, num_rounds)))
            sampled += found.groups
            selection += select(
                found.groups, selection_config.low, selection_config.high, keep_equal=self._config.teacher is not None,
                each=self._each, min_votes=selection_config.min_votes,
                unanswered=selection_config.unanswered)
            times, num_rounds = times + found.times, num_rounds + 1
            missing = wanted - len(self.surplus) - len(selection.kept)
        available = self.surplus + selection.kept
        self.surplus = available[wanted:]
        return Collected(sampled, selection, available[:wanted], max(0, num_rounds - 1), times)

    def move_on(self) -> None:
        """The collected groups are now trained on: the state is that of the next step."""
        self._repeatable = None

    @property
    def in_flight(self) -> bool:
        """Whether groups of a later step are being sampled: the sampler's weights must not change then."""
        return self._prefetch.in_flight

    def sample_ahead(self, step: int) -> None:
        """Begin with the first round of training step `step`, by the version that the sampler has now."""
        missing = self._config.sampling.questions_per_step - len(self.surplus)
        if missing > 0:
            self._repeatable = self._present()
            requests = self._draw(self._round_size(missing, Selection((), ())), step, 0)
            self._prefetch.start(lambda: self._sample(requests))

    def settle(self, poll: Callable[[], None] = lambda: None) -> None:
        """Wait for what is sampled ahead; nothing where nothing is. Collective over ranks. poll: called while
        waiting."""
        if self.in_flight:
            self._ahead = self._complete(self._prefetch.join(poll))
            self._repeatable = None

    def state(self) -> CollectorState:
        """From which the next step samples what it would have sampled; in the middle of a step, the state before it."""
        return self._repeatable or self._present()

    def _present(self) -> CollectorState:
        anchors = None if self._anchor_order is None else self._anchor_order.state()
        return CollectorState(self.order.state(), self.surplus, self._ahead, anchors)

    def load_state(self, state: CollectorState) -> None:
        self.order.load_state(state.order)
        if self._anchor_order is not None and state.anchors is not None:
            self._anchor_order.load_state(state.anchors)
        self.surplus, self._ahead, self._repeatable = state.surplus, state.ahead, None

    def _round_size(self, missing: int, selection: Selection) -> int:
        """A whole batch; under refill as many questions as fill it at this step's rate of acceptance, at most a whole
        batch."""
        wanted = self._config.sampling.questions_per_step
        if self._config.selection.mode != "refill":
            return wanted
        total = len(selection.kept) + len(selection.refused)
        rate = len(selection.kept) / total if total else 1.0
        return min(wanted, math.ceil(missing / max(rate, missing / wanted)))

    def _draw(self, num_questions: int, step: int, round_number: int) -> list[Request]:
        """This rank's requests for the next questions in the order, anchors among those of a step's first round."""
        prompts = self._next_prompts(num_questions, with_anchors=round_number == 0)
        return [
            Request(
                prompt,
                tuple(
                    request_seed(self._config.seed, purpose, step, prompt.question.id, i)
                    for i in range(self._config.sampling.group_size)))
            for prompt, purpose in share_of_rank(_with_purpose(prompts, round_number), self._rank, self._num_ranks)
        ]

    def _next_prompts(self, num_questions: int, *, with_anchors: bool) -> list[Prompt]:
        """Anchors stand at equal distances, such that no minibatch has all of them."""
        anchors: list[Prompt] = []
        if with_anchors and self._anchor_order is not None and self._config.anchors is not None:
            count = min(self._config.anchors.mixed_in, num_questions)
            anchors = [self._anchors[i] for i in self._anchor_order.next(count)]
        num_others = num_questions - len(anchors)
        prompts = [self._prompts[i] for i in self.order.next(num_others)] if num_others else []
        for number, anchor in enumerate(anchors):
            prompts.insert(number * num_questions // len(anchors), anchor)
        return prompts

    def _score(self, groups: Sequence[Group], policy: AskedPolicy | None = None) -> list[ScoredGroup]:
        return score_mixed(self._rewards, self._anchor_rewards, groups, policy)

    @property
    def _any_thread(self) -> bool:
        return self._rewards.any_thread and (self._anchor_rewards is None or self._anchor_rewards.any_thread)

    def _sample(self, requests: Sequence[Request]) -> _Share:
        """In any thread: samples, and scores meanwhile where that is safe and worth while."""
        watch = Stopwatch()
        if self._average is not None and self._config.votes is not None:
            with watch("generate_s"):
                votes = self._votes(requests, self._average, self._config.votes.samples)
                groups = self._generator.generate(requests, self._parameters)
            return _Share([_with_votes(group, votes.get(i)) for i, group in enumerate(groups)], None,
                          Times(**watch.seconds))
        if not self._any_thread or self._ends_at_once(requests):
            with watch("generate_s"):
                groups = self._generator.generate(requests, self._parameters)
            return _Share(groups, None, Times(**watch.seconds))
        with ScoringThread(self._score) as scoring:
            with watch("generate_s"):
                groups = self._generator.generate(requests, self._parameters, scoring.take)
            overlapped_s = scoring.busy_s()
            with watch("reward_s"):
                found = scoring.results()
        scored = [found[i] for i in range(len(groups))]
        assert len(found) == len(groups) and all(s.group == g for s, g in zip(scored, groups, strict=True))
        return _Share(groups, scored, Times(reward_overlapped_s=overlapped_s, **watch.seconds))

    def _votes(
        self, requests: Sequence[Request], average: MovingAverage, samples: int
    ) -> Mapping[int, Group]:
        """Position of a request -> what the average answers, where its question has no label. The sampler has the
        policy before and after."""
        asked = {
            number: Request(request.prompt, tuple(
                request_seed(self._config.seed, "vote", request.seeds[0], request.prompt.question.id, i)
                for i in range(samples)))
            for number, request in enumerate(requests) if not request.prompt.question.is_anchor}
        version = self._generator.policy_version
        with average.in_place():
            self._generator.take_over(average.policy, version)
            groups = self._generator.generate(
                list(asked.values()), replace(self._parameters, token_statistics=False))
        # Servers are everybody's: another rank's votes may be under way there.
        meet("sample the votes", self._num_ranks)
        self._generator.take_over(average.policy, version)
        return dict(zip(asked, groups, strict=True))

    def _complete(self, share: _Share) -> Round:
        """In the main thread: scores what is not scored yet, and brings the ranks' shares together."""
        watch, scored = Stopwatch(), share.scored
        if scored is None:
            with watch("reward_s"):
                scored = self._score(share.groups, self._policy)
        groups = gather_shares(scored, self._num_ranks, "sample and score its share of the groups")
        return Round(tuple(groups), share.times + Times(**watch.seconds))

    def _ends_at_once(self, requests: Sequence[Request]) -> bool:
        """The embedded sampler decodes as many sequences together as it may, and tells of none before the last of them
        has ended."""
        generator = self._config.generator
        return (
            generator.backend == "transformers"
            and sum(len(request.seeds) for request in requests) <= generator.max_sequences)


def _with_votes(group: Group, votes: Group | None) -> Group:
    if votes is None:
        return group
    return replace(group, votes=tuple(rollout.text for rollout in votes.rollouts),
                   num_vote_tokens=votes.num_sampled_tokens)


def _with_purpose(prompts: Sequence[Prompt], round_number: int) -> list[tuple[Prompt, str]]:
    """What enters the seeds beside step and question: the round, and how often the question came before in it (a step
    that asks for more questions than there are draws some again, and must not sample the same completions)."""
    seen: Counter[str] = Counter()
    pairs = []
    for prompt in prompts:
        again = f"-{seen[prompt.question.id]}" if seen[prompt.question.id] else ""
        pairs.append((prompt, f"train-{round_number}{again}"))
        seen[prompt.question.id] += 1
    return pairs
