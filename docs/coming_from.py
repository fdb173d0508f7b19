"""Keys side by side: `python docs/coming_from.py` prints the tables of docs/coming_from.md, which
rl/configuration/other_names.py makes."""

from __future__ import annotations

from rl.config import RunConfig
from rl.configuration.keys import all_keys
from rl.configuration.other_names import TRL, VERL, Name


def corresponding() -> str:
    """One line for each key of ours that another framework has under another name, in the order of ours."""
    units = {key.name: key.unit for key in all_keys(RunConfig)}
    order = list(units)
    ours = dict.fromkeys(name.ours for name in (*TRL, *VERL) if name.ours)
    lines = ["| here | unit | TRL | verl | conversion |", "|---|---|---|---|---|"]
    for keys in sorted(ours, key=lambda keys: [order.index(key) for key in keys]):
        there = [[name for name in names if name.ours == keys] for names in (TRL, VERL)]
        cells = ["<br>".join(f"`{name.theirs}`" for name in names) for names in there]
        shown = "<br>".join(f"`{key}`" for key in keys)
        lines.append(f"| {shown} | {units[keys[0]]} | {' | '.join(cells)} | {_conversion([*there[0], *there[1]])} |")
    return "\n".join(lines)


def without_counterpart() -> str:
    lines = ["| TRL | verl | why |", "|---|---|---|"]
    for why in dict.fromkeys(name.note for name in (*TRL, *VERL) if not name.ours):
        cells = ["<br>".join(f"`{name.theirs}`" for name in names if not name.ours and name.note == why)
                 for names in (TRL, VERL)]
        lines.append(f"| {' | '.join(cells)} | {why} |")
    return "\n".join(lines)


def _conversion(names: list[Name]) -> str:
    """What is to be said of each of them, what is the same of several once."""
    texts = {name.theirs: "; ".join(filter(None, (
        ", ".join(f"`{theirs}` is `{settings}`" for theirs, settings in name.values.items()), name.note)))
        for name in names}
    return "<br>".join(
        ", ".join(dict.fromkeys(f"`{theirs.rpartition('.')[2]}`" for theirs, said in texts.items() if said == text))
        + f": {text}" for text in dict.fromkeys(texts.values()) if text)


if __name__ == "__main__":
    print(corresponding(), "", without_counterpart(), sep="\n")
