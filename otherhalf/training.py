"""`otherhalf.train`: keywords -> a run, by the functions that `python -m rl.train` runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from otherhalf.inputs import Function, as_rewards, as_section, contents, remove_unused, take_in
from otherhalf.sampling import Policy
from rewards.errors import named, plain_warnings
from rewards.loading import HANDED_OVER, handing_over
from rl.config import RunConfig
from rl.configuration.command_line import is_of
from rl.configuration.loading import load, validated, with_settings
from rl.errors import ConfigError
from rl.export import find_source
from rl.runs.callbacks import Callbacks
from rl.runs.folder import RunFolder, find_run
from rl.runs.summary import Summary
from rl.runs.tracking import Record, read_json_lines
from rl.train import benchmarks_builder

Rows: TypeAlias = Iterable[Mapping[str, Any]]
"""A list of dicts, or a datasets.Dataset."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run has left. summary: as in summary.json. folder: the run's. adapter: folder of the best checkpoint's
    adapter (without held-out questions the newest's), which PeftModel.from_pretrained reads; None where all parameters
    trained. model: folder or hub id of the adapter's base, or of the trained model."""

    summary: Summary
    folder: Path
    adapter: Path | None
    model: str

    @property
    def metrics(self) -> list[Record]:
        """The lines of metrics.jsonl, of training steps (`kind` is train) and evaluations."""
        return read_json_lines(RunFolder(self.folder).metrics_file)

    def policy(self, **options: Any) -> Policy:
        """The trained policy, to sample answers from, under the prompt that it was trained with. options: of
        `otherhalf.Policy`."""
        return Policy(self.model, self.adapter, **options)


def train(
    model: str | Path | Mapping[str, Any] | Any = None,
    data: str | Path | Mapping[str, Any] | Rows | None = None,
    rewards: str | Function | Mapping[str, Any] | Sequence[str | Function | Mapping[str, Any]] | None = None,
    *,
    evaluation: str | Path | Mapping[str, Any] | Rows | None = None,
    steps: int | None = None,
    tokenizer: Any = None,
    on_step: Callable[[Record], object] | None = None,
    on_rollouts: Callable[[Sequence[Record]], object] | None = None,
    resume: str | Path | bool = False,
    **keys: Any,
) -> TrainResult:
    """Train as `python -m rl.train` does with the same keys, each with its own default (not the quick start's file).

    model: folder, hub id, or a loaded transformers model with its `tokenizer`, of which a copy in the run's folder
    trains. data, evaluation: a path, a list of dicts, a datasets.Dataset, or a section (a mapping of its keys).
    rewards: functions, names, or sections whose `use` is either. keys: any other key of the configuration, as a
    keyword (a section as a mapping) or under its dotted name: `steps=20, **{"optim.lr": 1e-5}`.
    on_step: called after each step with its metrics. on_rollouts: with the step's groups, as in rollouts.jsonl. What
    one of them raises is raised here, when the run is saved. resume: go on with a run: its folder or name, True for
    the latest; what is not given then is the run's own, but functions, which must be the same, are given again.
    Ctrl-C and SIGTERM save and end the run in the main thread. Raises UserError of the kind that says what is wrong."""
    settings = _settings(dict(model=model, data=data, evaluation=evaluation, steps=steps, rewards=rewards), keys)
    started = _folder_to_resume(resume, keys.get("run_dir"))
    if started is not None:
        settings["run_dir"] = started.path
    else:
        _check_rewards(settings)
    values = with_settings(None if started is None else started.config_file, settings)
    folder = RunFolder(Path(str(values.get("run_dir", RunConfig.model_fields["run_dir"].default))))
    before = contents(folder)
    try:
        functions = take_in(values, folder, tokenizer)
        config = validated(values)
        _check_functions(config, started)
        summary = _run(config, started, functions, Callbacks(on_step, on_rollouts))
    finally:
        remove_unused(folder, before)
    return _result(summary, folder)


def _settings(arguments: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, with sections and lists of sections in the place of what stands for them."""
    given = {name: value for name, value in arguments.items() if value is not None} | dict(keys)
    return {name: as_section(name, value) if name in ("model", "data", "evaluation", "anchors") else
            as_rewards(value) if name == "rewards" else value for name, value in given.items()}


def _folder_to_resume(resume: str | Path | bool, run_dir: Any) -> RunFolder | None:
    if resume is False or resume is None:
        return None
    if resume is not True:
        return RunFolder(find_run(str(resume)))
    own = None if run_dir is None else RunFolder(Path(run_dir))
    if own is not None and own.holds_run:
        return own
    if own is not None:
        raise ConfigError(
            f"resume=True found no run in {own.path}", where=named("run_dir"), expected="the folder of a run",
            remedy="the run's own folder, or resume=True without run_dir for the newest run")
    return RunFolder(find_run("latest", is_meant=lambda run: is_of(RunConfig, run)))


def _check_rewards(settings: dict[str, Any]) -> None:
    """The key's default is a reward too, which nobody has chosen. With a teacher none is one."""
    if any(key.partition(".")[0] == "rewards" for key in settings):
        return
    if settings.get("teacher") is None:
        raise ConfigError(
            "none is given", where=named("rewards"), expected="functions or names",
            remedy="rewards=['rewards.accuracy:accuracy'] where the data have answers, "
            "rewards=['rewards.semantic_entropy:semantic_entropy'] where they have none, or a function of yours")
    settings["rewards"] = []


def _check_functions(config: RunConfig, started: RunFolder | None) -> None:
    """Raises ConfigError where a function has another source than the one with which the run began."""
    if started is None:
        return
    for i, (then, now) in enumerate(zip(load(started.config_file, []).rewards, config.rewards, strict=False)):
        names = [re.fullmatch(rf"{HANDED_OVER}:(.*)@\w+", section.use) for section in (then, now)]
        if then.use != now.use and names[0] and names[1] and names[0][1] == names[1][1]:
            raise ConfigError(
                f"the source of {names[0][1]!r}, or a value in it, differs from that with which the run in "
                f"{started.path} began ({then.use} then, {now.use} now)", where=named(f"rewards.{i}"),
                remedy="the function as it was, or a new run from these weights (model.adapter)")


def _run(
    config: RunConfig, started: RunFolder | None, functions: Mapping[str, Function], callbacks: Callbacks
) -> Summary:
    from rl.run import release_memory, run

    try:
        with handing_over(functions), plain_warnings():
            return run(config, None if started is None else started.path, benchmarks_builder(config), callbacks)
    finally:
        release_memory()


def _result(summary: Summary, folder: RunFolder) -> TrainResult:
    source = find_source(str(folder.path))
    return TrainResult(summary, folder.path, source.adapter, source.base.path)
