"""The state of a run as an earlier version of the project wrote it (cut short in its tokens), and as a record.

earlier_state.json was written when `TrainerState` was made of dictionaries: step 3 of a run with refilling, sampling
ahead, held-out questions and a benchmark.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl.trainer_state import TrainerState


def earlier_state() -> dict[str, Any]:
    value: dict[str, Any] = json.loads((Path(__file__).parent / "earlier_state.json").read_text())
    return value


def trainer_state(step: int) -> TrainerState:
    return replace(TrainerState.from_json(earlier_state()), step=step)
