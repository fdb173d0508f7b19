"""Finding reward functions, and what is said when there is none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rewards.contract import RewardError
from rewards.loading import load


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(text)
    return path


def test_a_function_is_found_in_a_module_and_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rewards.accuracy import accuracy

    assert load("rewards.accuracy:accuracy") is accuracy
    path = write(tmp_path, "def brevity(completions, **columns):\n    return [-float(len(c)) for c in completions]\n")
    assert load("mine.py:brevity", search_from=tmp_path)(completions=["ab"]) == [-2.0]
    assert load(f"{path}:brevity") is load("mine.py:brevity", search_from=tmp_path), "a file is imported once"
    monkeypatch.chdir(tmp_path)
    assert load("mine.py:brevity")(completions=["abc"]) == [-3.0]


def test_a_dataclass_in_a_reward_file_works(tmp_path: Path) -> None:
    write(tmp_path, "from __future__ import annotations\nfrom dataclasses import dataclass\n"
                    "@dataclass\nclass A:\n    x: int = 1\n"
                    "def score(**columns): return [float(A().x)]\n")
    assert load("mine.py:score", tmp_path)() == [1.0]


def test_modules_beside_the_file_and_the_configuration_and_in_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And after what is installed: a file named as a library does not take its place."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    for folder, text in {"config": "x = 1", "reward": "x = 2", "here": "x = 3"}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"only_in_{folder}.py").write_text(f"{text}\ndef f(): return [x]\n")
    (tmp_path / "reward" / "json.py").write_text("raise AssertionError\n")
    monkeypatch.chdir(tmp_path / "here")
    path = write(tmp_path / "reward", (
        "import json\nimport only_in_here\n\ndef score(**columns):\n    import only_in_reward\n"
        "    return [float(only_in_here.x), float(only_in_reward.x)]\n"))
    assert load(f"{path}:score")() == [3.0, 2.0]
    assert load("only_in_config:f", tmp_path / "config")() == [1]


@pytest.mark.parametrize(("use", "message"), [
    ("rewards.accuracy", "names no function; write package.module:name or file.py:name"),
    (":accuracy", "names no function"), ("rewards.accuracy:", "names no function"),
    ("nothing_here.py:f", "there is no file .*nothing_here.py"),
    ("no_such_package.part:f", "there is no module 'no_such_package'"),
    ("rewards.no_such_part:f", "there is no module 'rewards.no_such_part'"),
    ("rewards.accuracy:acuracy", "has no 'acuracy'; did you mean 'accuracy'"),
    ("rewards.extraction:RULES", "RULES is tuple, expected a function"),
])
def test_what_cannot_be_found_is_named_with_a_remedy(use: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        load(use)


@pytest.mark.parametrize(("text", "message"), [
    ("x = 1\nraise KeyError('gone')\n", r"KeyError: 'gone' at .*mine\.py:2"),
    ("def f(:\n    pass\n", r"SyntaxError: .*mine\.py:1"),
    ("import not_installed_anywhere\n", r"ModuleNotFoundError: .*mine\.py:1"),
])
def test_a_file_that_fails_to_import_is_reported_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text)
    with pytest.raises(RewardError, match=message) as caught:
        load("mine.py:f", tmp_path)
    assert caught.value.__cause__ is not None
