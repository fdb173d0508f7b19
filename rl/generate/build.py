"""Which class serves `generator.backend`. Each back end is imported only when it is asked for."""

from __future__ import annotations

from rl.config import GeneratorSection
from rl.generate.constants import MERGE_BELOW_BYTES
from rl.generate.protocol import Generator
from rl.policy import Policy


def build_generator(config: GeneratorSection, policy: Policy) -> Generator:
    """The generator that the configuration names, sampling from `policy`'s present weights."""
    if config.backend != "transformers":
        raise ValueError(
            f"generator.backend: {config.backend!r} is not a sampler of this version. Known: transformers. "
            "Remedy: generator.backend=transformers."
        )
    from rl.generate.transformers_generator import TransformersGenerator

    merge = config.sync == "merge" or (config.sync == "auto" and policy.base_bytes <= MERGE_BELOW_BYTES)
    generator = TransformersGenerator(policy, merge=merge, max_sequences=config.max_sequences)
    generator.take_over(policy, version=0)
    return generator
