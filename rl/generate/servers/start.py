"""Waiting until all servers of a list answer, and asking them many things at once: what every user of a `ReplicaPool`
does alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2

from rl.errors import GeneratorError
from rl.generate.servers.client import GENERATOR, ServerLostError, ServerRefusedError, ServerRole
from rl.generate.servers.replicas import Home, Replica, ReplicaPool, Server
from rl.records import PromptCompletion

START_WAIT_S, START_MESSAGE_EVERY_S = 1.0, 10.0


class CheckedServer(Server, Protocol):
    async def check(self) -> None:
        """Raises GeneratorError where it is not what the run needs, ServerLostError where it does not answer."""
        ...


class LogprobsServer(Server, Protocol):
    async def logprobs(self, pair: PromptCompletion) -> tuple[float, ...]:
        """Log-probabilities of the completion's tokens."""
        ...


C = TypeVar("C", bound=CheckedServer)
R = TypeVar("R", bound=LogprobsServer)


async def start_servers(pool: ReplicaPool[C], timeout_s: float, say: Callable[[str], None], remedy: str) -> None:
    """Wait until every server has been checked.

    Raises GeneratorError where one is not what the run needs, or does not answer in time; remedy: what to do then."""
    section = pool.role.section
    missing = {replica.server.url: "not asked yet" for replica in pool.replicas}
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as tasks:
            for replica in pool.replicas:
                tasks.create_task(_start_one(replica, missing, section))
            tasks.create_task(_say_who_is_missing(missing, say, pool.role.name))
    except TimeoutError:
        raise GeneratorError(
            f"after {timeout_s:g} s ({section}.start_timeout_s) no vLLM server answers at {_listed(missing)}",
            where=f"{section}.urls", remedy=remedy) from None
    except ExceptionGroup as errors:
        raise first_error(errors) from None


async def _start_one(replica: Replica[C], missing: dict[str, str], section: str) -> None:
    server = replica.server
    while True:
        try:
            await server.check()
        except ServerLostError as error:
            missing[server.url] = str(error)
            await asyncio.sleep(START_WAIT_S)
            continue
        except ServerRefusedError as error:
            raise GeneratorError(f"{server.url} refuses a request: {error}", where=f"{section}.urls") from error
        replica.is_ready = True
        del missing[server.url]
        return


async def _say_who_is_missing(missing: dict[str, str], say: Callable[[str], None], role: str) -> None:
    waited_s = 0.0
    while missing:
        await asyncio.sleep(min(START_WAIT_S, START_MESSAGE_EVERY_S))
        waited_s += START_WAIT_S
        if missing and waited_s % START_MESSAGE_EVERY_S == 0:
            say(f"{role}: after {waited_s:g} s no answer yet from {_listed(missing)}")


async def pool_logprobs(pool: ReplicaPool[R], pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
    """Log-probabilities of the completions' tokens in the order of the pairs: each by some server, in parallel."""
    found: list[tuple[float, ...]] = [()] * len(pairs)

    async def one(index: int, pair: PromptCompletion, home: Home[R]) -> None:
        async def ask(server: R) -> tuple[float, ...]:
            return await server.logprobs(pair)

        found[index] = await pool.request(home, ask)

    try:
        async with asyncio.TaskGroup() as tasks:
            for index, pair in enumerate(pairs):
                tasks.create_task(one(index, pair, await pool.open_home(1)))
    except ExceptionGroup as errors:
        raise first_error(errors) from None
    return found


def first_error(errors: BaseExceptionGroup[Any]) -> BaseException:
    """One exception of a group, out of nested groups."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def addresses(urls: Sequence[str], role: ServerRole = GENERATOR) -> list[str]:
    """The addresses without a slash or /v1 at their end. Raises GeneratorError for what is none, or for one that is
    given twice."""
    where, found = f"{role.section}.urls", list[str]()
    for url in urls:
        address = url.rstrip("/").removesuffix("/v1").rstrip("/")
        if not address.startswith(("http://", "https://")):
            raise GeneratorError(
                f"{url!r}, expected an address that begins with http:// or https://, such as http://localhost:8000",
                where=where)
        if not _has_host_and_port(address):
            raise GeneratorError(
                f"{url!r}, expected http://HOST:PORT with a host and a port from 1 to 65535, such as "
                "http://localhost:8000 or http://[::1]:8000", where=where)
        if address in found:
            raise GeneratorError(f"{url} is given twice", where=where, remedy="each server once")
        found.append(address)
    return found


def _has_host_and_port(address: str) -> bool:
    try:
        parts = urlsplit(address)
        fits = bool(parts.hostname) and parts.port != 0  # a port that is no number up to 65535 is a ValueError
        httpx2.URL(address)
    except (ValueError, httpx2.InvalidURL):
        return False
    return fits


def _listed(missing: dict[str, str]) -> str:
    return "; ".join(f"{url} ({reason})" for url, reason in missing.items())
