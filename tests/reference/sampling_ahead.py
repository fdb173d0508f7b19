"""Whole runs with the embedded sampler where the configuration names servers: what a sampler in other processes brings
with it (sampling ahead, outages), without servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from unittest.mock import patch

from rl.config import GeneratorSection
from rl.generate.generator_plan import GeneratorPlan
from rl.generate.protocol import Finished, Generator, Request, SamplingParameters
from rl.generate.transformers_generator import TransformersGenerator
from rl.policy.policy import Policy
from rl.records import Group
from rl.train import main
from tests.reference.whole_run import one_thread

SERVERS = ("generator={backend: vllm_server, urls: ['http://localhost:1']}",)
AHEAD = (*SERVERS, "generator.max_staleness=1")


class EmbeddedGenerator(TransformersGenerator):
    """Decodes `max_together` completions at a time in a copy of its own, so that groups finish one after the other, and
    asserts that it is never asked for two things at once. generate_s: what a call takes at least."""

    max_together = 8
    generate_s = 0.0

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy, merge=True, max_sequences=self.max_together)
        self._is_busy = False

    def generate(
        self, requests: Sequence[Request], parameters: SamplingParameters, finished: Finished | None = None
    ) -> list[Group]:
        assert not self._is_busy
        self._is_busy = True
        ends = time.monotonic() + self.generate_s
        try:
            groups = super().generate(requests, parameters, finished)
            time.sleep(max(0.0, ends - time.monotonic()))
            return groups
        finally:
            self._is_busy = False

    def take_over(self, policy: Policy, version: int) -> None:
        assert not self._is_busy
        super().take_over(policy, version)


def run(words: Sequence[str], make: Callable[[Policy], Generator] = EmbeddedGenerator) -> int:
    """`python -m rl.train` with these words, in this process on one thread, with the generator that `make` makes; the
    exit code."""
    def open_generator(config: GeneratorSection, policy: Policy, plan: GeneratorPlan | None = None) -> Generator:
        return make(policy)

    with one_thread(), patch("rl.run.open_generator", open_generator):
        return main(list(words))
