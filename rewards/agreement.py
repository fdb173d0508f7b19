"""Clusters of a group's answers -> what agreement is worth: label-free rewards as functions of p(c(o_i))
(arXiv:2504.05812, 2504.16084).

What the clusters were made with (rules, a model, embeddings) does not matter here. To add a form, extend `Form` and
`agreement`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from rewards.clustering import Clusters

Form = Literal["share", "log", "power", "majority"]


def check_form(form: str, power: float) -> None:
    """Raises ValueError for an unknown form, or a power that is not above 0."""
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}, expected one of {', '.join(get_args(Form))}")
    if not isinstance(power, (int, float)) or not power > 0:
        raise ValueError(f"power is {power!r}, expected a number above 0")


def agreement(clusters: Clusters, form: Form, power: float = 1.0, unanswered: float | None = None) -> list[float]:
    """[G]: p(c(o_i)) for share, ln p(c(o_i)) for log, p(c(o_i))^power for power, 1 for the one largest cluster (else 0)
    for majority.

    unanswered: the reward of a completion without an answer; None stands for 0, and for ln(1/G) with log, where 0 would
    be the best value of all. Ties for the largest cluster share nothing.
    """
    floor = math.log(1 / len(clusters.labels)) if form == "log" else 0.0
    without_answer = floor if unanswered is None else unanswered
    winner = clusters.majority[0] if len(clusters.majority) == 1 else None
    values = [float(label == winner) if form == "majority" else _value(share, form, power)
              for label, share in zip(clusters.labels, clusters.shares, strict=True)]
    return [
        value if is_answered else without_answer for value, is_answered in zip(values, clusters.answered, strict=True)]


def _value(share: float, form: Form, power: float) -> float:
    if form == "log":
        return math.log(share)
    return share**power if form == "power" else share
