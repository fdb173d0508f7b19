"""Runs the stages of a pipeline, each in a process of its own, so that it has the machine's memory to itself and ends
whole.

What is done and unchanged is skipped, what was cut off goes on, what changed runs again with everything that takes its
result. The same command does all of that: there is nothing to say about resuming.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from rl.configuration.loading import load, to_yaml
from rl.errors import ConfigError
from rl.runs.folder import RunFolder, RunFolderError, free_name_beside, prepare, write_atomically
from rl.runs.stop_signals import StopSignals
from rl.stages.config import PipelineConfig
from rl.stages.kinds import (
    ON_ALL_RANKS,
    CheckEvaluation,
    Prepared,
    check_files,
    check_same_adapter,
    config_file,
    expected_result,
    is_done,
    prepare_stage,
    python_command,
    result_of,
    resume_words,
)
from rl.stages.plan import Result, Stage, make_plan
from rl.stages.processes import Ranks, environment_of_all, environment_of_one, free_port
from rl.stages.records import PipelineRecords
from rl.stages.summary import write_pipeline_summary

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.1
ENDED_BY_SIGTERM = 128 + signal.SIGTERM


class StageError(Exception):
    """A stage's process failed; it has said why. code: its exit code."""

    def __init__(self, stage: Stage, code: int) -> None:
        super().__init__(
            f"{stage.key} ended with exit code {code}; what it said is above. The stages before it are kept: the same "
            f"command goes on there, also with other settings of it (stages.{stage.position}.set.KEY=VALUE, or in the "
            "file)")
        self.code = code


def check_pipeline(
    config: PipelineConfig, check_evaluation: CheckEvaluation
) -> tuple[tuple[Stage, ...], list[Prepared]]:
    """Every stage's configuration, and whether it takes the policy that it is given, checked before anything runs.
    Raises ConfigError."""
    plan = make_plan(config)
    results: dict[int, Result] = {}
    prepared: list[Prepared] = []
    for stage in plan:
        ready = prepare_stage(stage, results, check_evaluation, read_files=False)
        if stage.policy is not None and results[stage.policy].adapter is not None:
            check_same_adapter(ready, prepared[stage.policy])
        results[stage.index] = expected_result(stage, ready.config)
        prepared.append(ready)
    return plan, prepared


def run_pipeline(config: PipelineConfig, check_evaluation: CheckEvaluation) -> int:
    """Returns the exit code: 0 also where a signal stopped it, which the stage has saved.

    Raises ConfigError before anything runs, RunFolderError, OSError, StageError."""
    plan, prepared = check_pipeline(config, check_evaluation)
    check_files(prepared)
    ranks = Ranks()
    with contextlib.ExitStack() as stack:
        stop = StopSignals()
        stack.callback(stop.close)
        records = _open_folder(config, stack) if ranks.is_main else None
        day = _day(records, ranks)
        results: dict[int, Result] = {}
        for stage in plan:
            ready = prepare_stage(stage, results, check_evaluation, day=day)
            if not _run_stage(ready, plan, records, ranks, stop):
                if ranks.is_main:
                    _say(f"pipeline: stopped in {stage.key}, which is saved; the same command goes on from there")
                return 0
            results[stage.index] = result_of(stage, ready.config)
        if records is not None:
            _say("\n" + write_pipeline_summary(config.run_dir, plan, records))
    return 0


def _day(records: PipelineRecords | None, ranks: Ranks) -> datetime.date | None:
    """The pipeline's, alike in all processes. records: the main one's."""
    told = ranks.from_main(lambda: None if records is None or records.day is None else records.day.isoformat())
    return None if told is None else datetime.date.fromisoformat(told)


def _run_stage(
    ready: Prepared, plan: tuple[Stage, ...], records: PipelineRecords | None, ranks: Ranks, stop: StopSignals
) -> bool:
    """Bring the stage to its end, where it is not there yet. False where a signal stopped it before. Raises
    StageError."""
    stage, on_all_ranks = ready.stage, ready.stage.kind in ON_ALL_RANKS
    order = ranks.from_main(lambda: _order(ready, plan, records))
    if order["verdict"] == "skip":
        return True
    started, code = time.monotonic(), 0
    if ranks.is_main or on_all_ranks:
        environment = (
            environment_of_all(order["port"] if ranks.count > 1 else 0) if on_all_ranks else environment_of_one())
        code = run_process(python_command([*ready.words, *order["more"]]), environment, stop)
    is_stopped = stop() is not None and code == ENDED_BY_SIGTERM
    if code != 0 and not is_stopped and not ranks.is_main:
        # at once: the main rank's process may wait for this one, and the launcher then ends it
        raise StageError(stage, code)
    is_whole = bool(ranks.from_main(lambda: code == 0 and is_done(stage)))
    if records is not None:
        records.end(stage.name, time.monotonic() - started, done=is_whole)
    if code != 0 and not is_stopped:
        raise StageError(stage, code)
    return is_whole


def run_process(command: Sequence[str], environment: dict[str, str], stop: StopSignals) -> int:
    """Run it to its end and return its exit code (128 + n where signal n ended it). A signal that arrives here is
    handed on: the first one asks it to save and stop, Ctrl-C again ends it. It ends with this process, also where that
    is killed."""
    process = subprocess.Popen(
        command, env=environment,
        start_new_session=True,  # Ctrl-C in a terminal would reach it twice: from the terminal, and from here
        preexec_fn=_end_with_parent if sys.platform == "linux" else None)
    is_told = False
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=_POLL_S)
                return code if code >= 0 else 128 - code
            if not is_told and stop() is not None:
                is_told = True
                process.send_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        process.terminate()
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _say(text: str) -> None:
    """At once, also into a file: what the stages' processes write comes in between."""
    print(text, flush=True)


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _open_folder(config: PipelineConfig, stack: contextlib.ExitStack) -> PipelineRecords:
    folder = RunFolder(config.run_dir)
    if folder.holds_run:
        try:
            load(folder.config_file, [], PipelineConfig)
        except ConfigError:
            raise RunFolderError(
                f"{config.run_dir} holds a run that is no pipeline", remedy="another run_dir") from None
    stack.enter_context(prepare(config.run_dir, resume=folder.holds_run))
    write_atomically(folder.config_file, to_yaml(config))
    return PipelineRecords(config.run_dir)


def _order(ready: Prepared, plan: tuple[Stage, ...], records: PipelineRecords | None) -> dict[str, Any]:
    """What all processes do with the stage, decided by the main one."""
    assert records is not None
    stage = ready.stage
    inputs = {plan[index].name: records[plan[index].name].start for index in stage.inputs}
    decision = records.decide(ready, inputs)
    title = f"pipeline: stage {stage.index + 1} of {len(plan)}, {stage.name} ({stage.kind})"
    if decision.verdict == "skip":
        if not records[stage.name].is_done:  # killed between the stage's end and its record
            records.end(stage.name, 0.0, done=True)
        _say(f"{title}: done already, {stage.folder}")
        return {"verdict": "skip"}
    more = resume_words(stage) if decision.verdict == "resume" else ()
    if decision.verdict == "start" and stage.folder.exists():
        aside = free_name_beside(stage.folder)
        stage.folder.rename(aside)
        _say(f"pipeline: {stage.folder} held an earlier result: it is now {aside}")
    for outdated in ("summary.json", "summary.md", "curve.png"):
        (stage.folder.parent / outdated).unlink(missing_ok=True)
    if stage.kind == "reject" and decision.changes:
        # Chosen by other settings: if this ends before it has chosen anew, the file must not pass for the result.
        (stage.folder / "solutions.jsonl").unlink(missing_ok=True)
    records.begin(ready, inputs, anew=decision.verdict == "start" or bool(decision.changes))
    if ready.config_text is not None:
        config_file(stage).parent.mkdir(exist_ok=True)
        write_atomically(config_file(stage), ready.config_text)
    of = f", policy of {plan[stage.policy].name}" if stage.policy is not None else ""
    how = {"start": "runs again" if decision.changes else "runs", "resume": "goes on"}[decision.verdict]
    why = (
        f" ({'; '.join(decision.changes[:3])}{'; ...' if len(decision.changes) > 3 else ''})"
        if decision.changes
        else "")
    _say(f"{title}{of}: {how}{why}, {stage.folder}")
    return {"verdict": decision.verdict, "more": list(more), "port": free_port()}


def describe_plan(plan: tuple[Stage, ...], prepared: Sequence[Prepared]) -> str:
    """`--dry-run`: the stages, what each takes, and its command."""
    lines = []
    for stage, ready in zip(plan, prepared, strict=True):
        takes = (
            ", ".join(
                f"{'policy' if index == stage.policy else 'result'} of {plan[index].name}" for index in stage.inputs)
            or "nothing")
        lines += [f"{stage.index + 1}. {stage.name} ({stage.kind}), takes {takes}",
                  f"   {'settings':<10}{stage.config or 'defaults'} {json.dumps(dict(stage.settings))}",
                  f"   {'command':<10}python {' '.join(ready.words)}", f"   {'folder':<10}{stage.folder}"]
    return "\n".join(lines)
