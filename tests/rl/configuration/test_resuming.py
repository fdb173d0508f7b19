"""rl/configuration/resuming.py: what differs between configurations, and which settings may differ when."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.config import Occasion, RunConfig, Section
from rl.configuration.keys import all_keys
from rl.configuration.loading import load, to_yaml
from rl.configuration.resuming import Difference, conflicts, differences, may_differ
from rl.rejection.config import RejectConfig
from rl.supervised.config import WarmupConfig

SERVERS = {
    f"generator.{key}" for key in ("urls", "api_key_env", "exchange_dir", "start_timeout_s", "request_timeout_s")}
MEMORY = {f"generator.{key}" for key in ("max_sequences", "memory_share", "cache_gb", "sleep")} | {
    "model.gradient_checkpointing"}
TEACHER = {f"teacher.{key}" for key in ("urls", "api_key_env", "max_requests", "start_timeout_s", "request_timeout_s")}
DAY = {"prompt.date"}
OF_A_RUN = {"generator.served_model", "generator.max_mismatch", "generator.proof_every", "generator.proof_completions"}


@pytest.mark.parametrize(
    ("model", "occasion", "keys", "sections"),
    [
        (
            RunConfig, Occasion.RUN,
            {"run_dir", "optim.micro_batch_tokens"} | DAY | SERVERS | MEMORY | TEACHER | OF_A_RUN,
            ("tracking.", "checkpoint.", "watchdog."),
        ),
        (
            RunConfig, Occasion.DONE, {"run_dir", "optim.micro_batch_tokens"} | SERVERS | MEMORY | TEACHER,
            ("tracking.",),
        ),
        (
            WarmupConfig, Occasion.WARMUP, {"run_dir", "evaluation.max_sequences", "merge"} | DAY,
            ("tracking.", "checkpoint."),
        ),
        (
            WarmupConfig, Occasion.DONE,
            {"run_dir", "evaluation.max_sequences", "optim.micro_batch_rows", "model.gradient_checkpointing"},
            ("tracking.",),
        ),
        (RejectConfig, Occasion.SAMPLING, {"run_dir", "generator.served_model"} | DAY | SERVERS, ("tracking.",)),
        (RejectConfig, Occasion.CHOICE, {"run_dir"}, ("tracking.", "keep.", "mix.")),
        (RejectConfig, Occasion.DONE, {"run_dir"} | SERVERS | MEMORY, ("tracking.",)),
    ],
)
def test_what_may_differ_is_what_changes_no_result(
    model: type[Section], occasion: Occasion, keys: set[str], sections: tuple[str, ...]
) -> None:
    plain = {key.name for key in all_keys(model) if not key.is_section}
    assert {name for name in plain if occasion & may_differ(model, name)} == keys | {
        name for name in plain if name.startswith(sections)}


def test_no_mark_is_taken_from_a_name_that_a_user_chose() -> None:
    assert may_differ(RejectConfig, "data.task.run_dir") == Occasion.NEVER
    assert may_differ(RejectConfig, "mix.0.ratio") == Occasion.CHOICE
    assert may_differ(RunConfig, "") == Occasion.NEVER


def test_conflicts_are_the_differences_that_are_not_free() -> None:
    words = ["data.task.max_terms=3", "run_dir=runs/other", "tracking.project=mine"]
    found = conflicts(load(None, []), load(None, [*words, "watchdog.window=1", "optim.lr=1e-6"]), Occasion.RUN)
    assert found == [Difference("data.task.max_terms", None, 3), ("optim.lr", 5e-4, 1e-6)]


def test_the_output_layers_dtype_stays_and_a_configuration_from_before_the_key_goes_on(tmp_path: Path) -> None:
    wide = load(None, ["model.head_dtype=float32"])
    assert conflicts(load(None, []), wide, Occasion.RUN) == [Difference("model.head_dtype", None, "float32")]
    stored = tmp_path / "config.yaml"
    stored.write_text(to_yaml(load(None, [])).replace("  head_dtype: null\n", ""))
    assert "head_dtype" not in stored.read_text() and conflicts(load(stored, []), load(None, []), Occasion.RUN) == []


def test_a_section_that_one_of_both_lacks_differs_in_each_of_its_keys_but_those_that_may() -> None:
    plain, taught = load(None, []), load(None, ["teacher.path=models/tiny-arith"])
    for found in (conflicts(plain, taught, Occasion.RUN), conflicts(taught, plain, Occasion.RUN)):
        keys = [difference.key for difference in found]
        assert "teacher.path" in keys and "teacher" not in keys and "teacher.max_requests" not in keys


@pytest.mark.parametrize("key", ["rewards.0.arguments.eps", "data.task.seed"])
def test_null_in_a_mapping_of_the_users_own_is_another_value_than_none(key: str) -> None:
    plain, null = load(None, []), load(None, [f"{key}=null"])
    assert conflicts(plain, null, Occasion.RUN) == [Difference(key, None, None)]
    assert conflicts(null, null, Occasion.RUN) == []


def test_in_mappings_of_a_file_null_is_as_none() -> None:
    assert differences({"a": None, "b": 1}, {"b": 1}) == differences({"b": 1}, {"a": None, "b": 1}) == []


def test_mappings_of_a_file_are_compared_as_deep_as_both_go() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "only_old": {"d": 1}, "list": [{"e": 1}]}
    new = {"a": {"b": 2, "c": [1, 3]}, "list": [{"e": 1}, {"e": 2}]}
    assert differences(old, new) == [
        ("a.b", 1, 2), ("a.c", [1, 2], [1, 3]), ("only_old", {"d": 1}, None), ("list.1.e", None, 2)]
