"""Scoring beside decoding: the same groups, nothing waited for that need not be, and only rewards that stand it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards.contract import RewardError
from rl.collect import Collected, Collector, Times
from rl.errors import ConfigError
from rl.generate.protocol import Finished, Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.questions.inputs import read_inputs
from rl.questions.order import OrderState
from rl.records import Group, ScoredGroup
from rl.scoring.rewarding import build_rewards, score_groups
from rl.scoring.thread import ScoringThread
from tests.reference.sampling_ahead import AHEAD
from tests.reference.scored_groups import scored_group
from tests.reference.tiny_run import tiny_config, tiny_policy

torch.set_num_threads(1)
REWARD = '''
import threading
import time

threads, sizes = [], []

def slow(*, question, completions, **_):
    threads.append(threading.current_thread() is threading.main_thread())
    time.sleep(0.05)
    return [float(len(text)) for text in completions]

async def waiting(*, question, completions, **_):
    return slow(question=question, completions=completions)

def raising(*, question, completions, **_):
    raise KeyError(question)

def flat(completions, **_):
    threads.append(threading.current_thread() is threading.main_thread())
    sizes.append(len(completions))
    return [float(len(text)) for text in completions]

slow.any_thread = waiting.any_thread = raising.any_thread = flat.any_thread = True

def alarmed(*, question, completions, **_):
    return slow(question=question, completions=completions)
'''
SEPARATELY = "generator.max_sequences=4"  # four questions x four completions: a question after the other


class SlowGenerator(TransformersGenerator):
    """Takes at least so many seconds for each group."""

    seconds = 0.1

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        def tell(index: int, group: Group) -> None:
            if finished is not None:
                finished(index, group)
            time.sleep(self.seconds)

        return super().generate(requests, parameters, tell)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "slow_rewards.py").write_text(REWARD)
    return tmp_path / "slow_rewards.py"


def collector(policy: Policy, *overrides: str) -> tuple[Collector, dict[str, list[object]]]:
    """A collector with a slow generator, and what the reward file's functions have noted."""
    config = tiny_config("sampling.max_completion_tokens=4", *overrides)
    rewards = build_rewards(config.rewards, config.sampling.max_completion_tokens)
    generator = SlowGenerator(policy, merge=False, max_sequences=config.generator.max_sequences)
    noted = rewards._terms[0][1].function.__globals__
    return (
        Collector(
            config, replace(read_inputs(config), rewards=rewards, stop_strings=()), generator, rank=0, num_ranks=1),
        noted)


def without_times(collected: Collected) -> Collected:
    return replace(collected, times=Times())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slow", "waiting"])
def test_finished_groups_are_scored_while_others_decode(policy: Policy, file: Path, name: str) -> None:
    """Four groups, one each 0.1 s, 0.05 s to score: only the last one could be waited for."""
    beside, noted = collector(policy, f"rewards.0.use={file}:{name}", SEPARATELY)
    found = beside.collect(0)
    assert noted["threads"] == [False] * 4
    assert found.times.reward_overlapped_s > 0.15 and found.times.reward_s < 0.1
    assert found.times.generate_s >= 0.4
    after, _ = collector(policy, f"rewards.0.use={file}:alarmed", SEPARATELY, f"rewards.0.name={name}")
    expected = after.collect(0)
    assert without_times(found) == without_times(expected) and len(found.sampled) == 4
    assert expected.times.reward_s >= 0.2 and expected.times.reward_overlapped_s == 0


def test_a_function_that_does_not_say_so_is_called_in_the_main_thread(policy: Policy, file: Path) -> None:
    """Time-outs by alarm work nowhere else."""
    sampler, noted = collector(policy, f"rewards.0.use={file}:alarmed", SEPARATELY)
    sampler.collect(0)
    assert noted["threads"] == [True] * 4


def test_a_flat_function_sees_the_whole_batch(policy: Policy, file: Path) -> None:
    sampler, noted = collector(policy, f"rewards.0.use={file}:flat", "rewards.0.style=trl", SEPARATELY)
    sampler.collect(0)
    assert noted["threads"] == [True] and noted["sizes"] == [16]


def test_where_all_groups_end_together_no_thread_is_started(policy: Policy, file: Path) -> None:
    sampler, noted = collector(policy, f"rewards.0.use={file}:slow", "generator.max_sequences=16")
    sampler.collect(0)
    assert noted["threads"] == [True] * 4


@pytest.mark.parametrize(
    "use", ["rewards.confidence:self_certainty", "rewards.reference_likelihood:reference_likelihood"]
)
def test_rewards_that_ask_the_policy_wait_for_the_end_and_are_refused_with_staleness(use: str) -> None:
    config = tiny_config(f"rewards.0.use={use}")
    assert not build_rewards(config.rewards, config.sampling.max_completion_tokens).any_thread
    with pytest.raises(
        ConfigError, match=r"generator\.max_staleness: 1 .* asks the policy itself.*Remedy: generator\.max_staleness=0"
    ):
        read_inputs(tiny_config(f"rewards.0.use={use}", *AHEAD))


def test_our_own_rewards_may_be_called_in_any_thread() -> None:
    for use in ("rewards.accuracy:accuracy", "rewards.semantic_entropy:semantic_entropy"):
        assert build_rewards(tiny_config(f"rewards.0.use={use}").rewards, 24).any_thread


def test_an_error_of_a_reward_surfaces_as_from_the_main_thread(policy: Policy, file: Path) -> None:
    messages = []
    for overrides in (SEPARATELY, "generator.max_sequences=16"):
        with pytest.raises(RewardError) as raised:
            collector(policy, f"rewards.0.use={file}:raising", *[overrides])[0].collect(0)
        messages.append(str(raised.value).partition(", question")[0] + str(raised.value).rpartition(" at ")[2])
    assert messages[0] == messages[1] and "'raising'" in messages[0]


def test_grading_in_worker_processes_begins_in_the_thread_and_goes_on_outside_it(tmp_path: Path) -> None:
    """The pool's processes are started from a thread that ends, and serve the main thread afterwards; what hangs is
    killed from both."""
    config = tiny_config()
    rewards = build_rewards(config.rewards, 24)
    pairs = [(r"\boxed{\frac{x^2-1}{x-1}}", r"\boxed{\sin(x)^2+\cos(x)^2}"), (r"\boxed{x+1}", r"\boxed{x+2}")]
    example = scored_group("q", ["1", "2"]).group
    groups = []
    for i, texts in enumerate(pairs):
        question = replace(example.question, id=f"q{i}", answer="x+1")
        rollouts = tuple(replace(r, text=text) for r, text in zip(example.rollouts, texts, strict=True))
        groups.append(Group(replace(example.prompt, question=question), rollouts))
    with ScoringThread(lambda batch: score_groups(rewards, batch)) as thread:
        for index in (1, 0):
            thread.take(index, groups[index])
        beside = thread.results()
    assert [beside[i] for i in range(2)] == score_groups(rewards, groups)
    assert beside[1].rewards == (1.0, 0.0)


def test_what_waits_is_scored_as_one_batch() -> None:
    gate, sizes = threading.Event(), []

    def score(groups: Sequence[Group]) -> list[ScoredGroup]:
        assert gate.wait(10)
        sizes.append(len(groups))
        return [scored_group(group.question.id, ["1", "2"]) for group in groups]

    with ScoringThread(score) as thread:
        thread.take(3, scored_group("first", ["1", "2"]).group)
        while not thread._waiting.empty():
            time.sleep(0.001)
        for i in range(3):
            thread.take(i, scored_group(f"q{i}", ["1", "2"]).group)
        gate.set()
        found = thread.results()
    assert sizes == [1, 3] and {i: found[i].group.question.id for i in found} == {3: "first", 0: "q0", 1: "q1", 2: "q2"}


def test_an_exception_in_the_generator_does_not_wait_for_the_reward() -> None:
    never = threading.Event()

    def score(groups: Sequence[Group]) -> list[ScoredGroup]:
        never.wait(60)
        return []

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ScoringThread(score) as thread:
        thread.take(0, scored_group("q", ["1", "2"]).group)
        raise KeyboardInterrupt
    assert time.monotonic() - started < 10
    never.set()


@pytest.mark.slow
def test_sampling_ahead_gives_the_groups_that_sampling_in_turn_gives(policy: Policy, tmp_path: Path) -> None:
    """The same sampler's weights throughout: only the time of sampling differs, under refilling with its surplus
    too."""
    kinds = tmp_path / "kinds.py"
    kinds.write_text("def every_other(*, question, completions, **_):\n"
                     "    return [float(i == 0) * (len(question) % 2) for i in range(len(completions))]\n")
    overrides = ("selection.mode=refill", f"rewards.0.use={kinds}:every_other")
    turn, ahead = collector(policy, *overrides)[0], collector(policy, *overrides, *AHEAD)[0]
    for step in range(4):
        expected, found = turn.collect(step), ahead.collect(step)
        assert without_times(found) == without_times(expected)
        assert ahead.surplus == turn.surplus
        ahead.move_on()
        before = ahead.state()
        ahead.sample_ahead(step + 1)
        # until the groups are there, the step can only be repeated from before their draw
        assert ahead.state() == before
        ahead.settle()
        assert not ahead.in_flight


def test_the_state_in_the_middle_of_sampling_is_that_before_it(policy: Policy) -> None:
    sampler, _ = collector(policy, "rewards.0.use=rewards.accuracy:accuracy", SEPARATELY)
    sampler.collect(0)
    sampler.move_on()
    before, seen = sampler.state(), list[tuple[OrderState, OrderState]]()
    real = sampler._generator.generate

    def generate(*arguments: object) -> list[Group]:
        seen.append((sampler.state().order, sampler.order.state()))
        return real(*arguments)  # type: ignore[arg-type]

    sampler._generator.generate = generate  # type: ignore[method-assign, assignment]
    sampler.collect(1)
    told, moved = seen[0]
    assert told == before.order != moved
    assert sampler.state() == before  # a proof may yet ask the sampler, and find it gone
    sampler.move_on()
    assert sampler.state().order == moved
