"""Objects of a program -> names in a configuration."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from otherhalf.inputs import as_rewards, as_section, remove_unused, source_digest, take_in, write_model, write_rows
from rewards.accuracy import accuracy
from rewards.errors import UserError
from rewards.loading import handing_over, load
from rl.configuration.loading import validated, with_settings
from rl.paths import resolve_path
from rl.runs.folder import RunFolder

ROWS: list[dict[str, Any]] = [
    {"question": "1+1=?", "answer": 2, "level": [1, None]}, {"question": "1+2=?", "answer": 3, "level": [2, None]}]


def one(*, completions: list[str], **columns: object) -> list[float]:
    return [1.0 for _ in completions]


def two(*, completions: list[str], **columns: object) -> list[float]:
    return [2.0 for _ in completions]


class Scaled:
    __hash__ = None  # type: ignore[assignment]  # as a dataclass has it

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, *, completions: list[str], **columns: object) -> list[float]:
        return [self.scale for _ in completions]


def test_rows_become_a_file_that_is_named_by_its_contents(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "inputs", "data", ROWS)
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    assert write_rows(tmp_path / "inputs", "data", datasets.Dataset.from_list(ROWS)) == path
    assert write_rows(tmp_path / "inputs", "data", [{**row, "answer": np.int64(row["answer"])} for row in ROWS]) == path
    assert write_rows(tmp_path / "inputs", "data", ROWS[:1]) != path


@pytest.mark.parametrize(("rows", "message"), [
    (["1+1=?"], "data: row 1: saw '1+1=?'; expected a dict"),
    ([ROWS[0], {"question": object()}], "data: row 2: field 'question': saw a value of type object"),
    (3, "data: saw 3; expected a path, a list of dicts or a datasets.Dataset"),
])
def test_other_rows_are_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        write_rows(tmp_path, "data", rows)
    assert message in str(caught.value)


def test_numpy_within_rows_is_as_pythons(tmp_path: Path) -> None:
    rows = [{"x": {"y": np.int64(3)}, "z": [np.float64(0.5), np.array([{"w": np.int64(1)}], dtype=object)]}]
    path = write_rows(tmp_path, "data", rows)
    assert json.loads(path.read_text()) == {"x": {"y": 3}, "z": [0.5, [{"w": 1}]]}


def test_a_model_is_named_by_all_its_files(tmp_path: Path) -> None:
    """Another tokenizer or configuration is another model."""
    path = str(resolve_path("models/tiny-arith"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    first = write_model(tmp_path, model, tokenizer)
    assert write_model(tmp_path, model, tokenizer) == first
    tokenizer.chat_template = "{{ messages[0].content }}"
    second = write_model(tmp_path, model, tokenizer)
    model.config.rope_theta = 7.0
    assert len({first, second, write_model(tmp_path, model, tokenizer)}) == 3
    for key, value in (("teacher", model), ("rewards", [model]), ("steps", one)):
        with pytest.raises(UserError, match=rf"^{key}(\.0)?: saw .*; expected a value as a file has it"):
            take_in(with_settings(None, {key: value}), RunFolder(tmp_path))


def test_a_dataset_dict_is_refused_with_its_splits() -> None:
    whole = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    with pytest.raises(UserError, match=r"data: a DatasetDict; .* data=dataset\['train'\]"):
        as_section("data", whole)


def test_objects_stand_wherever_their_names_do(tmp_path: Path) -> None:
    settings = {"data": {"path": ROWS, "limit": 1}, "evaluation.path": ROWS, "evaluation.reward": one,
                "rewards": as_rewards([two, accuracy, {"use": one, "weight": 0.5}, "my.py:f"]), "run_dir": tmp_path}
    values = with_settings(None, settings)
    functions = take_in(values, RunFolder(tmp_path))
    config = validated(values)
    assert Path(config.data.path).parent == tmp_path / "inputs" and config.data.limit == 1
    assert config.evaluation.path is not None and "evaluation-" in config.evaluation.path
    assert [reward.use for reward in config.rewards] == [
        f"python:two@{source_digest(two)}", "rewards.accuracy:accuracy", f"python:one@{source_digest(one)}", "my.py:f"]
    assert config.evaluation.reward == config.rewards[2].use and config.rewards[2].weight == 0.5
    with handing_over(functions):
        assert load(config.rewards[0].use) is two
    with pytest.raises(UserError, match=r"handed this function over.* Remedy: the same program with resume"):
        load(config.rewards[0].use)


def test_a_lone_reward_is_a_list_of_one_and_trls_are_called_as_trl_calls_them() -> None:
    assert as_rewards(one) == [one] and as_rewards("my.py:f") == ["my.py:f"]
    from trl.rewards import get_soft_overlong_punishment

    function = get_soft_overlong_punishment(max_completion_len=10, soft_punish_cache=2)
    assert as_rewards([function]) == [{"use": function, "style": "trl"}]
    assert as_rewards([{"use": function, "weight": 2}]) == [{"use": function, "style": "trl", "weight": 2}]


def test_a_digest_is_of_the_source() -> None:
    assert source_digest(one) != source_digest(two) and source_digest(Scaled(1.0)) == source_digest(Scaled(1.0))
    assert source_digest(functools.partial(one, scale=1)) != source_digest(functools.partial(one, scale=2))
    typed: dict[str, Any] = {}
    exec("def f(**columns): return [1.0]\ndef g(**columns): return [2.0]", typed)  # whose source nobody has
    assert source_digest(typed["f"]) != source_digest(typed["g"])


def scaled(scale: Any) -> Any:
    def reward(*, completions: list[str], **columns: object) -> list[float]:
        return [scale for _ in completions]

    return reward


def test_a_digest_is_of_plain_values_too_and_of_no_address() -> None:
    assert source_digest(scaled(3)) != source_digest(scaled(5)) and source_digest(scaled(3)) == source_digest(scaled(3))
    assert source_digest(scaled((1, "a"))) != source_digest(scaled((1, "b")))
    assert source_digest(scaled([1])) == source_digest(scaled([2]))  # it may have been filled since
    first, second = lambda *, weight=1, **columns: [1.0], lambda *, weight=1, **columns: [2.0]
    assert source_digest(first) != source_digest(second)
    third, fourth = [lambda scale=scale, **columns: [scale] for scale in (1, 2)]
    assert source_digest(third) != source_digest(fourth)
    live = [functools.partial(one, judge=object(), words=["a"]) for _ in range(2)]
    assert source_digest(live[0]) == source_digest(live[1])
    assert source_digest(live[0]) != source_digest(functools.partial(one, judge=object(), words=["b"]))


def test_no_function_takes_the_place_of_another_with_its_digest(tmp_path: Path) -> None:
    rewards = [Scaled(1.0), Scaled(2.0), scaled([1]), scaled([2])]
    again = rewards[0]
    values = with_settings(None, {"rewards": as_rewards([*rewards, again]), "run_dir": tmp_path})
    functions = take_in(values, RunFolder(tmp_path))
    assert [functions[use] for use in values["rewards"]] == [*rewards, again]
    assert [use.partition("@")[0] for use in values["rewards"]] == [
        "python:Scaled", "python:Scaled.2", "python:reward", "python:reward.2", "python:Scaled"]


@pytest.mark.parametrize(("model", "message"), [
    (3, "model: saw 3; expected a folder, a hub id or a transformers model"),
    ("untied", "tokenizer: missing"),
])
def test_other_models_are_refused(tmp_path: Path, model: object, message: str) -> None:
    class Loaded:
        config = None

        def save_pretrained(self, folder: Path) -> None:
            raise AssertionError

    with pytest.raises(UserError, match=message):
        write_model(tmp_path, Loaded() if model == "untied" else model, None)


def test_what_no_run_took_is_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    write_rows(folder.inputs, "data", ROWS)
    remove_unused(folder, set())
    assert not folder.path.exists()


def test_settings_name_what_is_wrong_without_calling_it_an_override() -> None:
    with pytest.raises(UserError) as caught:
        with_settings(None, {"lrr": 1, "optim.lrr": 1})
    assert str(caught.value).splitlines() == [
        "lrr: unknown key; did you mean optim.lr?", "optim.lrr: unknown key; did you mean optim.lr?"]
    with pytest.raises(UserError, match=r"^optim\.lr: saw -1; expected a number > 0"):
        validated(with_settings(None, {"optim": {"lr": -1}}))
    dotted, section = {"optim.lr": 1e-4}, {"optim": {"warmup_steps": 3}}
    for settings in ({**dotted, **section}, {**section, **dotted}):
        assert with_settings(None, settings) == {"optim": {"lr": 1e-4, "warmup_steps": 3}}
    columns = {"data.columns.answer": "gold", "data": {"path": ROWS, "columns": {"id": "name"}}}
    assert with_settings(None, columns) == {"data": {"path": ROWS, "columns": {"answer": "gold", "id": "name"}}}
    values = with_settings(None, {"model.dtype": "float32", "model": "models/tiny-arith"})
    assert values == {"model": {"dtype": "float32", "path": "models/tiny-arith"}}
