"""A pipeline's configuration: stages that follow each other, each with a configuration of its own. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, JsonValue, model_validator

from rl.config import Section, setting

StageKind = Literal["warmup", "rl", "reject", "eval"]
PREVIOUS, BASE = "previous", "base"


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]*[A-Za-z0-9][A-Za-z0-9_-]*", value) or value in (PREVIOUS, BASE):
        raise ValueError(
            f"saw {value!r}; expected letters, digits, - and _, as it names a folder, and neither {PREVIOUS} nor {BASE}"
        )
    return value


class StageSection(Section):
    name: Annotated[str, AfterValidator(_name)] = setting("stage", "names the stage's folder; other stages refer to it")
    kind: StageKind = setting(
        "rl", "which command runs: warmup (rl/warmup.py), rl (rl/train.py), reject (rl/reject.py), eval (eval/run.py)")
    config: str | None = setting(
        None,
        "the stage's own YAML file; null: defaults. Of an eval stage, a file of eval.run's options, such as benchmarks,"
        " k, data-dir")
    set: dict[str, JsonValue] = setting(
        dict,
        "keys set after the file, nested or dotted. The text {NAME.model}, {NAME.adapter}, {NAME.solutions} or "
        "{NAME.folder} stands for an earlier stage's result, {round} for the number of the round")
    policy: str = setting(
        PREVIOUS,
        "what the stage starts from or samples: previous (the nearest earlier stage that gives a policy; base where "
        "none does), base (the model of its own configuration), or an earlier stage's name")
    checkpoint: Literal["best", "last"] = setting(
        "best", "which checkpoint is the result of an rl stage; best: by held-out accuracy")


class RepeatSection(Section):
    first: str | None = setting(None, "name of the first stage that is repeated; null: the first of all")
    last: str | None = setting(None, "name of the last stage that is repeated; null: the last of all")
    rounds: int = setting(
        1, "how often they run, one round after the other, as NAME-1, NAME-2, ...", unit="rounds", ge=1)


class PipelineConfig(Section):
    """The stages in their order."""

    run_dir: Path = setting(
        Path("runs/pipeline"), "folder of the results: one folder for each stage, one summary, one picture")
    seed: int | None = setting(
        None,
        "stage i (counted from 0) has seed 1000 * seed + i, where its `set` has none; null: each stage's own",
        ge=0)
    stages: list[StageSection] = setting(lambda: [StageSection()], "what runs, in this order", min_length=1)
    repeat: RepeatSection = setting(
        RepeatSection, "stages that run several times, such as supervised and RL stages in turn")

    @model_validator(mode="after")
    def _names_are_known(self) -> PipelineConfig:
        names = [stage.name for stage in self.stages]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"stages: the name {twice!r} is given twice; each stage needs its own")
        for key, name in (("first", self.repeat.first), ("last", self.repeat.last)):
            if name is not None and name not in names:
                raise ValueError(f"repeat.{key}: {name!r} is no stage; expected one of: {', '.join(names)}")
        first, last = self.repeated
        if first > last:
            raise ValueError(f"repeat: {names[first]} comes after {names[last]}; expected first before last")
        return self

    @property
    def repeated(self) -> tuple[int, int]:
        """Indices of the first and the last stage of a round."""
        names = [stage.name for stage in self.stages]
        first = 0 if self.repeat.first is None else names.index(self.repeat.first)
        last = len(names) - 1 if self.repeat.last is None else names.index(self.repeat.last)
        return first, last
