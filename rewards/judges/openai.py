"""Pairs of answers -> verdicts of a model behind any OpenAI-compatible chat/completions endpoint, such as a `vllm
serve` process.

One request per ordered pair, temperature 0, a few tokens. What went wrong on the way is told apart:
- 408, 425, 429, 5xx, no connection, no reply in time: asked again, after exponential back-off with jitter, or after
Retry-After.
- 401, 403, 404: a wrong key, URL or model name. Always an error: no later call would do better.
- Another status, or a reply that is no verdict: not asked again (at temperature 0 it would say the same); no verdict.
After GIVE_UP_AFTER calls in a row that failed for good, the rest of the batch is not asked any more: a server that has
gone away costs one time-out, not one per completion. httpx2 is imported with the first call.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rewards.judges.questions import DEFAULT_PROMPT, JudgeError, Judgement, JudgePrompt, Pair, read_verdict, shortened

if TYPE_CHECKING:
    import httpx2

GIVE_UP_AFTER = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
_ASKED_AGAIN = {408, 425, 429}
_CONFIGURATION = {
    401: "the API key is missing or wrong: set api_key_env to the name of an environment variable that holds it",
    403: "the API key may not use this model", 404: "check url (it ends in /v1) and model"}


@dataclass(slots=True)
class _Session:
    """What the calls of one batch share. failed_in_a_row: calls without a reply since the server last showed that it is
    well."""

    client: httpx2.AsyncClient
    slots: asyncio.Semaphore
    users: int = 0
    failed_in_a_row: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """url: up to and with /v1. model: the name that the server knows it by. api_key_env: name of the environment
    variable that holds the key; None: no key is sent. concurrency: requests under way at once, over all groups of a
    batch, per process. timeout_s: for one request. attempts: how often a request is made at most. max_tokens: of a
    reply. extra_body: JSON of further fields of the request, such as
    {"chat_template_kwargs": {"enable_thinking": false}}. Raises ValueError for impossible settings."""

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 32
    timeout_s: float = 30.0
    attempts: int = 4
    max_tokens: int = 8
    extra_body: str = "{}"

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"url is {self.url!r}, expected one that begins with http:// or https://, such as "
                "http://localhost:8000/v1")
        for name in ("concurrency", "timeout_s", "attempts", "max_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a number above 0")


class OpenAIJudge:
    """Asks the model behind `endpoint`, in the words of `prompt`. Raises ValueError for an impossible prompt,
    JudgeError where the key's variable is not set."""

    def __init__(self, endpoint: Endpoint, prompt: str = DEFAULT_PROMPT) -> None:
        self._endpoint, self._url = endpoint, endpoint.url.rstrip("/") + "/chat/completions"
        self._prompt = JudgePrompt(prompt)
        self._key = None if endpoint.api_key_env is None else _read_key(endpoint.api_key_env)
        self._headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._fields = {"model": endpoint.model, "temperature": 0, "max_tokens": endpoint.max_tokens,
                        **json.loads(endpoint.extra_body)}
        self._sessions: dict[asyncio.AbstractEventLoop, _Session] = {}
        self._jitter = random.Random()  # its own: the global generator belongs to the run, which must be repeatable

    @property
    def place(self) -> str:
        return f"model {self._endpoint.model!r} at {self._url}"

    async def judge(self, question: str, pairs: Sequence[Pair]) -> list[Judgement]:
        if not pairs:
            return []
        async with self._session() as session:
            calls = [asyncio.ensure_future(self._judge_pair(session, question, pair)) for pair in pairs]
            try:
                return list(await asyncio.gather(*calls))
            finally:
                # After an error the others must not go on asking, with a client that is about to be closed.
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[_Session]:
        """One client for all groups that are being judged in this event loop; closed by the last of them."""
        import httpx2

        loop = asyncio.get_running_loop()
        session = self._sessions.get(loop)
        if session is None:
            at_once = self._endpoint.concurrency
            limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
            # The time-out below covers the whole request; httpx's would count each read, and a server that dribbles
            # would never end.
            client = httpx2.AsyncClient(headers=self._headers, timeout=None, limits=limits)
            session = _Session(client, asyncio.Semaphore(at_once))
            self._sessions[loop] = session
        session.users += 1
        try:
            yield session
        finally:
            session.users -= 1
            if session.users == 0:
                del self._sessions[loop]
                await session.client.aclose()

    async def _judge_pair(self, session: _Session, question: str, pair: Pair) -> Judgement:
        body = {**self._fields, "messages": [{"role": "user", "content": self._prompt.fill(question, pair)}]}
        async with session.slots:
            if session.failed_in_a_row >= GIVE_UP_AFTER:
                return Judgement(
                    None, f"not asked, after {session.failed_in_a_row} calls in a row had failed", replied=False)
            judgement, is_well = await self._ask(session.client, body)
            session.failed_in_a_row = 0 if is_well else session.failed_in_a_row + 1
            return judgement

    async def _ask(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> tuple[Judgement, bool]:
        """The judgement, and whether the server is well: it is where the request alone was at fault, such as a prompt
        above the context."""
        import httpx2

        seen, attempts = "", self._endpoint.attempts
        for attempt in range(attempts):
            wait_s = 0.0
            try:
                async with asyncio.timeout(self._endpoint.timeout_s):
                    response = await client.post(self._url, json=body)
            except TimeoutError:
                seen = f"no reply within {self._endpoint.timeout_s:g} s"
            except httpx2.TransportError as error:
                seen = f"{type(error).__name__}: {error}"
            else:
                status = response.status_code
                if status == 200:
                    return _read(response), True
                # A server may repeat the key; messages end up in logs.
                text = response.text.replace(self._key, "***") if self._key else response.text
                seen = f"HTTP {status}: {shortened(text)}"
                if status in _CONFIGURATION:
                    raise JudgeError(f"{seen}; {_CONFIGURATION[status]}", where=self.place)
                if status < 500 and status not in _ASKED_AGAIN:
                    return Judgement(None, seen, replied=False), True
                wait_s = _retry_after_s(response)
            if attempt + 1 < attempts:
                back_off_s = FIRST_WAIT_S * 2**attempt * self._jitter.uniform(0.5, 1.0)
                await asyncio.sleep(min(max(back_off_s, wait_s), LONGEST_WAIT_S))
        return Judgement(None, f"{seen} ({attempts} attempts)", replied=False), False


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise JudgeError(
            f"api_key_env is {variable!r}, but this environment variable is not set; export it, or leave api_key_env "
            "out for a server without a key")
    return key


def _read(response: httpx2.Response) -> Judgement:
    try:
        content = json.loads(response.content)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return Judgement(None, f"not a chat completion: {shortened(response.text)}")
    if not isinstance(content, str):
        return Judgement(None, f"a chat completion whose content is {shortened(str(content))}")
    return Judgement(read_verdict(content), shortened(content))


def _retry_after_s(response: httpx2.Response) -> float:
    """Seconds; 0 where the header is missing, or a date."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
