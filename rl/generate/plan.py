"""What the run plans for its sampler: sizes that are known before the first question is sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SamplerPlan:
    """max_tokens: of the longest prompt with the longest completion. cache_bytes_per_token: key/value cache of one token over all
    layers. trainer_bytes: what everything but the sampler will need on the device, 0 where it cannot be estimated. base_path: folder or
    hub id of the base model, with its revision. run_dir: the run's folder."""

    max_tokens: int
    cache_bytes_per_token: int
    trainer_bytes: int
    base_path: str
    revision: str | None
    trust_remote_code: bool
    run_dir: Path
