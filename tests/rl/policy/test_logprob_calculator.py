"""What the policy tells rewards: log-probabilities of texts and token statistics, against one literal forward per
sequence."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from rewards.contract import RewardError
from rl.config import RewardSection
from rl.errors import ConfigError
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.token_sampling import token_statistics
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.forward import PolicyForward
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.logprobs import token_logprobs
from rl.policy.policy import Policy
from rl.questions.inputs import read_inputs
from rl.records import Group, Prompt, Question, Rollout
from rl.scoring.rewarding import build_rewards, score_groups
from tests.reference.policy_statistics import literal_probabilities, literal_statistics
from tests.reference.tiny_run import HELD_OUT, prompts, tiny_config, tiny_policy

torch.set_num_threads(1)
CERTAINTY, ENTROPY = "rewards.confidence:self_certainty", "rewards.confidence:token_entropy"
LIKELIHOOD = "rewards.reference_likelihood:reference_likelihood"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(adapter_scale=0.02)


def calculator(policy: Policy, temperature: float = 1.0, max_tokens: int = 256) -> LogprobCalculator:
    return LogprobCalculator(policy, PolicyForward(policy, temperature=temperature), max_tokens=max_tokens)


def sampled(
    policy: Policy, *, merge: bool = False, temperature: float = 1.0, statistics: bool = True, max_sequences: int = 64
) -> list[Group]:
    generator = TransformersGenerator(policy, merge=merge, max_sequences=max_sequences)
    generator.take_over(policy, 0)
    requests = [Request(prompt, tuple(range(10 * i, 10 * i + 4))) for i, prompt in enumerate(prompts(5))]
    return generator.generate(requests, SamplingParameters(temperature, 1.0, 0, 40, token_statistics=statistics))


def stripped(groups: list[Group]) -> list[Group]:
    return [dataclasses.replace(group, rollouts=tuple(
        dataclasses.replace(r, entropies=None, self_certainties=None) for r in group.rollouts)) for group in groups]


def worst(policy: Policy, groups: list[Group], temperature: float) -> float:
    differences = []
    for group in groups:
        for rollout in group.rollouts:
            assert rollout.entropies is not None and rollout.self_certainties is not None
            expected = literal_statistics(policy, group.prompt.token_ids, rollout.token_ids, temperature)
            assert len(rollout.entropies) == len(rollout.self_certainties) == len(rollout.token_ids)
            for entropy, certainty, (wanted_entropy, wanted_certainty) in zip(
                    rollout.entropies, rollout.self_certainties, expected, strict=True):
                differences += [abs(entropy - wanted_entropy), abs(certainty - wanted_certainty)]
    return max(differences)


@pytest.mark.parametrize(
    ("merge", "temperature", "max_sequences"), [(False, 1.0, 64), (True, 0.7, 64), (False, 1.5, 3)]
)
def test_the_samplers_statistics_are_those_of_a_full_softmax(
        policy: Policy, merge: bool, temperature: float, max_sequences: int) -> None:
    groups = sampled(policy, merge=merge, temperature=temperature, max_sequences=max_sequences)
    lengths = {len(rollout.token_ids) for group in groups for rollout in group.rollouts}
    assert len(lengths) > 3, "rows end at different steps and leave the batch"
    assert worst(policy, groups, temperature) < 2e-4


@pytest.mark.parametrize(("temperature", "max_tokens"), [(1.0, 256), (0.7, 1), (1.5, 10_000)])
def test_the_policys_statistics_are_those_of_a_full_softmax(
    policy: Policy, temperature: float, max_tokens: int
) -> None:
    groups = stripped(sampled(policy, temperature=temperature))
    found = calculator(policy, temperature, max_tokens).with_statistics(groups)
    assert worst(policy, found, temperature) < 2e-4
    assert stripped(found) == groups and policy.model.training
    assert calculator(policy).with_statistics(found) == found, "what is there is not computed again"


def test_asking_for_statistics_changes_nothing_that_is_sampled(policy: Policy) -> None:
    without = sampled(policy, statistics=False)
    assert stripped(sampled(policy)) == without
    assert all(r.entropies is None and r.self_certainties is None for group in without for r in group.rollouts)


def test_statistics_by_hand_and_in_chunks_of_rows() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0, 0.0]])
    p = [0.4, 0.2, 0.2, 0.2]
    expected_entropy = [math.log(4.0), -sum(x * math.log(x) for x in p)]
    expected_certainty = [0.0, sum(0.25 * math.log(0.25 / x) for x in p)]
    for chunk in (1, 4, 100):
        entropies, certainties = token_statistics(logits, 1.0, chunk_elements=chunk)
        assert entropies.tolist() == pytest.approx(expected_entropy, abs=1e-6)
        assert certainties.tolist() == pytest.approx(expected_certainty, abs=1e-6)
    hot = token_statistics(logits, 2.0)[0][1].item()
    assert expected_entropy[1] < hot < math.log(4.0)


def test_a_token_that_cannot_be_drawn_has_no_entropy() -> None:
    entropies, certainties = token_statistics(torch.tensor([[0.0, 0.0, -math.inf]]), 1.0)
    assert entropies.tolist() == pytest.approx([math.log(2.0)])
    assert certainties.tolist() == [math.inf]


@pytest.mark.parametrize("chunk_tokens", [2, 100])
def test_the_trainers_self_certainty_is_kl_from_uniform(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 8), torch.nn.Linear(8, 11)
    tokens = torch.arange(5)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found = token_logprobs(
                hidden, head, tokens, chunk_tokens=chunk_tokens, temperature=0.5, self_certainty=True)
        probabilities = torch.softmax(head(hidden).double() / 0.5, dim=-1)
        expected = (torch.log(1 / (11 * probabilities)) / 11).sum(-1)
        assert found.self_certainties_N is not None
        torch.testing.assert_close(found.self_certainties_N.detach().double(), expected, rtol=0, atol=1e-5)
        assert not found.self_certainties_N.requires_grad
        assert found.logprobs_N.requires_grad == grad
    assert token_logprobs(hidden, head, tokens, chunk_tokens=chunk_tokens).self_certainties_N is None


@pytest.mark.parametrize("max_tokens", [1, 90, 100_000])
def test_log_probabilities_of_texts_equal_one_forward_each(policy: Policy, max_tokens: int) -> None:
    prompt = prompts(1)[0]
    asked = [("19+28=47\n\\boxed{", "47"), ("", "47"), ("19+28=47\n\\boxed{", "47"), ("\\boxed{", "-12"), ("19+", "2")]
    found = calculator(policy, 0.8, max_tokens).after(prompt).logprobs(asked)
    for (beginning, text), values in zip(asked, found, strict=True):
        context = [*prompt.token_ids, *policy.tokenizer(beginning, add_special_tokens=False)["input_ids"]]
        scored = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = [math.log(p) for p in literal_probabilities(policy, context, scored, 0.8)]
        assert values == pytest.approx(expected, abs=2e-4)
    assert found[0] == found[2]


def test_the_assistant_prefix_is_in_the_prompt_and_not_read_twice(policy: Policy) -> None:
    plain = prompts(1)[0]
    ids = tuple(policy.tokenizer("19+", add_special_tokens=False)["input_ids"])
    prefixed = Prompt(plain.question, plain.text + "19+", plain.token_ids + ids, "19+")
    service = calculator(policy)
    assert service.tokenized(prefixed, "19+28=", "47") == service.tokenized(plain, "19+28=", "47")


def test_texts_without_tokens_or_beyond_the_context_are_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match="has no tokens"):
        calculator(policy).after(prompts(1)[0]).logprobs([("1", "")])
    with pytest.raises(ValueError, match=r"above the model's context of 256; a lower sampling\.max_completion_tokens"):
        calculator(policy).after(prompts(1)[0]).logprobs([("1" * 5000, "2")])


def test_a_token_that_would_straddle_the_boundary_is_split_there(policy: Policy) -> None:
    vocabulary = {token: i for i, token in enumerate(["<eos>", "a", "b", "c", "d", "cd"])}
    merging = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, [("c", "d")])), eos_token="<eos>")
    service = calculator(dataclasses.replace(policy, tokenizer=merging))
    prompt = prompts(1)[0]
    a, b, c, d, cd = (vocabulary[token] for token in ("a", "b", "c", "d", "cd"))
    assert service.tokenized(prompt, "ab", "cda") == ((*prompt.token_ids, a, b), (cd, a))
    assert service.tokenized(prompt, "abc", "da") == ((*prompt.token_ids, a, b, c), (d, a))


def test_confidence_rewards_are_means_of_the_statistics_and_leave_none_behind(policy: Policy) -> None:
    groups = sampled(policy)
    for use, name, sign in ((CERTAINTY, "self_certainties", 1), (ENTROPY, "entropies", -1)):
        rewards = build_rewards([RewardSection(use=use)], 40)
        scored = score_groups(rewards, groups)
        for group, result in zip(groups, scored, strict=True):
            expected = [sign * sum(getattr(r, name)) / len(r.token_ids) for r in group.rollouts]
            assert result.rewards == pytest.approx(expected, rel=1e-6)
            assert all(r.entropies is None and r.self_certainties is None for r in result.group.rollouts)
        by_policy = score_groups(rewards, stripped(groups), calculator(policy))
        for first, second in zip(scored, by_policy, strict=True):
            assert first.rewards == pytest.approx(second.rewards, abs=2e-4)
            assert first.group == second.group


def test_reference_likelihood_is_the_literal_mean_probability_after_the_reasoning(policy: Policy) -> None:
    prompt = prompts(1)[0]
    assert prompt.question.answer == "47"
    texts = ["19+28=47\n\\boxed{47}", "19+28=48\n\\boxed{48}", "\\boxed{3}", "no answer"]
    rollouts = tuple(Rollout((3,), (0.0,), text, "stop", 0, 0) for text in texts)
    encode = lambda text: policy.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    literal = [
        literal_probabilities(
            policy, [*prompt.token_ids, *encode(text.partition("boxed{")[0] + "boxed{")], encode("47"))
        for text in texts[:3]]
    alone = literal_probabilities(policy, [*prompt.token_ids, *encode("\\boxed{")], encode("47"))

    def scores(**arguments: object) -> tuple[float, ...]:
        rewards = build_rewards([RewardSection.model_validate({"use": LIKELIHOOD, "arguments": arguments})], 40)
        return score_groups(rewards, [Group(prompt, rollouts)], calculator(policy))[0].rewards

    means, mean_alone = [sum(row) / 2 for row in literal], sum(alone) / 2
    debiased = [min(max(mean - mean_alone, 0.0), 1.0) for mean in means]
    assert scores() == pytest.approx([*debiased, 0.0], abs=1e-4)
    assert scores()[0] > 0.3 > scores()[2] == 0.0
    assert scores(debias=False) == pytest.approx([*means, 0.0], abs=1e-4)
    assert scores(form="sequence_probability") == pytest.approx([*(math.prod(row) for row in literal), 0.0], abs=1e-4)
    logs = [sum(map(math.log, row)) for row in literal]
    assert scores(form="log_likelihood") == pytest.approx([*logs, min(logs)], abs=1e-3)


@pytest.mark.parametrize(("use", "message"), [(LIKELIHOOD, "only a training run has"), (CERTAINTY, "sampled without")])
def test_without_the_policy_the_error_says_so(policy: Policy, use: str, message: str) -> None:
    rewards = build_rewards([RewardSection(use=use)], 40)
    with pytest.raises(RewardError, match=message):
        score_groups(rewards, sampled(policy, statistics=False)[:1])


@pytest.mark.parametrize("use", [LIKELIHOOD, CERTAINTY])
def test_a_grader_that_asks_the_policy_is_refused_before_the_run(use: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.reward"):
        read_inputs(tiny_config(f"evaluation.path={HELD_OUT}", f"evaluation.reward={use}"))


def test_rewards_that_ask_the_policy_need_style_group() -> None:
    with pytest.raises(RewardError, match="style: group"):
        build_rewards([RewardSection(use=CERTAINTY, style="trl")], 40)


def test_a_length_limit_that_no_completion_reaches_is_refused_before_the_run() -> None:
    use = "rewards.overlong:overlong_penalty"
    with pytest.raises(RewardError, match=r"rewards\.0\.arguments\.max_completion_tokens is 41, above sampling"):
        build_rewards([RewardSection(use=use, arguments={"max_completion_tokens": 41})], 40)
    prompt = Prompt(Question("q", "?", None, {}), "", (3,))
    rollouts = tuple(Rollout((3,) * n, (0.0,) * n, "", "stop", 0, 0) for n in (30, 36, 40))
    for arguments, expected in (
        ({}, [0.0, -0.5, -1.0]), ({"max_completion_tokens": 38, "cache_tokens": 4}, [0.0, -0.5, -1.0]),
    ):
        rewards = build_rewards([RewardSection.model_validate({"use": use, "arguments": arguments})], 40)
        assert score_groups(rewards, [Group(prompt, rollouts)])[0].rewards == pytest.approx(expected)
