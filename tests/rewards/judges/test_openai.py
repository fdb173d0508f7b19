"""A judge behind an endpoint: what is sent, and what becomes of each kind of bad reply. The servers are real, their
replies scripted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from rewards.judges.openai import GIVE_UP_AFTER, Endpoint, OpenAIJudge
from rewards.judges.questions import DEFAULT_PROMPT, JudgeError, Judgement
from tests.reference.chat_server import ChatServer, Reply, Script, same, says, together, unused_url

PAIRS = [("a", "A"), ("A", "a"), ("a", "b"), ("b", "a")]


def judge(
    url: str, pairs: list[tuple[str, str]] = PAIRS, prompt: str = DEFAULT_PROMPT, **settings: Any
) -> list[Judgement]:
    return asyncio.run(OpenAIJudge(Endpoint(url, "m", **settings), prompt).judge("Which letter?", pairs))


def judge_one(script: Script, **settings: Any) -> tuple[Judgement, ChatServer, float]:
    """One pair: its judgement, the server with the calls it got, and the seconds it took."""
    with ChatServer(script) as server:
        started = time.monotonic()
        [judgement] = judge(server.url, [("a", "b")], **settings)
        return judgement, server, time.monotonic() - started


def first(*replies: Reply) -> Script:
    """These replies in turn, then Yes."""
    return lambda call, number: replies[number] if number < len(replies) else says("Yes")


def test_each_ordered_pair_is_one_short_deterministic_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    with ChatServer(same(lambda a, b: a.lower() == b.lower())) as server:
        judgements = judge(server.url + "/", api_key_env="JUDGE_KEY", extra_body='{"seed": 1}')
    assert [judgement.equal for judgement in judgements] == [True, True, False, False], "in the order of the pairs"
    assert sorted(call.pair for call in server.calls) == sorted(PAIRS)
    for call in server.calls:
        assert call.path == "/v1/chat/completions" and call.headers["Authorization"] == "Bearer sesame"
        settings = {key: value for key, value in call.body.items() if key != "messages"}
        assert settings == {"model": "m", "temperature": 0, "max_tokens": 8, "seed": 1}
        assert [message["role"] for message in call.body["messages"]] == ["user"]
        assert "Which letter?" in call.body["messages"][0]["content"]


def test_no_key_is_sent_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "somebody's")
    _, server, _ = judge_one(same(lambda a, b: True))
    assert "Authorization" not in server.calls[0].headers
    with pytest.raises(JudgeError, match="api_key_env is 'NO_SUCH_KEY', but this environment variable is not set"):
        OpenAIJudge(Endpoint("http://localhost/v1", "m", api_key_env="NO_SUCH_KEY"))


def test_a_prompt_of_ones_own_is_asked() -> None:
    _, server, _ = judge_one(same(lambda a, b: True), prompt="{{ question }}|{{ first }}|{{ second }}")
    assert server.calls[0].body["messages"][0]["content"] == "Which letter?|a|b"


@pytest.mark.parametrize("bad", [Reply(b"starting", 503), Reply(b"", 500), Reply(b"", 408), says("Yes", delay_s=1.0)])
def test_a_server_that_stumbles_is_asked_again(bad: Reply) -> None:
    judgement, server, seconds = judge_one(first(bad, bad), timeout_s=0.4)
    assert judgement == Judgement(True, "'Yes'") and len(server.calls) == 3
    assert seconds >= 0.25 + 0.5, "the shortest back-off twice, doubled"


@pytest.mark.slow
def test_retry_after_is_kept_to() -> None:
    judgement, server, _ = judge_one(first(Reply(b"", 429, {"Retry-After": "2"})))
    assert judgement.equal is True
    assert server.calls[1].time - server.calls[0].time >= 2.0
    dated, _, seconds = judge_one(first(Reply(b"", 429, {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"})))
    assert dated.equal is True and seconds < 2.0


@pytest.mark.parametrize(("bad", "seen"), [
    (Reply(b"out of memory", 500), r"HTTP 500: 'out of memory' (2 attempts)"),
    (says("Yes", delay_s=0.6), "no reply within 0.3 s (2 attempts)"),
    (says("Yes", seconds_per_byte=0.02), "no reply within 0.3 s (2 attempts)"),
])
def test_after_the_last_attempt_there_is_no_verdict(bad: Reply, seen: str) -> None:
    judgement, server, _ = judge_one(lambda call, number: bad, timeout_s=0.3, attempts=2)
    assert judgement == Judgement(None, seen, replied=False) and len(server.calls) == 2


def test_a_server_that_is_down_costs_its_attempts_once_and_not_once_per_call() -> None:
    with unused_url() as url:
        started = time.monotonic()
        judgements = judge(url, [("a", str(i)) for i in range(500)], attempts=2, concurrency=4)
    assert time.monotonic() - started < 10.0, "500 calls with a back-off of their own would take longer"
    assert all(judgement.equal is None and not judgement.replied for judgement in judgements)
    assert "ConnectError" in judgements[0].seen and "not asked, after" in judgements[-1].seen


def test_calls_that_fail_in_a_row_end_the_asking_and_a_reply_between_them_does_not() -> None:
    pairs = [("a", str(i)) for i in range(30)]
    with ChatServer(lambda call, number: Reply(b"", 500)) as server:
        judge(server.url, pairs, attempts=1, concurrency=1)
    assert len(server.calls) == GIVE_UP_AFTER
    with ChatServer(lambda call, number: says("No") if number % 7 == 6 else Reply(b"", 500)) as server:
        judgements = judge(server.url, pairs, attempts=1, concurrency=1)
    assert len(server.calls) == 30 and sum(judgement.equal is False for judgement in judgements) == 4


@pytest.mark.parametrize(
    ("reply", "seen"),
    [
        (says("I would say so"), "'I would say so'"),
        (says(""), "''"),
        (says(None), "whose content is 'None'"),
        (Reply(b"<html>Welcome to nginx</html>"), "not a chat completion: '<html>Welcome"),
        (Reply(b'{"choices": []}'), "not a chat"),
        (Reply(b'{"error": "overloaded"}'), "not a chat completion"),
        (Reply(b"[1, 2"), "not a chat"),
        (Reply(b"\xff\xfe"), "not a chat"),
        (Reply(b'{"choices": [{"message": null}]}'), "not a chat completion"),
    ],
)
def test_nonsense_is_no_verdict_and_is_not_asked_again(reply: Reply, seen: str) -> None:
    judgement, server, _ = judge_one(lambda call, number: reply)
    assert judgement.equal is None and judgement.replied and seen in judgement.seen and len(server.calls) == 1


def test_a_refused_request_is_not_asked_again() -> None:
    judgement, server, _ = judge_one(lambda call, number: Reply(b"too many tokens", 400))
    assert judgement == Judgement(None, "HTTP 400: 'too many tokens'", replied=False) and len(server.calls) == 1


def test_refused_requests_do_not_end_the_asking() -> None:
    with ChatServer(lambda call, number: Reply(b"too many tokens", 400)) as server:
        judgements = judge(server.url, [("a", str(i)) for i in range(GIVE_UP_AFTER + 4)], concurrency=1)
    assert len(server.calls) == GIVE_UP_AFTER + 4 and not any(judgement.replied for judgement in judgements)


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "set api_key_env"), (403, "may not use this model"), (404, "check url .* and model")]
)
def test_what_only_the_configuration_can_mend_is_an_error_at_once(
    status: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame")
    with ChatServer(lambda call, number: Reply(f"{call.headers['Authorization']}?".encode(), status)) as server:
        expected = (
            rf"model 'm' at http://127.0.0.1:\d+/v1/chat/completions: HTTP {status}: 'Bearer \*\*\*\?'; .*{remedy}")
        with pytest.raises(JudgeError, match=expected) as caught:
            judge(server.url, [("a", str(i)) for i in range(40)], api_key_env="JUDGE_KEY", concurrency=4)
        assert "sesame" not in str(caught.value)
        time.sleep(0.2)
        assert len(server.calls) <= 8, "the others do not go on asking"


def test_the_bound_on_requests_at_once_holds_over_all_groups() -> None:
    with ChatServer(together(3)) as server:
        asked = OpenAIJudge(Endpoint(server.url, "m", concurrency=3))

        async def batch() -> None:
            await asyncio.gather(*(asked.judge("?", [("a", "b"), ("b", "a")]) for _ in range(6)))

        for _ in range(2):  # each batch has an event loop of its own
            asyncio.run(batch())
    assert len(server.calls) == 24 and server.most_at_once == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Endpoint("localhost:8000/v1", "m"), lambda: Endpoint("http://x/v1", "m", concurrency=0),
        lambda: Endpoint("http://x/v1", "m", timeout_s=float("nan")),
        lambda: Endpoint("http://x/v1", "m", attempts=0), lambda: Endpoint("http://x/v1", "m", max_tokens=0),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Endpoint]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()
