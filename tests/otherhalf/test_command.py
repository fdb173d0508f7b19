from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from otherhalf.command import COMMANDS, main
from rl.paths import project_root
from tests.reference.whole_run import own_environment


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    for word, (_, purpose) in COMMANDS.items():
        assert f"  {word:<10}{purpose}\n" in page
    assert max(map(len, page.splitlines())) <= 100


@pytest.mark.parametrize("word", COMMANDS)
def test_each_word_names_a_command(word: str) -> None:
    assert callable(importlib.import_module(COMMANDS[word][0]).main)


def test_words_are_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--reward", "rewards.accuracy:accuracy", "--answer", "4", "--completion", r"\boxed{4}"]
    assert main(["explain", *words]) == 0
    assert "against the gold answer" in capsys.readouterr().out
    assert main(["train", "sampling.group_size=1", "--print-config"]) == 2
    assert "sampling.group_size: saw 1; expected a whole number >= 2" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["trian"], "error: 'trian' is no command of otherhalf; did you mean train? otherhalf --help lists them\n"),
    (["zzz"], "error: 'zzz' is no command of otherhalf; otherhalf --help lists them\n"),
])
def test_an_unknown_word_suggests_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == message


def test_without_a_word_the_page_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: otherhalf COMMAND" in capsys.readouterr().err


def test_it_is_a_module_too() -> None:
    ended = subprocess.run([sys.executable, "-m", "otherhalf", "--version"], capture_output=True, text=True,
                           cwd=project_root(), env=own_environment(), check=True)
    assert ended.stdout.startswith("otherhalf ")


MANY = [word for number in range(400) for word in ("--completion", f"{number} {'x' * 300}")]


@pytest.mark.parametrize("words", [
    ["rewards.explain", "--reward", "rewards.format:format_boxed", *MANY],
    ["otherhalf", "explain", "--reward", "rewards.format:format_boxed", *MANY],
    ["rl.train", "--help"],
])
def test_output_that_nobody_reads_ends_a_command_without_a_word(words: list[str]) -> None:
    """`| head`: the reader goes away before the output has ended, or before it has begun."""
    with subprocess.Popen([sys.executable, "-m", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          cwd=project_root(), env=own_environment()) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (141, b"")
