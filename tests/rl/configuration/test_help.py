"""rl/configuration/help.py: every key of the models appears in the help, with all that is to be known about it."""

from __future__ import annotations

import pytest

from rl.configuration.help import render_help
from rl.configuration.keys import Key, all_keys
from rl.train import COMMAND

KEYS = list(all_keys())


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_has_a_meaning_and_appears_in_the_help_with_type_default_and_meaning(key: Key) -> None:
    assert key.meaning, f"{key.name} has no description in rl/config.py"
    page = " ".join(render_help(COMMAND, width=100).split())
    if key.is_section:
        assert " ".join(f"{key.name}: {key.meaning}".split()) in page
    else:
        unit = f", in {key.unit}" if key.unit else ""
        assert (
            " ".join(f" {key.name} {key.expected}{unit}; default {key.default or 'none'} {key.meaning}".split()) in page
        )


def test_nested_and_listed_keys_are_dotted() -> None:
    names = {key.name for key in KEYS}
    assert {"steps", "data.columns.answer", "loss.correction.cap", "rewards.N.weight"} <= names
    assert len(names) == len(KEYS)


def test_types_bounds_choices_and_defaults_are_spelt_out() -> None:
    found = {key.name: (key.expected, key.unit, key.default) for key in KEYS}
    assert found["sampling.top_p"] == ("a number > 0 and <= 1", "", "1.0")
    assert found["selection.low"] == ("a number >= 0 and <= 1 or null", "", "null")
    assert found["loss.aggregation"] == ("one of: token, sequence, constant", "", "token")
    assert found["steps"] == ("a whole number >= 1", "steps", "40")
    assert found["sampling.stop_token_ids"] == ("a list, each entry a whole number", "", "[]")
    assert found["optim.betas"] == ("a list of 2 entries, each a number", "", "[0.9, 0.999]")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_width_but_for_words_that_are_longer(width: int) -> None:
    for line in render_help(COMMAND, width=width).splitlines()[2:]:
        assert len(line) <= width or len(line.split()) <= 2, line


def test_the_usage_names_the_program_and_every_option() -> None:
    page = render_help(COMMAND, width=100)
    assert page.startswith("usage: accelerate launch rl/train.py [--config FILE]")
    for option in ("--dry-run", "--print-config", "--resume", "--help", "KEY=VALUE"):
        assert f"  {option}" in page
