"""What a sampler in other processes tells while nobody answers: it waits for ever, and the trainer saves and says
so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Outages(Protocol):
    """A generator that may lose its sampler for a while. Both are called in the thread that called the generator, and
    may raise: the generator then stops waiting and lets the exception through.

    on_outage: once at the beginning of each outage. on_message: every second or two while it waits (whoever listens
    leaves out what it has heard already, and raises where the run is to stop), and for other news."""

    on_outage: Callable[[str], None] | None
    on_message: Callable[[str], None] | None
