"""Under which prompt a policy is asked: what the command line says, else what the run had that trained it, else the
benchmark's protocol. Another prompt than its run's makes of 94% right answers none, so a difference is told.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from eval.options import positive_list
from eval.tasks import Asked
from rl.questions.run_prompt import RunPrompt


def with_prompt(
    asked: Asked, options: argparse.Namespace, run: RunPrompt | None, began: datetime.date | None = None
) -> Asked:
    """asked.prompt, where it names one, stays; the rest is the options', the run's or the default. began: the day on
    which an evaluation that goes on began."""
    own: dict[str, Any] = {} if run is None else _of_run(run)
    said = _said(options)
    if said.get("chat_template") == "never":
        own.pop("chat_template_kwargs", None)
    chosen = own | said
    chosen["prompt"] = asked.prompt or own.get("prompt")
    chosen["date"] = chosen.get("date") or began
    return dataclasses.replace(asked, **chosen)


def tell_differences(options: argparse.Namespace, run: RunPrompt | None, benchmarks: Iterable[tuple[str, str]]) -> None:
    """One line on stderr where the prompt is not the run's, or not that of a benchmark's protocol. benchmarks: names
    with their own prompts."""
    if run is None:
        return
    precision = []
    for what, option, trained, asked in (
        ("output layer", "--head-dtype", run.head_dtype or "null", options.head_dtype),
        ("precision of the base", "--quantization", run.quantization or "null", options.quantization),
    ):
        if asked not in (None, trained):
            _note(f"another {what} than {run.folder} was trained with: {option} {asked} (in training {trained})")
        if (chosen := asked or trained) != "null":
            precision.append(f" {option} {chosen}")
    own = _of_run(run)
    differences = [f"--{key.replace('_', '-')} {_shown(value)} (in training {_shown(own[key])})"
                   for key, value in _said(options).items() if value != own[key]]
    others = [f"{name}: {prompt}" for name, prompt in benchmarks if prompt != own["prompt"]]
    if differences:
        line = f"another prompt than {run.folder} was trained with: {', '.join(differences)}"
    elif options.prompt is None and (others or _beyond_template(own) or precision):
        protocol = f", not the protocol's ({', '.join(others)})" if others else ""
        line = (f"asked with the prompt of {run.folder}, {own['prompt']}{protocol}; its base is compared under "
                f"{' '.join(_as_options(own))}{''.join(precision)}")
    else:
        return
    _note(line)


def _note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def _said(options: argparse.Namespace) -> dict[str, Any]:
    """What the command line has of the fields of Asked that a prompt decides."""
    ids = options.stop_token_ids
    said = {
        "prompt": options.prompt, "chat_template": options.chat_template,
        "chat_template_kwargs": options.chat_template_kwargs, "date": options.date,
        "stop_strings": options.stop_strings,
        "stop_token_ids": None if ids is None else positive_list(ids, "--stop-token-ids")}
    return {key: value for key, value in said.items() if value is not None}


def _of_run(run: RunPrompt) -> dict[str, Any]:
    prompt = run.prompt
    return {
        "prompt": prompt.template, "chat_template": prompt.chat_template,
        "chat_template_kwargs": prompt.chat_template_kwargs, "date": prompt.date, "stop_strings": run.stop_strings,
        "stop_token_ids": run.stop_token_ids}


def _beyond_template(own: Mapping[str, Any]) -> bool:
    """Whether a base that is evaluated by default gets another prompt or other stops, the template's name aside."""
    default = Asked()
    return any(own[key] != getattr(default, key) for key in own if key not in ("prompt", "date"))


def _as_options(own: Mapping[str, Any]) -> list[str]:
    """The options under which a base is asked alike, to be pasted into a shell."""
    default, words = Asked(), []
    for key, value in own.items():
        is_needless = value == getattr(default, key) or (key == "date" and own["chat_template"] == "never")
        if key == "prompt" or not is_needless:
            words.append(f"--{key.replace('_', '-')} {shlex.quote(_as_value(key, value))}")
    return words


def _as_value(key: str, value: Any) -> str:
    """As the option takes it (eval/options.py)."""
    if key == "stop_token_ids":
        return ",".join(map(str, value))
    if key in ("stop_strings", "chat_template_kwargs"):
        return json.dumps(value)
    return str(value)


def _shown(value: object) -> str:
    return "none" if value in (None, (), {}) else str(list(value) if isinstance(value, tuple) else value)
