"""Clusters of a group's answers -> what agreement is worth: label-free rewards as functions of p(c(o_i))
(arXiv:2504.05812, 2504.16084).

What the clusters were made with (rules, a model, embeddings) does not matter here. To add a form, extend `Form` and
`Agreement`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rewards.clustering import Clusters

Form = Literal["share", "log", "power", "majority"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """r_i = p(c(o_i)) for share, ln p(c(o_i)) for log, p(c(o_i))^power for power; for majority 1 for the one largest
    cluster, else 0.

    unanswered: the reward of a completion without an answer; None stands for 0, and for ln(1/G) with log, where 0 would
    be the best value of all. Ties for the largest cluster share nothing. Raises ValueError for an unknown form, or a
    power that is not above 0.
    """

    form: Form = "share"
    power: float = 1.0
    unanswered: float | None = None

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form is {self.form!r}, expected one of {', '.join(get_args(Form))}")
        if not isinstance(self.power, (int, float)) or not self.power > 0:
            raise ValueError(f"power is {self.power!r}, expected a number above 0")

    def of(self, clusters: Clusters) -> list[float]:
        """[G], one reward per completion."""
        floor = math.log(1 / len(clusters.labels)) if self.form == "log" else 0.0
        without_answer = floor if self.unanswered is None else self.unanswered
        winner = clusters.majority[0] if len(clusters.majority) == 1 else None
        values = [float(label == winner) if self.form == "majority" else self._value(share)
                  for label, share in zip(clusters.labels, clusters.shares, strict=True)]
        return [value if is_answered else without_answer
                for value, is_answered in zip(values, clusters.answered, strict=True)]

    def _value(self, share: float) -> float:
        if self.form == "log":
            return math.log(share)
        return share**self.power if self.form == "power" else share
