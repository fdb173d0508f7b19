"""The sampler on vLLM servers against scripted ones: what it makes of each accident, and that no completion is lost or
counted twice.

Against real servers: tests/vllm/test_vllm_server.py."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.config import GeneratorSection
from rl.errors import GeneratorError
from rl.generate.base_probe import BaseProbe, measure_base
from rl.generate.generator_plan import GeneratorPlan
from rl.generate.protocol import Request, SamplingParameters
from rl.generate.servers import generator as server_generator
from rl.generate.servers import replicas
from rl.generate.servers import start as server_start
from rl.generate.servers.background_loop import BackgroundLoop
from rl.generate.servers.generator import ServerGenerator
from rl.generate.vllm_engine import CPU_BATCH_TOKENS
from rl.generate.weight_sync import Sync, Way
from rl.policy.policy import Policy
from rl.records import Group
from tests.reference.chat_server import unused_url
from tests.reference.fork import forked_ranks
from tests.reference.scripted_vllm import LOGPROB, Accident, ScriptedVllm, tokens_of
from tests.reference.tiny_run import literal_logprobs, prompts, tiny_policy
from tests.reference.two_rank_sampler import sample

SAMPLING = SamplingParameters(1.0, 1.0, 0, 24)
CONTEXT = 256  # of models/tiny-arith
SERVER_ERROR = Accident(status=500, body=b'{"error": {"message": "out of luck"}}')


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(replicas, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(server_start, "START_WAIT_S", 0.1)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy()


@contextmanager
def on_servers(
    policy: Policy, folder: Path, servers: list[ScriptedVllm], *, way: Way = "adapter", version: int | None = 3,
    **settings: Any,
) -> Iterator[ServerGenerator]:
    """A generator on started servers, with this version brought; settings: of the plan and of the generator's
    section."""
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        plan = GeneratorPlan(
            settings.pop("max_tokens", 200), 1, 0, "models/tiny-arith", None, False,
            settings.pop("logprobs_mode", "processed_logprobs"), 1, 0, folder,
            base_probe=settings.pop("base_probe", None), float32_head=settings.pop("float32_head", False))
        section = GeneratorSection(
            backend="vllm_server", **{"urls": [server.url for server in servers], "sync": way, **settings})
        generator = ServerGenerator(section, policy, plan, Sync(way, "as configured"))
        stack.callback(generator.close)
        if version is not None:
            generator.take_over(policy, version)
        yield generator


def requests(count: int, size: int = 4) -> list[Request]:
    return [Request(prompt, tuple(range(100 * i, 100 * i + size))) for i, prompt in enumerate(prompts(count))]


def check(groups: list[Group], asked: list[Request], version: int = 3) -> None:
    """Every completion is there, at its place, sampled by the version's weights."""
    assert [group.prompt for group in groups] == [request.prompt for request in asked]
    for group, request in zip(groups, asked, strict=True):
        assert [rollout.seed for rollout in group.rollouts] == list(request.seeds)
        for rollout in group.rollouts:
            assert list(rollout.token_ids) == tokens_of(rollout.seed)
            assert set(rollout.logprobs) == {LOGPROB + version}
            assert rollout.policy_version == version and rollout.finish_reason == "stop"


@pytest.mark.parametrize("way", ["adapter", "merge"])
def test_groups_come_whole_in_order_and_as_they_end(policy: Policy, tmp_path: Path, way: Way) -> None:
    asked, ended, threads = requests(6), [], set()

    def finished(index: int, group: Group) -> None:
        ended.append(index)
        threads.add(threading.current_thread())

    with on_servers(policy, tmp_path, [ScriptedVllm(delay_s=0.02), ScriptedVllm()], way=way) as generator:
        check(generator.generate(asked, SAMPLING, finished), asked)
        assert sorted(ended) == list(range(6)) and threads == {threading.current_thread()}
        assert generator.logprobs([((1, 2), (5, 6, 7))]) == [(LOGPROB + 3,) * 3]
        assert generator.metrics() == {
            "sampler/replicas": 2.0, "sampler/retries": 0.0, "sampler/lost": 0.0, "sampler/taken_back": 0.0,
            "sampler/waited_s": 0.0}
        assert generator.description == f"sampler: 2 vLLM servers (0.32.0); new versions by {way}: as configured"


def test_completions_of_a_question_share_a_server_and_questions_are_spread(policy: Policy, tmp_path: Path) -> None:
    servers = [ScriptedVllm(delay_s=0.02), ScriptedVllm(delay_s=0.02)]
    with on_servers(policy, tmp_path, servers) as generator:
        generator.generate(requests(8), SAMPLING)
    places = [{body["seed"] // 100 for body in server.completions()} for server in servers]
    assert not places[0] & places[1] and len(places[0]) == len(places[1]) == 4


def test_a_server_gets_no_more_requests_at_once_than_max_sequences(policy: Policy, tmp_path: Path) -> None:
    server = ScriptedVllm(delay_s=0.05)
    with on_servers(policy, tmp_path, [server], max_sequences=6) as generator:
        check(generator.generate(requests(6), SAMPLING), requests(6))
    assert 4 < server.most_at_once <= 6


@pytest.mark.parametrize("accident", [SERVER_ERROR, Accident(status=429), Accident(hang_up=True), Accident(hang_s=4.0)])
def test_a_failed_request_is_sent_again(policy: Policy, tmp_path: Path, accident: Accident) -> None:
    asked = requests(4)
    first = ScriptedVllm(script=lambda body, number: accident if number == 1 else None)
    with on_servers(policy, tmp_path, [first, ScriptedVllm()], request_timeout_s=2) as generator:
        check(generator.generate(asked, SAMPLING), asked)
        metrics = generator.metrics()
    assert metrics["sampler/retries"] == 1 and metrics["sampler/lost"] == 0 and metrics["sampler/replicas"] == 2


def test_a_request_that_fails_on_healthy_servers_again_and_again_is_an_error(policy: Policy, tmp_path: Path) -> None:
    poison = ScriptedVllm(script=lambda body, number: SERVER_ERROR if body["seed"] == 101 else None)
    with (
        on_servers(policy, tmp_path, [poison]) as generator,
        pytest.raises(GeneratorError, match=r"failed 6 times.*out of luck.*Remedy"),
    ):
        generator.generate(requests(3), SAMPLING)


def test_a_refused_request_is_an_error_with_the_servers_words(policy: Policy, tmp_path: Path) -> None:
    refusal = Accident(status=400, body=b'{"error": {"message": "seed 101 is unlucky"}}')
    server = ScriptedVllm(script=lambda body, number: refusal if body["seed"] == 101 else None)
    with (on_servers(policy, tmp_path, [server]) as generator,
          pytest.raises(GeneratorError, match="seed 101 is unlucky")):
        generator.generate(requests(3), SAMPLING)


@pytest.mark.parametrize("way", ["adapter", "merge"])
def test_a_lost_server_is_left_out_and_taken_back_with_the_version(policy: Policy, tmp_path: Path, way: Way) -> None:
    asked = requests(8)
    broken = ScriptedVllm()

    def script(body: dict[str, Any], number: int) -> Accident | None:
        if number == 2:
            broken.is_healthy = False
            broken.start_anew()
        return None if broken.is_healthy else SERVER_ERROR

    broken.script = script
    messages: list[str] = []
    with on_servers(policy, tmp_path, [broken, ScriptedVllm()], way=way) as generator:
        generator.on_message = messages.append
        check(generator.generate(asked, SAMPLING), asked)
        assert generator.metrics()["sampler/lost"] == 1
        assert len(generator._pool.ready()) == 1
        broken.is_healthy = True
        deadline = time.monotonic() + 10
        while len(generator._pool.ready()) == 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        broken.bodies.clear()
        broken.script = lambda body, number: None
        check(generator.generate(asked, SAMPLING), asked)
        assert broken.completions() and generator.metrics()["sampler/taken_back"] == 1
    assert [text for text in messages if "is lost" in text] and [text for text in messages if "is taken back" in text]


@pytest.mark.parametrize("way", ["adapter", "merge"])
def test_a_server_that_was_started_anew_between_two_requests_is_noticed(
    policy: Policy, tmp_path: Path, way: Way
) -> None:
    """No request fails by itself: the new process serves the old weights under the same name (merge), or lacks the
    adapter."""
    asked = requests(4)
    server = ScriptedVllm()
    with on_servers(policy, tmp_path, [server], way=way) as generator:
        server.start_anew()
        check(generator.generate(asked, SAMPLING), asked)
        metrics = generator.metrics()
        assert metrics["sampler/lost"] == metrics["sampler/taken_back"] == 1 and metrics["sampler/retries"] >= 1
        server.start_anew()
        assert generator.logprobs([((1, 2), (5, 6))]) == [(LOGPROB + 3,) * 2]


def test_no_two_processes_share_cached_prefixes(policy: Policy, tmp_path: Path) -> None:
    server = ScriptedVllm()
    with on_servers(policy, tmp_path, [server], way="merge") as generator:
        server.start_anew()
        generator.generate(requests(1), SAMPLING)
        generator.take_over(policy, 4)
        check(generator.generate(requests(1), SAMPLING), requests(1), version=4)
    salts = [body["cache_salt"] for body in server.completions()]
    assert len(salts) == 12 and len(set(salts)) == 3


def test_while_no_server_answers_the_run_waits_and_says_so_once(policy: Policy, tmp_path: Path) -> None:
    asked = requests(6)
    servers = [ScriptedVllm(), ScriptedVllm()]
    outages: list[tuple[str, threading.Thread]] = []

    def out(text: str) -> None:
        outages.append((text, threading.current_thread()))
        threading.Timer(0.4, come_back).start()

    def come_back() -> None:
        for server in servers:
            server.is_healthy, server.script = True, lambda body, number: None

    with on_servers(policy, tmp_path, servers) as generator:
        for server in servers:
            server.is_healthy, server.script = False, lambda body, number: Accident(hang_up=True)
        generator.on_outage = out
        check(generator.generate(asked, SAMPLING), asked)
        metrics = generator.metrics()
    assert len(outages) == 1 and outages[0][1] is threading.current_thread()
    assert all(server.url in outages[0][0] for server in servers)
    assert metrics["sampler/lost"] == metrics["sampler/taken_back"] == 2 and 0.3 < metrics["sampler/waited_s"] < 5


@pytest.mark.slow
def test_who_is_told_of_an_outage_may_end_the_waiting(policy: Policy, tmp_path: Path) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt(text)

    server = ScriptedVllm()
    with on_servers(policy, tmp_path, [server]) as generator:
        server.is_healthy, server.script = False, lambda body, number: Accident(hang_up=True)
        generator.on_message = lambda text: stop(text) if "still no server" in text else None
        with pytest.raises(KeyboardInterrupt, match=f"still no server answers .{server.url}"):
            generator.generate(requests(2), SAMPLING)


def test_closing_ends_what_another_thread_waits_for(policy: Policy, tmp_path: Path) -> None:
    server = ScriptedVllm()
    ends: list[str] = []

    def sample() -> None:
        try:
            generator.generate(requests(2), SAMPLING)
        except GeneratorError as error:
            ends.append(str(error))

    with on_servers(policy, tmp_path, [server]) as generator:
        server.is_healthy, server.script = False, lambda body, number: Accident(hang_up=True)
        is_out = threading.Event()
        generator.on_outage = lambda text: is_out.set()
        thread = threading.Thread(target=sample)
        thread.start()
        assert is_out.wait(10)
        generator.close()
        thread.join(10)
    assert ends == ["the sampler was closed while it sampled"]


def test_a_version_waits_for_a_server_too(policy: Policy, tmp_path: Path) -> None:
    server = ScriptedVllm()
    with on_servers(policy, tmp_path, [server]) as generator:
        server.is_healthy = False
        generator.on_outage = lambda text: setattr(server, "is_healthy", True)
        generator.take_over(policy, 4)
        assert generator.policy_version == 4
        check(generator.generate(requests(2), SAMPLING), requests(2), version=4)


def test_each_version_has_a_name_of_its_own_and_older_ones_are_removed(policy: Policy, tmp_path: Path) -> None:
    server, names = ScriptedVllm(), []
    with on_servers(policy, tmp_path, [server], version=None) as generator:
        for version in (0, 1, 1):
            generator.take_over(policy, version)
            [name] = server.adapters
            names.append(name)
        # a server that is being taken back may still read the last but one
        assert len(list((tmp_path / "sampler").glob("*/*"))) == 2
    assert len(set(names)) == 3 and server.adapters == {} and not list((tmp_path / "sampler").glob("*"))


def test_what_the_caller_raises_ends_the_sampling(policy: Policy, tmp_path: Path) -> None:
    def finished(index: int, group: Group) -> None:
        raise ZeroDivisionError

    server = ScriptedVllm(delay_s=0.05)
    with on_servers(policy, tmp_path, [server], max_sequences=4) as generator:
        with pytest.raises(ZeroDivisionError):
            generator.generate(requests(20), SAMPLING, finished)
        time.sleep(0.2)
        asked_before = len(server.completions())
        time.sleep(0.3)
        assert len(server.completions()) == asked_before < 80
        ended: list[int] = []
        check(generator.generate(requests(6), SAMPLING, lambda index, group: ended.append(index)), requests(6))
        assert sorted(ended) == list(range(6))


@pytest.mark.parametrize(
    ("traits", "settings", "message"),
    [
        (dict(version="0.24.0"), {}, r"runs vLLM 0\.24\.0.*>=0\.25\.1,<0\.33"),
        (dict(version="0.33.1"), {}, r"runs vLLM 0\.33\.1"),
        (dict(answers_as_page=True), {}, r"is no vLLM server .*<html>welcome.*without a path"),
        (
            dict(models={"other": 256}), {"served_model": "tiny"},
            r"generator\.served_model: tiny, but http.* serves other\.",
        ),
        (
            dict(models={"tiny": 200}), {},
            r"at most 200 tokens.*are 201\. Remedy: start it with VLLM.* --max-model-len 201",
        ),
        (dict(key="sesame"), {}, r"generator\.api_key_env: .* does not accept the API key"),
        (dict(key="sesame"), {"api_key_env": "WRONG_KEY"}, r"does not accept the API key .*Bearer \*\*\*"),
        (
            dict(), {"api_key_env": "NO_SUCH_KEY"},
            r"generator\.api_key_env: NO_SUCH_KEY, but this environment variable is not set",
        ),
        (
            dict(has_lora=False), {},
            r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True .*python -m vllm.* --model .* --enable-lora --max-lora-rank 8",
        ),
        (
            dict(has_dev_mode=False), {"way": "merge"},
            r"does not load weights .*Remedy: start it with VLLM_SERVER_DEV_MODE=1 .*python -m vllm",
        ),
        (dict(balanced=True), {}, r"several servers answer at http.*Remedy: the servers' own addresses"),
        (dict(balanced=True), {"way": "merge"}, r"several servers answer at http.*Remedy: the servers' own addresses"),
        (
            dict(tells_start=False), {}, r"has several API processes .*Remedy: start it with --api-server-count 1",
        ),
        (dict(), {"urls": ["localhost:8000"]}, r"'localhost:8000', expected an address that begins with http"),
        (
            dict(), {"urls": ["http://localhost:80a"]},
            r"generator\.urls: 'http://localhost:80a', expected http://HOST:PORT",
        ),
        (
            dict(), {"urls": ["http://localhost:99999"]},
            r"generator\.urls: 'http://localhost:99999', expected http://HOST:PORT",
        ),
        (dict(), {"urls": ["http://[::1"]}, r"generator\.urls: 'http://\[::1', expected http://HOST:PORT"),
        (dict(), {"urls": ["http://:8000"]}, r"generator\.urls: 'http://:8000', expected http://HOST:PORT"),
        (dict(version=["Bearer open up"]), {"api_key_env": "WRONG_KEY"}, r"is no vLLM server .*Bearer \*\*\*"),
        (dict(), {"urls": ["http://localhost:1", "http://localhost:1/v1/"]}, r"http://localhost:1/v1/ is given twice"),
        (
            dict(likeliest=(LOGPROB + 0.25, LOGPROB + 1.5)), {"float32_head": True},
            r"model\.head_dtype: float32, but the logits of http\S+ are rounded to bfloat16\. "
            r"Remedy: start it with .* --hf-overrides '{\"head_dtype\": \"float32\"}' .*model\.head_dtype=null",
        ),
        (
            dict(version="0.25.1"), {"float32_head": True},
            r"model\.head_dtype: float32, but vLLM 0\.25\.1 at http\S+ computes .*Remedy: vLLM 0\.26 or newer",
        ),
    ],
)
def test_a_server_that_does_not_fit_is_refused_with_the_remedy(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traits: dict[str, Any], settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("WRONG_KEY", "open up")
    with (
        pytest.raises(GeneratorError, match=message) as refused,
        on_servers(policy, tmp_path, [ScriptedVllm(**traits)], **settings),
    ):
        pass
    assert "open up" not in str(refused.value)


def test_a_server_with_logits_in_float32_is_taken(policy: Policy, tmp_path: Path) -> None:
    server = ScriptedVllm(likeliest=(LOGPROB + 0.2503, LOGPROB + 1.5011))
    with on_servers(policy, tmp_path, [server], float32_head=True) as generator:
        check(generator.generate(requests(2), SAMPLING), requests(2))


def test_the_probe_of_the_base_sees_neither_adapter_nor_step(tmp_path: Path) -> None:
    changed, ids = tiny_policy(adapter_scale=0.5), prompts(1)[0].token_ids
    probe = measure_base(changed, ids, bound=1e-3)
    assert probe is not None and probe.pair == (ids[:1], ids[1:])
    assert torch.tensor(probe.logprobs) == pytest.approx(literal_logprobs(tiny_policy(), *probe.pair), abs=1e-5)
    assert probe.difference(literal_logprobs(tiny_policy(), *probe.pair).tolist()) is None
    assert probe.difference(literal_logprobs(changed, *probe.pair).tolist()) is not None
    assert probe.difference([float("nan")] * len(probe.logprobs)) is not None
    assert measure_base(changed, ids[:1], bound=1e-3) is None
    longer = measure_base(changed, ids * 30, bound=1e-3)
    assert longer is not None and len(longer.logprobs) == 63


def test_a_server_of_another_model_under_the_right_name_is_refused_at_the_start(policy: Policy, tmp_path: Path) -> None:
    """By adapter; merged weights replace whatever it served."""
    same, other = (BaseProbe(((1,), (5, 6, 7)), (value,) * 3, 1e-3) for value in (LOGPROB, LOGPROB + 0.5))
    with on_servers(policy, tmp_path, [ScriptedVllm()], base_probe=same) as generator:
        check(generator.generate(requests(2), SAMPLING), requests(2))
    server = ScriptedVllm()
    with (pytest.raises(GeneratorError, match=r"serves under the name tiny another model than model\.path") as refused,
          on_servers(policy, tmp_path, [server], base_probe=other, version=None)):
        pass
    for part in (
        server.url, "is -9 there and -8.5 with the trainer's base", "is 0.5 nats, at most 0.001 expected",
        "--model models/tiny",
    ):
        assert part in str(refused.value)
    with on_servers(policy, tmp_path, [ScriptedVllm()], way="merge", base_probe=other) as generator:
        check(generator.generate(requests(2), SAMPLING), requests(2))


def test_a_server_that_comes_back_with_another_model_is_not_taken_back(policy: Policy, tmp_path: Path) -> None:
    servers = [ScriptedVllm(), ScriptedVllm()]
    messages: list[str] = []
    probe = BaseProbe(((1,), (5, 6, 7)), (LOGPROB,) * 3, 1e-3)
    with on_servers(policy, tmp_path, servers, base_probe=probe) as generator:
        generator.on_message = messages.append
        servers[0].start_anew()
        servers[0].weights = "another-model-000001"
        for _ in range(40):
            check(generator.generate(requests(4), SAMPLING), requests(4))
            if any("is not taken back" in message for message in messages):
                break
        refused = [
            message for message in messages if f"{servers[0].url} answers again and is not taken back" in message]
        assert refused and "another model than model.path" in refused[0]
        assert generator.metrics()["sampler/replicas"] == 1


@pytest.mark.parametrize(("max_tokens", "variable", "flag"), [
    (200, None, None),
    (CONTEXT - 1, None, None),
    (CONTEXT, "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", None),
    (CPU_BATCH_TOKENS, "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1", f"--max-num-batched-tokens {CPU_BATCH_TOKENS + 1}"),
])
def test_the_line_that_starts_a_server_has_room_for_the_longest_completion(
    policy: Policy, tmp_path: Path, max_tokens: int, variable: str | None, flag: str | None
) -> None:
    """One token more than the model's context needs a variable; a prompt in one piece, which a CPU needs, the room for
    it."""
    with (pytest.raises(GeneratorError, match="does not load adapters") as refused,
          on_servers(policy, tmp_path, [ScriptedVllm(has_lora=False, models={"tiny": 10**6})], max_tokens=max_tokens)):
        pass
    line = str(refused.value)
    for part in (
        f" --max-model-len {max_tokens + 1} ", " --no-enable-chunked-prefill", " VLLM_CPU_KVCACHE_SPACE=1 ",
        " --dtype float32 ",
    ):
        assert part in line
    assert [word for word in line.split() if word.startswith("VLLM_ALLOW_LONG")] == ([variable] if variable else [])
    assert (flag is None) == ("--max-num-batched-tokens" not in line) and (flag or "") in line


def test_a_key_that_is_refused_in_the_middle_of_a_run_has_the_remedy_of_the_start(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_KEY", "sesame")
    server, message = (
        ScriptedVllm(key="sesame"),
        r"generator\.api_key_env: http.* does not accept the API key .*Bearer \*\*\*.*Remedy: ")
    with on_servers(policy, tmp_path, [server], api_key_env="SERVER_KEY") as generator:
        check(generator.generate(requests(2), SAMPLING), requests(2))
        server.key = "mustard"
        for ask in (lambda: generator.generate(requests(2), SAMPLING), lambda: generator.logprobs([((1, 2), (5, 6))]),
                    lambda: generator.take_over(policy, 4)):
            with pytest.raises(GeneratorError, match=message):
                ask()


@pytest.mark.slow
def test_an_address_that_nothing_answers_at_is_named_after_the_time_for_it(policy: Policy, tmp_path: Path) -> None:
    message = r"after 2 s .*start_timeout_s.* no vLLM server answers at http"
    with (unused_url() as nobody, ScriptedVllm() as server, pytest.raises(GeneratorError, match=message) as error,
          on_servers(policy, tmp_path, [], urls=[server.url, nobody], start_timeout_s=2)):
        pass
    assert nobody.removesuffix("/v1") in str(error.value) and server.url not in str(error.value)


def test_log_probabilities_of_the_wrong_kind_are_refused(policy: Policy, tmp_path: Path) -> None:
    """The scripted server reports them before the temperature."""
    with (
        on_servers(policy, tmp_path, [ScriptedVllm()]) as generator,
        pytest.raises(GeneratorError, match="--logprobs-mode processed_logprobs"),
    ):
        generator.generate(requests(1), SamplingParameters(0.7, 1.0, 0, 24))
    with on_servers(policy, tmp_path, [ScriptedVllm()], logprobs_mode="raw_logprobs") as generator:
        check(generator.generate(requests(1), SamplingParameters(1.0, 0.9, 0, 24)), requests(1))


def test_the_right_key_is_sent_and_not_shown(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGHT_KEY", "sesame")
    with on_servers(policy, tmp_path, [ScriptedVllm(key="sesame")], api_key_env="RIGHT_KEY") as generator:
        check(generator.generate(requests(1), SAMPLING), requests(1))
        assert "sesame" not in repr(generator) + generator.description + repr(generator._clients) + repr(
            generator._pool.replicas)


def test_a_reply_that_repeats_the_key_is_shown_without_it(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RIGHT_KEY", 'se"same')
    bodies = [b'{"choices": "I got Bearer se\\"same"}', b'{"choices": [], "seen": "Bearer se\\"same"}']
    server = ScriptedVllm(key='se"same', script=lambda body, number: Accident(body=bodies[number % 2]))
    with on_servers(policy, tmp_path, [server], api_key_env="RIGHT_KEY") as generator:
        for _ in bodies:
            with pytest.raises(GeneratorError, match=r"no completion with token ids .*Bearer \*\*\*") as error:
                generator.generate(requests(1, 1), SAMPLING)
            assert "same" not in str(error.value)


def test_a_server_that_comes_back_with_the_wrong_log_probabilities_is_left_out(policy: Policy, tmp_path: Path) -> None:
    at_seven, asked = SamplingParameters(0.7, 1.0, 0, 24), requests(4)
    changed, other = ScriptedVllm(reports_raw=False), ScriptedVllm(reports_raw=False)
    messages: list[str] = []
    with on_servers(policy, tmp_path, [changed, other]) as generator:
        generator.on_message = messages.append
        check(generator.generate(asked, at_seven), asked)
        changed.reports_raw = True
        changed.start_anew()
        check(generator.generate(asked, at_seven), asked)
        deadline = time.monotonic() + 10
        while not any("not taken back" in text for text in messages) and time.monotonic() < deadline:
            time.sleep(0.02)
            check(generator.generate(asked, at_seven), asked)
        assert [replica.server.url for replica in generator._pool.ready()] == [other.url]
    assert any("is not taken back" in text and "at temperature 0.7" in text for text in messages)


def test_nothing_that_was_posted_before_cuts_closing_short(policy: Policy, tmp_path: Path) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt(text)

    with on_servers(policy, tmp_path, [ScriptedVllm()]) as generator:
        generator.on_message = stop
        generator._say("it is lost")
        generator._loop.post(server_generator._end_of_sampling)
        generator.close()
        assert generator._loop._loop.is_closed() and not list((tmp_path / "sampler").glob("*"))


def test_a_failure_while_closing_leaves_neither_files_nor_a_thread(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    with on_servers(policy, tmp_path, [ScriptedVllm()]) as generator:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(generator._pool, "close", fail)
            generator.close()
        assert generator._loop._loop.is_closed() and not list((tmp_path / "sampler").glob("*"))


def test_two_threads_that_wait_do_each_what_their_own_coroutine_posts() -> None:
    loop = BackgroundLoop("test")
    done: dict[int, list[int]] = {0: [], 1: []}

    async def work(number: int) -> int:
        for _ in range(50):
            await asyncio.sleep(0.001)
            loop.post(lambda: done[number].append(threading.get_ident()))
        return number

    def wait(number: int) -> None:
        assert loop.run(work(number)) == number
        assert done[number] == [threading.get_ident()] * 50

    try:
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(wait, number) for number in range(2)]:
                future.result(timeout=20)
    finally:
        loop.close()


def test_what_a_killed_run_left_is_removed_in_the_runs_own_folder_only(policy: Policy, tmp_path: Path) -> None:
    for parent in (tmp_path / "sampler", tmp_path / "exchange"):
        (parent / "otherhalf-versions-1" / "adapter-000001").mkdir(parents=True)
    with on_servers(policy, tmp_path, [ScriptedVllm()]):
        assert not (tmp_path / "sampler" / "otherhalf-versions-1").exists()
    with on_servers(policy, tmp_path, [ScriptedVllm()], exchange_dir=str(tmp_path / "exchange")):
        assert len(list((tmp_path / "exchange").iterdir())) == 2
    assert (tmp_path / "exchange" / "otherhalf-versions-1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["adapter", "merge"])
def test_of_several_ranks_the_main_one_brings_each_version_once(tmp_path: Path, way: Way) -> None:
    with ScriptedVllm() as first, ScriptedVllm() as second:
        ranks = forked_ranks(lambda: sample(way, tmp_path, [first.url, second.url]))
        lines = [line for rank in ranks for line in rank.stdout.splitlines()]
        assert [rank.returncode for rank in ranks] == [0, 0]
        load = "/v1/load_lora_adapter" if way == "adapter" else "/collective_rpc"
        assert first.calls.count(load) == second.calls.count(load) == 2
    assert sorted(json.loads(line) for line in lines) == [
        [rank, version, [LOGPROB + version]] for rank in range(2) for version in range(2)]
