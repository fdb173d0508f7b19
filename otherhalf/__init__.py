"""otherhalf in Python: `otherhalf.train`, `evaluate`, `answer`, `grade`, `grade_many`, `cluster`.

Nothing is computed here: what a program gives is translated into what the commands take, and the same functions run it.
Names are imported when they are asked for: `import otherhalf` loads neither torch nor anything else of weight.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.answer import Agreement
    from otherhalf.sampling import Evaluation, Policy, answer, evaluate
    from otherhalf.training import TrainResult, train
    from rewards.accuracy import Verdict, grade, grade_many
    from rewards.clustering import Clusters, cluster
    from rewards.contract import GroupScore
    from rewards.errors import UserError

__all__ = [
    "Agreement", "Clusters", "Evaluation", "GroupScore", "Policy", "TrainResult", "UserError", "Verdict", "answer",
    "cluster", "evaluate", "grade", "grade_many", "train",
]

_PLACES = {
    "eval.answer": ("Agreement",),
    "otherhalf.sampling": ("Evaluation", "Policy", "answer", "evaluate"),
    "otherhalf.training": ("TrainResult", "train"),
    "rewards.accuracy": ("Verdict", "grade", "grade_many"),
    "rewards.clustering": ("Clusters", "cluster"),
    "rewards.contract": ("GroupScore",),
    "rewards.errors": ("UserError",),
}


def __getattr__(name: str) -> Any:
    for place, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(place), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
