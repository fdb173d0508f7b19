"""How a reward is given on the command line: what `python -m rewards.check` and `python -m rewards.explain` share."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rewards.errors import UserError

_EXAMPLES = {"--arguments": '{"longest": 30}', "--columns": '{"level": 3}'}


def add_reward_options(parser: argparse.ArgumentParser) -> None:
    """--style, --arguments and --columns."""
    parser.add_argument("--style", choices=("group", "trl"), default="group", help="trl: a function written for TRL")
    parser.add_argument("--arguments", default="{}", metavar="JSON", help="keyword arguments, as in a configuration")
    parser.add_argument(
        "--columns", default="{}", metavar="JSON", help="further columns of the question that the reward needs")


def read_object(option: str, text: str) -> dict[str, Any]:
    """The JSON object that was given with the option. Raises UserError for anything else."""
    expected = f"an object such as '{_EXAMPLES[option]}'"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(where=option, seen=f"{text!r}, which is not JSON ({error})", expected=expected) from None
    if not isinstance(value, dict):
        raise UserError(where=option, seen=repr(text), expected=expected)
    return value
