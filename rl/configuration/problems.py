"""What pydantic found wrong with a configuration -> problems with the key, the value seen, what was expected, and what
was probably meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from rewards.errors import Problem, named
from rl.config import Section
from rl.configuration.keys import all_keys, default_of, expected, section_of, show_value
from rl.configuration.other_names import answer


def explain(error: ValidationError, root: type[Section]) -> dict[str, Problem]:
    """Dotted key -> its problem; a key that fails as each member of a union is named once."""
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        key, model, field = _locate(item["loc"], root)
        if key in problems:
            continue
        where = named(key) if key else ""
        if item["type"] == "extra_forbidden":
            problems |= _unknown(key, item["input"], model, root)
        elif item["type"] == "value_error":
            problems[key] = Problem(str(item["ctx"]["error"]), where)
        elif field is None:
            problems[key] = Problem("", where, seen(item["input"]), "a section (keys and values)")
        else:
            # The default of a section is all of its keys: too long to help.
            default = "" if section_of(field.annotation) is not None else f" (default {default_of(field) or 'none'})"
            problems[key] = Problem("", where, seen(item["input"]), expected(field) + default)
    return problems


def _unknown(key: str, value: Any, model: type[Section], root: type[Section]) -> dict[str, Problem]:
    """The problem with a key that does not exist, or of each that another framework has in a section of that name."""
    known = {name: problem for name, leaf in _leaves(key, value)
             if isinstance(value, dict) and (problem := answer(name, leaf, root)) is not None}
    return known or {key: unknown_key(key, model, root, value)}


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield key, value
    else:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)


def unknown_key(
    key: str, model: type[Section], root: type[Section], value: Any = None, whole: str | None = None
) -> Problem:
    """`key` does not exist in the section `model`: name the one that was probably meant, there or elsewhere.

    value: what it was given, if known. whole: the key of which `key` is the beginning that is unknown."""
    if (problem := answer(whole or key, value, root)) is not None:
        return problem
    prefix, _, name = key.rpartition(".")
    names = [item.name for item in all_keys(root) if not item.is_section]
    # By the last part alone: two keys of one section would look alike by its name.
    near_ending = closest(name, [other.rpartition(".")[2] for other in names])
    same_ending = [other for other in names if other.rpartition(".")[2] == name]
    like_ending = [other for other in names if other.rpartition(".")[2] == near_ending]
    # Too short for likeness: lr in optim.lrate.
    begins_alike = [field for field in model.model_fields if name.startswith(field)] if prefix else []
    in_section = closest(name, list(model.model_fields)) or next(iter(begins_alike), None)
    if in_section is not None and (prefix or not same_ending):
        near = f"{prefix}.{in_section}" if prefix else in_section
    else:
        # Of the keys of other sections only one of exactly that name: a person who names a section knows where to look.
        near = " or ".join((same_ending or ([] if prefix else like_ending))[:3])
    if near:
        return Problem(f"unknown key; did you mean {near}?", named(key))
    return Problem(f"unknown key; {prefix or 'the configuration'} has: {', '.join(model.model_fields)}", named(key))


def closest(name: str, candidates: Sequence[str]) -> str | None:
    """The candidate that is most like `name`, or None if none is like it."""
    matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    return matches[0] if matches else None


def seen(value: object) -> str:
    """A value as messages show it, at most 80 characters of it."""
    shown = repr(value) if isinstance(value, str) else show_value(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _locate(loc: Sequence[int | str], root: type[Section]) -> tuple[str, type[Section], FieldInfo | None]:
    """The dotted key of a pydantic location, its section's model, and its field if it is one.

    What follows a plain value in a location is an index into it, or the name of a union's member: only indices are
    kept."""
    parts: list[str] = []
    model = root
    field: FieldInfo | None = None
    is_plain = False
    for part in loc:
        if isinstance(part, int):
            parts.append(str(part))
        elif not is_plain:
            parts.append(part)
            field = model.model_fields.get(part)
            inner = section_of(field.annotation) if field is not None else None
            if inner is not None:
                model = inner
            else:
                is_plain = True
    return ".".join(parts), model, field
