"""One running `vllm serve` process over HTTP: each call that we use of it, with what its answers mean.

The calls are the same from vLLM 0.25.1 to 0.32. A failure is one of two kinds: ServerLostError, where another server or
the same one later may do better (no connection, no reply in time, 5xx, 408, 425, 429), and ServerRefusedError, which
says what the server has against the request.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2

from rl.errors import GeneratorError
from rl.generate.completions import Completion
from rl.generate.protocol import SamplingParameters
from rl.records import PromptCompletion

CONNECT_TIMEOUT_S = 10.0
SHORT_TIMEOUT_S = 30.0  # for questions that no generation stands behind
_ASKED_AGAIN = {408, 425, 429}
_NO_DEFAULTS = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Named in requests, because a checkpoint's generation_config.json may have others, which the server would take."""


class ServerLostError(Exception):
    """No answer, or one that says to come again. status: of the answer, where there was one."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class ServerRefusedError(Exception):
    """An answer that will not change. words: the server's own."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"HTTP {status}: {words}")
        self.status = status
        self.words = words


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One line of /v1/models. parent: of an adapter, the base's name. max_tokens: prompt and completion; None for
    adapters."""

    name: str
    parent: str | None
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class ServerRole:
    """What servers are for. section: of the configuration. name: what messages call the servers."""

    section: str
    name: str


GENERATOR, TEACHER = ServerRole("generator", "sampler"), ServerRole("teacher", "teacher")


def read_key(variable: str | None, role: ServerRole = GENERATOR) -> str | None:
    """The API key that this environment variable holds; None without a variable."""
    if variable is None:
        return None
    if key := os.environ.get(variable, "").strip():
        return key
    raise GeneratorError(
        f"{variable}, but this environment variable is not set", where=f"{role.section}.api_key_env",
        remedy="export it, or leave api_key_env out for servers without a key")


class ServerClient:
    """url: up to the port, such as http://localhost:8000. timeout_s: of a generation, from sending to the last byte.

    To be made and used in one event loop."""

    def __init__(
        self, url: str, key: str | None, timeout_s: float, max_connections: int, role: ServerRole = GENERATOR
    ) -> None:
        self.url, self.role = url, role
        self._key, self._timeout_s = key, timeout_s
        limits = httpx2.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
        # httpx's other time-outs count single reads; ours cover the whole call.
        self._http = httpx2.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"}, limits=limits,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S))

    async def close(self) -> None:
        await self._http.aclose()

    async def version(self) -> str:
        """Raises ServerRefusedError with status 200 where the address answers, and not as vLLM does."""
        reply = await self._call("GET", "/version")
        version = reply.get("version") if isinstance(reply, dict) else None
        if not isinstance(version, str):
            raise ServerRefusedError(200, f"GET /version gave {self._words(str(reply))}")
        return version

    async def check_health(self) -> None:
        await self._call("GET", "/health")

    async def models(self) -> list[ServedModel]:
        reply = await self._call("GET", "/v1/models")
        try:
            return [ServedModel(card["id"], card.get("parent"), card.get("max_model_len")) for card in reply["data"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise ServerRefusedError(200, f"GET /v1/models gave {self._words(str(reply))}") from error

    async def process_identity(self) -> str:
        """A text that is another one after the server was started anew: when its process began. A server of several API
        processes does not tell that, and the number of its engine's configuration is another in each of them."""
        metrics = await self._call("GET", "/metrics")
        for line in metrics.splitlines() if isinstance(metrics, str) else ():
            if line.startswith("process_start_time_seconds "):
                return str(line)
        raise ServerRefusedError(200, "GET /metrics does not tell one run of the server from the next")

    async def load_adapter(self, name: str, path: str) -> None:
        await self._call(
            "POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, timeout_s=self._timeout_s)

    async def unload_adapter(self, name: str) -> None:
        await self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def reload_weights(self, path: str) -> None:
        """vLLM's workers read the checkpoint in this folder into the model that they serve. A failure ends the engine
        (0.32)."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": path}}
        await self._call("POST", "/collective_rpc", body, timeout_s=self._timeout_s)

    async def reset_prefix_cache(self) -> None:
        await self._call("POST", "/reset_prefix_cache")

    async def complete(
        self, model: str, prompt: Sequence[int], seed: int, parameters: SamplingParameters,
        stop_token_ids: Sequence[int], cache_salt: str,
    ) -> Completion:
        """One completion. Prefix cache entries are shared by requests of one cache_salt only."""
        body = {
            "model": model, "prompt": list(prompt), "n": 1, "seed": seed,
            "max_tokens": parameters.max_completion_tokens, "temperature": parameters.temperature,
            "top_p": parameters.top_p, "top_k": parameters.top_k or -1, "logprobs": 0, "return_token_ids": True,
            # Only the trainer's own stop ids end a completion.
            "ignore_eos": True, "stop_token_ids": list(stop_token_ids), "stop": list(parameters.stop_strings),
            # A stop string may hold control tokens.
            "skip_special_tokens": False, "cache_salt": cache_salt}
        reply = await self._call("POST", "/v1/completions", body | _NO_DEFAULTS, timeout_s=self._timeout_s)
        try:
            [choice] = reply["choices"]
            token_ids, logprobs, reason = (
                tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]), choice["finish_reason"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServerRefusedError(
                200, f"no completion with token ids and log-probabilities: {self._words(str(reply))}") from error
        if reason not in ("stop", "length") or not token_ids or len(token_ids) != len(logprobs):
            raise ServerLostError(
                f"a completion of {len(token_ids)} tokens and {len(logprobs)} log-probabilities ended with "
                f"{self._words(repr(reason))}")
        return Completion(token_ids, logprobs, reason)

    async def tokenize(self, model: str, text: str) -> tuple[int, ...]:
        """The text's token ids by the served model's tokenizer, without special tokens of its own."""
        reply = await self._call("POST", "/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
        try:
            return tuple(reply["tokens"])
        except (KeyError, TypeError) as error:
            raise ServerRefusedError(200, f"POST /tokenize gave {self._words(str(reply))}") from error

    async def logprobs(self, model: str, pair: PromptCompletion, cache_salt: str) -> tuple[float, ...]:
        """Log-probabilities of the completion's tokens, without temperature."""
        prompt, completion = pair
        found = await self.prompt_logprobs(model, (*prompt, *completion), 0, cache_salt)
        try:
            return tuple(
                of_token[str(token)] for of_token, token in zip(found[-len(completion):], completion, strict=True))
        except (KeyError, ValueError) as error:
            raise ServerRefusedError(200, f"no log-probabilities of the prompt: {self._words(str(found))}") from error

    async def prompt_logprobs(
        self, model: str, ids: Sequence[int], count: int, cache_salt: str
    ) -> list[dict[str, float]]:
        """At each position of a text but the first, by their ids, the log-probabilities of its token and of the `count`
        likeliest, without temperature. vLLM reads no cached prefix for these."""
        body = {"model": model, "prompt": list(ids), "max_tokens": 1, "prompt_logprobs": count,
                "cache_salt": cache_salt}
        reply = await self._call("POST", "/v1/completions", body, timeout_s=self._timeout_s)
        try:
            return [{token: float(entry["logprob"]) for token, entry in of_token.items()}
                    for of_token in reply["choices"][0]["prompt_logprobs"][1:]]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise ServerRefusedError(200, f"no log-probabilities of the prompt: {self._words(str(reply))}") from error

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, query: dict[str, str] | None = None,
        timeout_s: float = SHORT_TIMEOUT_S,
    ) -> Any:
        """The reply's JSON, or its text where it is none."""
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._http.request(method, self.url + path, json=body, params=query)
        except TimeoutError:
            raise ServerLostError(f"no reply to {method} {path} within {timeout_s:g} s") from None
        except httpx2.RequestError as error:
            raise ServerLostError(
                type(error).__name__ + (f": {self._words(str(error))}" if str(error) else "")) from None
        status = response.status_code
        if status == 200:
            try:
                return json.loads(response.content)
            except ValueError:
                return response.text
        words = self._words(_message(response.text))
        if status >= 500 or status in _ASKED_AGAIN:
            raise ServerLostError(f"HTTP {status} to {method} {path}: {words}", status)
        raise ServerRefusedError(status, words)

    def _words(self, text: str, length: int = 300) -> str:
        """What may be shown of a server's text: one line, shortened, and without the key, which a server may repeat:
        messages end up in logs."""
        if self._key:
            for form in (self._key, json.dumps(self._key)[1:-1], repr(self._key)[1:-1]):
                text = text.replace(form, "***")
        text = " ".join(text.split())
        return text if len(text) <= length else text[: length - 3] + "..."


def _message(text: str) -> str:
    """The message in vLLM's or FastAPI's JSON of an error; the text itself where it is neither."""
    try:
        reply = json.loads(text)
    except ValueError:
        return text
    if isinstance(reply, dict):
        error = reply.get("error")
        return str(error.get("message", error) if isinstance(error, dict) else error or reply.get("detail") or reply)
    return text
