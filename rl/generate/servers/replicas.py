"""Servers that do the same work: who gets which request, what happens when one is lost, and how it comes back.

Requests that belong together have a Home: one server, so that its prefix cache serves them all. A request whose server
fails is sent again, after exponential back-off, to another one. A server that does not answer, or answers and no longer
has the policy version (it was started anew), is lost: left out, asked again and again in the background, and taken back
once it is prepared. While none is left requests wait, for as long as it takes. Everything here runs in one event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rl.errors import GeneratorError
from rl.generate.servers.client import ServerLostError, ServerRefusedError, ServerRole

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
MAX_FAILURES = 6  # of one request, on servers that are well otherwise
MESSAGE_EVERY_S = 1.5  # while nothing answers: who is told may end the run

T = TypeVar("T")


class Server(Protocol):
    """What the pool knows of a server."""

    url: str

    async def prepare(self) -> None:
        """Make it fit for requests. Raises ServerLostError, ServerRefusedError or GeneratorError where it is not."""
        ...

    async def is_well(self) -> bool:
        """Whether it answers, and has what `prepare` gave it."""
        ...


S = TypeVar("S", bound=Server)


@dataclass(slots=True, eq=False)
class Replica(Generic[S]):
    """under_way: requests sent to it or waiting for one of its slots. reason: why it is left out."""

    server: S
    slots: asyncio.Semaphore
    is_ready: bool = False
    reason: str = ""
    under_way: int = 0
    running: set[asyncio.Task[object]] = field(default_factory=set)
    probe: asyncio.Task[bool] | None = None


@dataclass(slots=True, eq=False)
class Home(Generic[S]):
    """Where requests that belong together go."""

    replica: Replica[S]


@dataclass(slots=True)
class Counts:
    """Since they were read last. waited_s: time in which something waited for a server and none answered."""

    retries: int = 0
    lost: int = 0
    taken_back: int = 0
    waited_s: float = 0.0


class ReplicaPool(Generic[S]):
    """max_requests: under way on one server at the same time. say: progress for people. outage: called when something
    begins to wait because no server answers, once until one answers again."""

    def __init__(
        self, servers: Sequence[S], max_requests: int, say: Callable[[str], None], outage: Callable[[str], None],
        role: ServerRole,
    ) -> None:
        self.role = role
        self.replicas = [Replica(server, asyncio.Semaphore(max_requests)) for server in servers]
        self._max_requests = max_requests
        self._say, self._outage = say, outage
        self._counts = Counts()
        self._changed = asyncio.Condition()
        self._out_since: float | None = None
        self._said_at = 0.0
        self._reviving: set[asyncio.Task[None]] = set()
        self._jitter = random.Random()  # its own: the global generator belongs to the run, which must be repeatable

    def ready(self) -> list[Replica[S]]:
        return [replica for replica in self.replicas if replica.is_ready]

    def read_counts(self) -> Counts:
        counts, self._counts = self._counts, Counts()
        if self._out_since is not None:
            now = asyncio.get_running_loop().time()
            counts.waited_s += now - self._out_since
            self._out_since = now
        return counts

    async def close(self) -> None:
        for task in self._reviving:
            task.cancel()
        await asyncio.gather(*self._reviving, return_exceptions=True)

    def forget_requests(self) -> None:
        """Nothing is under way: what was counted belongs to a batch that was given up."""
        for replica in self.replicas:
            replica.under_way = 0

    async def open_home(self, num_requests: int) -> Home[S]:
        """The server with the fewest requests under way, as soon as one has room; the requests count as under way from
        here on."""
        while True:
            replica = await self.some_ready()
            if replica.under_way < self._max_requests:
                replica.under_way += num_requests
                return Home(replica)
            async with self._changed:
                await self._changed.wait()

    async def some_ready(self, beside: Replica[S] | None = None) -> Replica[S]:
        """The ready server with the fewest requests under way, another than `beside` where there is another. Waits
        while there is none."""
        while not (ready := self.ready()):
            await self._wait_out()
        return min(
            (replica for replica in ready if replica is not beside), key=lambda replica: replica.under_way,
            default=ready[0])

    async def request(self, home: Home[S], ask: Callable[[S], Awaitable[T]]) -> T:
        """The answer to one of the home's requests. Raises GeneratorError where a server refuses it, or where it fails
        again and again on servers that are well."""
        seat, failures = home.replica, 0
        try:
            while True:
                if not seat.is_ready:
                    if not home.replica.is_ready:
                        home.replica = await self.some_ready()
                    seat = self._move(seat, home.replica)
                try:
                    async with seat.slots:
                        if not seat.is_ready:
                            continue
                        return await self._run(seat, ask)
                except ServerLostError as error:
                    self._counts.retries += 1
                    reason = str(error)
                if await self._probe(seat):
                    failures += 1
                    if failures == MAX_FAILURES:
                        raise self._failing(seat.server.url, failures, reason)
                else:
                    self.lose(seat, reason)
                await asyncio.sleep(self._back_off_s(failures))
                if failures:
                    seat = self._move(seat, await self.some_ready(beside=seat))
        except ServerRefusedError as error:
            raise GeneratorError(
                f"{seat.server.url} refuses a request: {error}", where=f"{self.role.section}.urls") from error
        finally:
            seat.under_way -= 1
            await self._notify()

    def lose(self, replica: Replica[S], reason: str) -> None:
        """Leave the server out; it is asked again and again, in the background, until it can be taken back."""
        if replica.is_ready:
            self._counts.lost += 1
            replica.is_ready = False
            left = f"{len(self.ready())} of {len(self.replicas)} servers left"
            self._say(f"{self.role.name}: {replica.server.url} is lost ({reason}); {left}")
            # A server that hangs would keep its other requests until they time out.
            for task in replica.running:
                task.cancel()
            replica.reason = reason
            reviving = asyncio.ensure_future(self._revive(replica))
            self._reviving.add(reviving)
            reviving.add_done_callback(self._reviving.discard)

    async def doubt(self, server: S) -> None:
        """Something that the server answered is not to be had: it counts as a retry, and the server is lost unless it
        is well."""
        self._counts.retries += 1
        replica = next(replica for replica in self.replicas if replica.server is server)
        if replica.is_ready and not await self._probe(replica):
            self.lose(replica, "it was started anew and has other weights")

    def _failing(self, url: str, failures: int, reason: str) -> GeneratorError:
        section = self.role.section
        return GeneratorError(
            f"{url} answers, but a request failed {failures} times, at last with: {reason}", where=f"{section}.urls",
            remedy=f"see the server's log; a higher {section}.request_timeout_s where it is slow")

    async def _run(self, replica: Replica[S], ask: Callable[[S], Awaitable[T]]) -> T:
        task: asyncio.Task[T] = asyncio.ensure_future(ask(replica.server))
        replica.running.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if replica.is_ready or (this is not None and this.cancelling()):
                raise
            raise ServerLostError("it was left out meanwhile") from None
        finally:
            replica.running.discard(task)

    async def _probe(self, replica: Replica[S]) -> bool:
        """Whether the server is well; asked once for all requests that failed meanwhile."""
        if not replica.is_ready:
            return False
        if replica.probe is None:
            replica.probe = asyncio.ensure_future(replica.server.is_well())
            replica.probe.add_done_callback(lambda _: setattr(replica, "probe", None))
        return await asyncio.shield(replica.probe)

    async def _revive(self, replica: Replica[S]) -> None:
        attempt = 0
        while True:
            await asyncio.sleep(self._back_off_s(attempt))
            attempt += 1
            try:
                await replica.server.prepare()
            except (ServerLostError, ServerRefusedError, GeneratorError) as error:
                reason = str(error)
                if isinstance(error, GeneratorError) and reason != replica.reason:
                    self._say(f"{self.role.name}: {replica.server.url} answers again and is not taken back: {reason}")
                replica.reason = reason
                continue
            self._counts.taken_back += 1
            replica.is_ready, replica.reason = True, ""
            answering = f"{len(self.ready())} of {len(self.replicas)} servers answer"
            self._say(f"{self.role.name}: {replica.server.url} is taken back; {answering}")
            await self._notify()
            return

    async def _wait_out(self) -> None:
        """Until one server answers, or a while has passed."""
        loop = asyncio.get_running_loop()
        if self._out_since is None:
            self._out_since = self._said_at = loop.time()
            self._outage(f"{self.role.name}: no server answers; waiting until one does ({self._reasons()})")
        async with self._changed:
            try:
                async with asyncio.timeout(MESSAGE_EVERY_S):
                    await self._changed.wait_for(self.ready)
            except TimeoutError:
                if loop.time() - self._said_at >= MESSAGE_EVERY_S:  # one of all that wait says it
                    self._said_at = loop.time()
                    self._say(f"{self.role.name}: still no server answers ({self._reasons()})")
                return
        if self._out_since is not None:
            self._counts.waited_s += loop.time() - self._out_since
            self._out_since = None

    def _reasons(self) -> str:
        return "; ".join(f"{replica.server.url}: {replica.reason}" for replica in self.replicas if not replica.is_ready)

    def _move(self, seat: Replica[S], to: Replica[S]) -> Replica[S]:
        seat.under_way -= 1
        to.under_way += 1
        return to

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _back_off_s(self, attempt: int) -> float:
        return float(min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S) * self._jitter.uniform(0.5, 1.0))
