"""Every metric that a run writes has an entry: those of real runs, and those of some settings alone."""

import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from rewards.extraction import Rule
from rl.paths import project_root
from rl.update_report import TOKEN_MEANS, Distillation, Spread, UpdateReport
from tests.reference.viewed import lines_of
from view.glossary import METRICS, lookup

OWN = "reward/{reward}/{more}"  # what no entry of its own describes
WRITERS = (
    "rl/step_metrics.py", "rl/update_report.py", "rl/trainer.py", "rl/collect.py", "rl/proof/proof.py",
    "rl/supervised/loop.py", "rl/evaluation/held_out.py", "rl/evaluation/evaluations.py",
    "rl/generate/servers/generator.py", "rl/runs/tracking.py")
NO_METRICS = ("checkpoints/best",)


def described(name: str) -> bool:
    entry = lookup(name)
    return entry is not None and entry.name != OWN


@pytest.mark.slow
def test_every_metric_of_real_runs_is_in_the_glossary(two_runs: tuple[Path, Path]) -> None:
    names = {name for run in two_runs for line in lines_of(run / "metrics.jsonl") for name in line} - {"step", "kind"}
    assert len(names) > 80
    assert [name for name in sorted(names) if not described(name)] == []


def test_every_metric_that_the_update_reports_is_in_the_glossary() -> None:
    spread = Spread(**dict.fromkeys([field.name for field in fields(Spread)], 0.5))
    means = dict.fromkeys(TOKEN_MEANS.values(), 0.5)
    report = UpdateReport(1, 0.1, 0.1, 0.1, means, spread, spread, Distillation(0.1, 0.1), 0.1)
    assert len(report.metrics) == 25
    assert [name for name in report.metrics if not described(name)] == []


@pytest.mark.parametrize("file", WRITERS)
def test_every_name_with_a_slash_in_what_writes_metrics_is_in_the_glossary(file: str) -> None:
    tree = ast.parse((project_root() / file).read_text())
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    names = {text for text in texts if re.fullmatch(r"\w+(/\w+)+", text)} - set(NO_METRICS)
    assert [name for name in sorted(names) if not described(name)] == []


@pytest.mark.parametrize("name", [
    "collapse/no_reasoning_share", "reward/verifier_entropy/asymmetric_share", "reward/group/num_clusters",
    "anchors/trained", "reward/mine", "benchmark/reasoning_gym:sums/easy/maj@16/high", "benchmark/math500/pass@4",
    "flips/weight", "proof/survives", "groups/without_consensus", "sampler/waited_s", "ahead_wait_s", "teacher_s",
    "held_out/loss", "trained_tokens_per_s",
    *(f"reward/accuracy/extracted_by/{rule}" for rule in get_args(Rule))])
def test_a_metric_of_a_family_is_described(name: str) -> None:
    assert described(name)


def test_what_a_reward_of_ones_own_reports_is_told_to_be_that_and_other_names_are_not_known() -> None:
    assert lookup("reward/mine/median_lines") == next(metric for metric in METRICS if metric.name == OWN)
    assert lookup("nothing/such") is None


def test_each_entry_is_said_once_and_whole() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.unit and metric.meaning.endswith(".") and metric.normal.endswith("."), metric.name
        assert not metric.advice or metric.advice.endswith("."), metric.name
