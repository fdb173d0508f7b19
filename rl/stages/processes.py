"""The processes of `accelerate launch rl/pipeline.py`: the main one decides, the others follow; each starts its own
process of a stage.

The stages' processes find each other as those of `accelerate launch rl/train.py` do, at a port that is chosen anew for
each stage: the launcher's own rendezvous still holds what the stage before has written there.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Callable
from typing import Any

# Of one process among several; without them a command takes itself for the only one.
_OF_A_RANK = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID")
_LONGEST_STAGE = datetime.timedelta(days=30)


class Ranks:
    def __init__(self) -> None:
        self.number, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._store: Any = None
        self._num_told = 0
        if self.count > 1:
            from torch.distributed import PrefixStore, rendezvous  # seconds, and not needed by one process

            store, _, _ = next(rendezvous("env://", timeout=_LONGEST_STAGE))
            self._store = PrefixStore("otherhalf-pipeline", store)

    @property
    def is_main(self) -> bool:
        return self.number == 0

    def from_main(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the main process (JSON), in all of them. Where it raises there, the launcher ends the
        others."""
        if self._store is None:
            return make()
        key = str(self._num_told)
        self._num_told += 1
        if self.is_main:
            value = make()
            self._store.set(key, json.dumps(value))
            return value
        return json.loads(self._store.get(key))


def environment_of_all(port: int) -> dict[str, str]:
    """For a stage's process on each rank. port: where the main rank's process waits for the others; 0 where there is
    one process."""
    return {**os.environ, **({"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"} if port else {})}


def environment_of_one() -> dict[str, str]:
    """For a stage's only process."""
    return {name: value for name, value in os.environ.items() if name not in _OF_A_RANK}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
