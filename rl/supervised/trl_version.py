"""Is TRL there, and is it a release that this version works with? Answered from its metadata, without the seconds that
its import takes."""

from __future__ import annotations

import importlib.metadata
import re

from rl.errors import ConfigError

TRL_VERSIONS = ("1.16", "1.17")
"""From the first, below the second. The extra `trl` in pyproject.toml names the same."""


def check_trl() -> None:
    """Raises ConfigError where TRL is missing or of another version."""
    first, last = TRL_VERSIONS
    remedy = "pip install -e '.[trl]'"
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "trl is not installed, and a warm-up trains with its SFTTrainer", expected=f"trl>={first},<{last}",
            remedy=remedy) from None
    if not _numbers(first) <= _numbers(version) < _numbers(last):
        raise ConfigError(f"trl {version} is installed; a warm-up was tested with trl>={first},<{last}", remedy=remedy)


def _numbers(version: str) -> tuple[int, ...]:
    """"1.16.0rc1" -> (1, 16): the two numbers that the range is about."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
