"""A planned stage with the results of earlier ones -> the command that runs it, what decides its result, and where that
lies.

Each kind of stage is one of the commands that users run by themselves; nothing of them is imported here but their
configurations.
"""

from __future__ import annotations

import datetime
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rewards.errors import Problem, named
from rl.config import Occasion, RunConfig, Section
from rl.configuration.loading import load, to_yaml
from rl.configuration.resuming import may_differ
from rl.configuration.yaml_text import read_mapping
from rl.errors import ConfigError
from rl.paths import resolve_path
from rl.records import Json
from rl.rejection.config import RejectConfig
from rl.runs.folder import RunFolder
from rl.stages.config import StageKind
from rl.stages.files import digests_of_files, missing_files
from rl.stages.plan import Result, Stage, each_text, fill, flatten
from rl.supervised.config import WarmupConfig

CONFIGS: Mapping[StageKind, type[Section]] = {"warmup": WarmupConfig, "rl": RunConfig, "reject": RejectConfig}
MODULES: Mapping[StageKind, str] = {"warmup": "rl.warmup", "rl": "rl.train", "reject": "rl.reject", "eval": "eval.run"}
RUN_DIR = "{run_dir}/"
ON_ALL_RANKS: tuple[StageKind, ...] = ("warmup", "rl")
"""Under `accelerate launch` with several processes; the others run on the main one."""

CheckEvaluation = Callable[[Sequence[str]], object]
"""Raises ConfigError where the words after `python -m eval.run` are not right: rl does not know eval."""

_GOES_ON: Mapping[StageKind, Occasion] = {
    "warmup": Occasion.WARMUP, "rl": Occasion.RUN, "reject": Occasion.SAMPLING, "eval": Occasion.NEVER}
_EVAL_OPTIONS = {"no-plots": Occasion.ALWAYS, "max-sequences": Occasion.DONE}
"""Options of eval.run that may differ; those of the other kinds are marked on their configurations' fields."""
CHAT_ARGUMENTS = "chat-template-kwargs"
_SHORT_OPTIONS = {"k": "-k", "n": "-n"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A stage that can run. words: after `python`. config: written to `config_file` first; None for an evaluation.

    settings, files: what decides its result, beside the results that it takes: keys of its configuration, with RUN_DIR
    in place of the pipeline's folder, and {"key: path": digest} of local files."""

    stage: Stage
    words: tuple[str, ...]
    config: Section | None
    settings: Mapping[str, Json]
    files: Mapping[str, str]

    @property
    def config_text(self) -> str | None:
        return None if self.config is None else to_yaml(self.config)


def prepare_stage(
    stage: Stage, results: Mapping[int, Result], check_evaluation: CheckEvaluation, *, read_files: bool = True,
    day: datetime.date | None = None,
) -> Prepared:
    """read_files: False where earlier results are not there yet. day: the pipeline's, of stages that name none; it
    decides nothing of what runs again. Raises ConfigError that begins with the stage's name."""
    try:
        settings = fill(stage, results)
        if stage.kind == "eval":
            return _prepare_evaluation(stage, settings, results, check_evaluation, read_files, day)
        if stage.policy is not None and stage.config is not None:
            of = results[stage.policy]
            _check_tokenizer(stage.config, of.tokenizer or of.model)
        overrides = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()]
        config = load(
            None if stage.config is None else Path(stage.config), [*overrides, f"run_dir={stage.folder}"],
            CONFIGS[stage.kind])
    except ConfigError as error:
        raise ConfigError(
            *[replace(problem, where=": ".join(filter(None, (stage.key, problem.where)))) for problem in error.problems]
        ) from None
    decides = _deciding(stage.kind, flatten(config.model_dump(mode="json")))
    words = ("-m", MODULES[stage.kind], "--config", str(config_file(stage)))
    return _prepared(stage, words, _on_day(config, day), decides, results, read_files)


def _on_day(config: Section, day: datetime.date | None) -> Section:
    assert isinstance(config, WarmupConfig | RunConfig | RejectConfig)
    return config.model_copy(update={"prompt": config.prompt.on(day)})


def _prepared(
    stage: Stage, words: tuple[str, ...], config: Section | None, decides: Mapping[str, Json],
    results: Mapping[int, Result], read_files: bool,
) -> Prepared:
    here = f"{stage.folder.parent}/"
    portable = {key: each_text(value, lambda text: RUN_DIR + text[len(here):] if text.startswith(here) else text)
                for key, value in decides.items()}
    own = [result.folder.resolve() for result in results.values()]
    return Prepared(stage, words, config, portable, digests_of_files(decides, own) if read_files else {})


def check_files(prepared: Sequence[Prepared]) -> None:
    """Raises ConfigError that names all local files that stages will want and that are not there; results of other
    stages are not there yet."""
    missing = [
        Problem("no such file", f"{ready.stage.key}: {named(setting)}: {text}")
        for ready in prepared
        for setting, text in missing_files(ready.settings)
        if not text.startswith(RUN_DIR)]
    if missing:
        remedy = Problem(remedy="put them there, or name others under the stage's `set`")
        raise ConfigError(*dict.fromkeys(missing), remedy)


def check_same_adapter(ready: Prepared, giver: Prepared) -> None:
    """A stage that trains goes on with the adapter that it is given: the same rank and scale, and training an adapter
    at all. Another prompt is only warned of. Raises ConfigError; loading the policy would, hours later."""
    own, given = ready.config, giver.config
    if isinstance(own, (WarmupConfig, RunConfig)) and isinstance(given, (WarmupConfig, RunConfig)):
        for key in ("enabled", "rank", "alpha"):
            if getattr(own.lora, key) != getattr(given.lora, key):
                raise ConfigError(
                    f"{named(f'lora.{key}')} is {getattr(own.lora, key)}, but the adapter of {giver.stage.key} has "
                    f"{getattr(given.lora, key)}",
                    where=ready.stage.key, remedy="the same in both, or merge=true in a warm-up")
        if own.model.quantization != given.model.quantization:
            raise ConfigError(
                f"{named('model.quantization')} is {own.model.quantization or 'null'}, but the adapter of "
                f"{giver.stage.key} is over a base with {given.model.quantization or 'null'}, whose weights are others",
                where=ready.stage.key, remedy="the same in both")
    if (isinstance(own, (WarmupConfig, RunConfig, RejectConfig)) and isinstance(given, (WarmupConfig, RunConfig))
            and own.prompt != given.prompt):
        warnings.warn(
            f"{ready.stage.key} has the prompt {own.prompt.template} (chat_template {own.prompt.chat_template}), and "
            f"its policy was trained with {given.prompt.template} ({given.prompt.chat_template}) in {giver.stage.key}",
            stacklevel=1)


def config_file(stage: Stage) -> Path:
    """The resolved configuration of a stage, beside the stages' folders."""
    return stage.folder.parent / "configs" / f"{stage.folder.name}.yaml"


def resume_words(stage: Stage) -> tuple[str, ...]:
    """What is added to go on with what the folder holds; an evaluation goes on by itself."""
    if stage.kind == "eval" or not RunFolder(stage.folder).holds_run:
        return ()
    return ("--resume", str(stage.folder))


def is_done(stage: Stage) -> bool:
    """Whether the folder holds the stage's whole result. A run that a signal stopped has a summary, and is not done."""
    if stage.kind == "rl":
        file = RunFolder(stage.folder).summary_file
        return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["stop_reason"] in (
            "completed", "watchdog")
    return (
        stage.folder / {"warmup": "summary.json", "reject": "solutions.jsonl", "eval": "result.json"}[stage.kind]
    ).is_file()


def result_of(stage: Stage, config: Section | None) -> Result:
    """What a stage that is done gives. config: its own."""
    folder = stage.folder
    if stage.kind == "warmup":
        assert isinstance(config, WarmupConfig)
        if (folder / "model").is_dir():
            return Result(folder, str(folder / "model"))
        return Result(folder, config.model.path, config.model.revision, str(folder / "adapter"))
    if stage.kind == "rl":
        from rl.checkpoint import list_checkpoints  # loads torch
        from rl.export import find_source

        checkpoint = None if stage.takes_best else list_checkpoints(RunFolder(folder).checkpoints)[-1].name
        source = find_source(str(folder), checkpoint)
        return Result(
            folder, source.base.path, source.base.revision, None if source.adapter is None else str(source.adapter))
    return Result(folder, solutions=str(folder / "solutions.jsonl") if stage.kind == "reject" else None)


def expected_result(stage: Stage, config: Section | None) -> Result:
    """What a stage that has not run yet will give, for checking those that follow: its paths need not exist, or be the
    later ones."""
    if isinstance(config, WarmupConfig | RunConfig):
        merges = isinstance(config, WarmupConfig) and config.merge
        place = stage.folder if isinstance(config, WarmupConfig) else stage.folder / "checkpoints" / "best"
        if merges or not config.lora.enabled:
            return Result(stage.folder, str(place / "model"), tokenizer=config.model.path)
        return Result(stage.folder, config.model.path, config.model.revision, str(place / "adapter"))
    return Result(stage.folder, solutions=str(stage.folder / "solutions.jsonl") if stage.kind == "reject" else None)


def _check_tokenizer(config: str, policy: str | None) -> None:
    """The base that the stage's own file names is replaced by the policy's; another vocabulary there means that it was
    made for another model. Local checkpoints only. Raises ConfigError."""
    section = read_mapping(resolve_path(config)).get("model")
    own = section.get("path") if isinstance(section, dict) else section
    if not isinstance(own, str) or policy is None:
        return
    there, here = _vocabulary(own), _vocabulary(policy)
    if there is not None and here is not None and there != here:
        raise ConfigError(
            f"{named('model.path')} is {own}, whose tokenizer has {len(there)} tokens, but the policy comes of "
            f"{policy} with {len(here)} that are not the same",
            where=config, remedy=f"policy: base to start from {own}, or a configuration for {policy}")


def _vocabulary(model: str) -> dict[str, int] | None:
    """{token: id} of a checkpoint with a tokenizer.json; None where that cannot be told."""
    file = resolve_path(model) / "tokenizer.json"
    if not file.is_file():
        return None
    vocabulary = json.loads(file.read_text(encoding="utf-8")).get("model", {}).get("vocab")
    return vocabulary if isinstance(vocabulary, dict) else None


def _prepare_evaluation(
    stage: Stage,
    settings: dict[str, Json],
    results: Mapping[int, Result],
    check_evaluation: CheckEvaluation,
    read_files: bool,
    day: datetime.date | None,
) -> Prepared:
    options = (flatten(read_mapping(resolve_path(stage.config))) if stage.config is not None else {}) | settings
    if stage.policy is not None:
        of = results[stage.policy]
        options |= {"model": of.model, "revision": of.revision, "adapter": of.adapter}
    words: list[str] = []
    for name, value in _with_chat_arguments(options).items():
        option = _SHORT_OPTIONS.get(name, f"--{name.replace('_', '-')}")
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            # One word: a value may begin with a dash.
            # Texts may hold commas, and what the chat template is told has types.
            is_json = option in ("--stop-strings", f"--{CHAT_ARGUMENTS}") and not isinstance(value, str)
            listed = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            text = json.dumps(value) if is_json else listed
            words += [option, text] if option in _SHORT_OPTIONS.values() else [f"{option}={text}"]
    words.append(f"--out={stage.folder}")
    if day is not None and "date" not in options and not _has_run(options):
        words.append(f"--date={day}")
    check_evaluation(words)
    decides = _deciding("eval", {name: value for name, value in options.items() if value is not None})
    return _prepared(stage, ("-m", MODULES["eval"], *words), None, decides, results, read_files)


def _has_run(options: Mapping[str, Json]) -> bool:
    """Whether what is evaluated knows its prompt, and the day, by the run that trained it."""
    from rl.questions.run_prompt import prompt_of_weights  # loads torch

    weights = resolve_path(str(options.get("adapter") or options.get("model")))
    return weights.exists() and prompt_of_weights(weights) is not None


def _with_chat_arguments(options: Mapping[str, Json]) -> dict[str, Json]:
    """The options with the arguments of the chat template, which are flat as all settings are, as the one mapping that
    the command takes."""
    arguments = {name.partition(".")[2]: value for name, value in options.items()
                 if name.partition(".")[0].replace("_", "-") == CHAT_ARGUMENTS and "." in name}
    rest = {name: value for name, value in options.items()
            if "." not in name or name.partition(".")[0].replace("_", "-") != CHAT_ARGUMENTS}
    return rest | ({CHAT_ARGUMENTS: arguments} if arguments else {})


def goes_on_with_other(kind: StageKind, key: str, *, is_done: bool) -> bool:
    """Whether a stage of this kind that has begun goes on, or one that is done keeps its result, although this setting
    differs."""
    return bool(_may_differ(kind, key) & (Occasion.DONE if is_done else _GOES_ON[kind]))


def chooses_again_by(kind: StageKind, key: str) -> bool:
    """Whether the setting decides only which samples are kept: with another one nothing is sampled again."""
    return bool(_may_differ(kind, key) & Occasion.CHOICE)


def _may_differ(kind: StageKind, key: str) -> Occasion:
    return _EVAL_OPTIONS.get(key, Occasion.NEVER) if kind == "eval" else may_differ(CONFIGS[kind], key)


def _deciding(kind: StageKind, settings: Mapping[str, Json]) -> dict[str, Json]:
    """The settings without those that decide nothing of the result."""
    return {key: value for key, value in settings.items() if _may_differ(kind, key) != Occasion.ALWAYS}


def python_command(words: Sequence[str]) -> list[str]:
    return [sys.executable, *words]
