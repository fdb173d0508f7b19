"""Whole runs through `otherhalf.train`: the command's numbers, wherever it is called."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import otherhalf
from rl.checkpoint import list_checkpoints
from rl.export import find_source
from rl.paths import resolve_path
from rl.policy.policy import Policy
from rl.records import Json
from rl.runs.folder import RunFolder
from rl.runs.tracking import Record, read_json_lines
from rl.train import main
from tests.reference.fork import forked_ranks
from tests.reference.whole_run import metrics_of, trained_steps

pytestmark = pytest.mark.slow

ROWS = [{"question": f"{a}+{b}=?", "answer": a + b} for a in range(10, 18) for b in range(10, 14)]
SMALL: dict[str, Any] = {
    "model": "models/tiny-arith", "sampling": {"questions_per_step": 4, "group_size": 4, "max_completion_tokens": 16},
    "tracking.progress": "off", "optim.lr": 5e-4}
WORDS = ("model=models/tiny-arith", "sampling.questions_per_step=4", "sampling.group_size=4",
         "sampling.max_completion_tokens=16", "tracking.progress=off", "optim.lr=5e-4")

BREVITY = '''
def brevity(*, completions, **columns):
    return [1 / (1 + len(text)) for text in completions]
'''


def brevity(*, completions: list[str], **columns: object) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


async def slow_brevity(*, completions: list[str], **columns: object) -> list[float]:
    await asyncio.sleep(0)
    return brevity(completions=completions)


class EnoughError(Exception):
    pass


def rollouts_of(folder: Path) -> list[Record]:
    return read_json_lines(RunFolder(folder).rollouts_file)


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three steps of `python -m rl.train` with the keys' own defaults."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "empty.yaml").write_text("")
    (folder / "mine.py").write_text(BREVITY)
    questions = RunFolder(folder).inputs
    data, held_out = (otherhalf_file(questions, name, rows) for name, rows in (("data", ROWS), ("held", ROWS[:4])))
    words = (*WORDS, f"run_dir={folder / 'run'}", "steps=3", f"data={data}", f"evaluation={held_out}",
             "rewards=[rewards.accuracy:accuracy, {use: " + str(folder / "mine.py") + ":brevity, weight: 0.5}]")
    assert main(["--config", str(folder / "empty.yaml"), *words]) == 0
    return folder / "run"


def otherhalf_file(folder: Path, key: str, rows: list[dict[str, Any]]) -> Path:
    from otherhalf.inputs import write_rows

    return write_rows(folder, key, rows)


def test_a_run_has_the_commands_numbers_also_stopped_by_a_callback_and_resumed(
    tmp_path: Path, by_command: Path
) -> None:
    """Rows, a function and another thread's callbacks in the place of files: the same to the last digit."""
    seen: list[Json] = []
    groups: list[list[Record]] = []

    def on_step(metrics: Record) -> None:
        seen.append(metrics["reward"])
        if metrics["step"] == 1:
            raise EnoughError("seen")

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    rewards: list[Any] = ["rewards.accuracy:accuracy", {"use": brevity, "weight": 0.5}]
    folder = tmp_path / "run"
    with pytest.raises(EnoughError) as caught:
        otherhalf.train(data=ROWS, evaluation=ROWS[:4], rewards=rewards, steps=3, run_dir=folder, on_step=on_step,
                        on_rollouts=lambda lines: groups.append(list(lines)), **SMALL)
    assert caught.value.__notes__ == [
        f"The run is saved up to step-000001: go on with --resume {folder}"]
    assert trained_steps(folder) == [1] and groups == [rollouts_of(folder)]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def brevity_changed() -> Any:
        def brevity(*, completions: list[str], **columns: object) -> list[float]:
            return [2.0 for _ in completions]

        return brevity

    with pytest.raises(otherhalf.UserError, match=r"rewards\.1: the source of 'brevity', or a value in it, differs"):
        otherhalf.train(resume=folder, rewards=[rewards[0], {"use": brevity_changed(), "weight": 0.5}])
    with pytest.raises(otherhalf.UserError, match="handed this function over"):
        otherhalf.train(resume=folder)
    assert main(["--resume", str(folder)]) == 2

    result = otherhalf.train(resume=folder, rewards=rewards)
    assert metrics_of(folder) == metrics_of(by_command) and rollouts_of(folder) == rollouts_of(by_command)
    assert result.summary.stop_reason == "completed" and result.summary.steps == 3 and result.folder == folder
    assert result.adapter == folder / "checkpoints" / "best" / "adapter" and result.model == "models/tiny-arith"
    assert next(line["reward"] for line in result.metrics if line["kind"] == "train") == seen[0]


def test_it_runs_in_a_running_loop_and_outside_the_main_thread_and_twice(tmp_path: Path) -> None:
    """A reward may be async there; nothing of the first run is left for the second."""
    results: dict[str, otherhalf.TrainResult] = {}

    def run(name: str) -> None:
        results[name] = otherhalf.train(
            data=ROWS, rewards=[slow_brevity], steps=1, run_dir=tmp_path / name, **SMALL)

    async def cell() -> None:
        run("loop")

    asyncio.run(cell())
    thread = threading.Thread(target=run, args=("thread",))
    thread.start()
    thread.join()
    assert metrics_of(tmp_path / "loop") == metrics_of(tmp_path / "thread")
    assert all(result.summary.stop_reason == "completed" for result in results.values())


def test_nothing_of_the_model_is_in_memory_when_a_run_has_ended(tmp_path: Path) -> None:
    """It stands in reference cycles, which nobody may have collected when the next run counts what is free."""
    def policies() -> int:
        return sum(type(found) is Policy for found in gc.get_objects())

    before = policies()
    gc.disable()
    try:
        otherhalf.train(data=ROWS, rewards=[brevity], steps=1, run_dir=tmp_path / "run", **SMALL)
        assert policies() <= before
    finally:
        gc.enable()


def test_a_signal_saves_and_ends_the_run_and_a_loaded_model_is_a_path(tmp_path: Path) -> None:
    """The object trains as its checkpoint does, and is not changed."""
    path = str(resolve_path("models/tiny-arith"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    run_dir = tmp_path / "run"
    result = otherhalf.train(
        data=ROWS, rewards=[brevity], steps=100, run_dir=run_dir, tokenizer=tokenizer,
        on_step=lambda metrics: os.kill(os.getpid(), signal.SIGINT), **SMALL | {"model": model})
    assert result.summary.stop_reason == "SIGINT" and result.summary.steps == 1
    assert [path.name for path in list_checkpoints(RunFolder(run_dir).checkpoints)] == ["step-000000", "step-000001"]
    assert Path(result.model).parent == RunFolder(run_dir).inputs
    assert all(bool((weight == before[name]).all()) for name, weight in model.state_dict().items())

    again = otherhalf.train(data=ROWS, rewards=[brevity], steps=1, run_dir=run_dir, **SMALL)
    assert metrics_of(run_dir) == metrics_of(run_dir.with_name("run.1"))
    assert again.model == "models/tiny-arith"
    # Each has what is its own: the run that was moved aside its model, both the rows.
    assert {path.name.partition("-")[0] for path in RunFolder(run_dir.with_name("run.1")).inputs.iterdir()} == {
        "data", "model"}
    assert [path.name.partition("-")[0] for path in RunFolder(run_dir).inputs.iterdir()] == ["data"]
    for weights in (run_dir.with_name("run.1"), run_dir.with_name("run.1") / "checkpoints" / "step-000001" / "adapter"):
        assert Path(find_source(str(weights)).base.path).parent == RunFolder(run_dir.with_name("run.1")).inputs
    aside = otherhalf.train(resume=run_dir.with_name("run.1"), data=ROWS, rewards=[brevity], steps=2)
    assert trained_steps(aside.folder) == [1, 2]  # what lies in its folder has moved with it

    with again.policy() as policy:
        completions = policy.sample("1+2=?", k=4, max_tokens=8, seed=1)
        assert len(completions) == 4 and policy.answer("1+2=?", k=4, max_tokens=8).num_samples == 4
        assert policy.sample("1+2=?", k=4, max_tokens=8, seed=1) == completions
        assert policy._sampler is not None  # with room for more than the first question asked for
        assert getattr(policy._sampler._generator, "_max_sequences", None) == 256
        refused: dict[str, Any] = {"model": "models/tiny-tram", "dtype": "float32", "generator": "transformers"}
        for name, value in refused.items():
            with pytest.raises(otherhalf.UserError, match=rf"^{name}: is the policy's.*Remedy: otherhalf\.Policy\("):
                policy.sample("1+2=?", max_tokens=8, **{name: value})

    more = otherhalf.train(data=ROWS, rewards=[brevity], steps=1, run_dir=tmp_path / "more",
                           **SMALL | {"model.adapter": run_dir, "loss": {"kl_weight": 0.1}})
    (line,) = more.metrics
    # It begins with what the run, whose folder stands for its adapter, has learnt.
    assert isinstance(line["loss/kl"], float) and line["loss/kl"] > 0


def test_ranks_stop_together_where_a_callback_raises(tmp_path: Path) -> None:
    """It is called on the main rank, where the exception comes out; the other's run ends as after a signal."""
    def on_step(metrics: Record) -> None:
        raise EnoughError

    def run() -> int:
        try:
            result = otherhalf.train(
                data=ROWS, rewards=[brevity], steps=3, run_dir=tmp_path / "run", on_step=on_step, **SMALL)
        except EnoughError:
            return 3
        return result.summary.steps

    assert [rank.returncode for rank in forked_ranks(run)] == [3, 1]
    assert list_checkpoints(RunFolder(tmp_path / "run").checkpoints)[-1].name == "step-000001"


@pytest.mark.parametrize(("settings", "message"), [
    ({"rewards": None}, r"rewards: none is given; expected functions or names. Remedy: rewards=\['rewards.acc"),
    ({"step": 1}, "step: unknown key; did you mean steps"),
    ({"optim": {"lr": -1}}, "optim.lr: saw -1; expected a number > 0"),
    ({"data": [{"problem": "1+1=?"}]}, "no 'question' field; the row has: problem"),
    ({"model": "models/tiny-arit"}, "model.path: there is no folder .*; did you mean models/tiny-arith?"),
    ({"tokenizer": object()}, "tokenizer: it is for a model that is an object"),
    ({"resume": "nowhere"}, "no run 'nowhere'"),
    ({"resume": True}, "run_dir: resume=True found no run in .*; expected the folder of a run"),
])
def test_what_cannot_run_is_an_exception_and_leaves_nothing(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    given = SMALL | {"data": ROWS, "rewards": [brevity], "run_dir": tmp_path / "run"} | settings
    with pytest.raises(otherhalf.UserError, match=message):
        otherhalf.train(**given)
    assert not (tmp_path / "run").exists()
