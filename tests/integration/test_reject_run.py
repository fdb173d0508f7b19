"""`python -m rl.reject` on the tiny model: what it keeps is right and warms up, it goes on after a kill, and bad input
leaves no result."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.accuracy import grade
from rl.configuration.keys import all_keys
from rl.configuration.loading import load
from rl.generate.protocol import Request, request_seed
from rl.generate.transformers_generator import TransformersGenerator
from rl.paths import resolve_path
from rl.policy.policy import load_frozen
from rl.questions.prompting import PromptRenderer, load_template
from rl.records import Rollout
from rl.rejection.config import RejectConfig
from rl.rejection.inputs import RejectInputs, read_reject_inputs
from rl.rejection.run import solution_row
from rl.rejection.samples import SampleStore
from rl.supervised.config import WarmupDataSection
from rl.supervised.solutions import load_solutions, render_solutions
from tests.reference.fork import Fork, after, signal_itself
from tests.reference.reject import ANSWERED, LABEL_FREE, SMALL, UNANSWERED, command, reject, report_of, rows_of
from tests.reference.warmup import warm_up
from tests.reference.whole_run import python, summary_of


def answers() -> dict[str, str]:
    return {row["question"]: row["answer"] for row in map(json.loads, resolve_path(ANSWERED).read_text().splitlines())}


def samples_of(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of all chunks."""
    return [
        json.loads(line)
        for file in sorted((run_dir / "samples").glob("chunk-*.jsonl"))
        for line in file.read_text().splitlines()]


def result_of(run_dir: Path) -> dict[str, bytes]:
    """Everything that the run leaves, without what the clock and the folder's name decide."""
    files = {str(file.relative_to(run_dir)): file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}
    files["report.json"] = json.dumps(report_of(run_dir) | {"wall_s": 0}).encode()
    files["report.md"] = files["report.md"].partition(b"\n")[2]
    return {name: content for name, content in files.items() if name != "config.resolved.yaml"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reject") / "whole"
    assert reject(folder) == 0
    return folder


@pytest.fixture(scope="module")
def label_free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reject") / "free"
    assert reject(folder, *LABEL_FREE, "sampling.samples=8") == 0
    return folder


def test_it_leaves_solutions_report_samples_and_configuration(whole: Path) -> None:
    assert sorted(entry.name for entry in whole.iterdir()) == [
        "config.resolved.yaml", "report.json", "report.md", "samples", "solutions.jsonl"]
    assert sorted(entry.name for entry in (whole / "samples").iterdir()) == [
        "chunk-00000.jsonl", "chunk-00001.jsonl", "chunk-00002.jsonl", "identity.json"]
    assert load(whole / "config.resolved.yaml", [], RejectConfig).run_dir == whole


def test_every_kept_solution_is_right_and_the_wrong_ones_are_counted(whole: Path) -> None:
    gold, rows, report = answers(), rows_of(whole), report_of(whole)
    assert rows and all(grade(row["solution"], gold[row["question"]]).correct for row in rows)
    assert all(row.keys() == {"id", "question", "solution"} for row in rows)
    graded = [
        grade(completion["text"], gold[line["question"]]).correct
        for line in samples_of(whole)
        for completion in line["completions"]]
    assert len(graded) == 160 == report["completions"] and 0.2 < sum(graded) / 160 < 0.7
    assert report["mean_reward"] == pytest.approx(sum(graded) / 160)
    assert sum(graded) == report["kept"] + report["dropped"]["near_duplicate"] + report["dropped"]["over_limit"]
    assert report["kept"] == len(rows) and report["questions_kept"] == len({row["question"] for row in rows})
    # Rows stand in the order of the questions' file, though these were sampled in another.
    numbers = [int(row["id"].partition("-")[2]) for row in rows]
    assert numbers == sorted(numbers)
    sampled = [int(line["id"].partition("-")[2]) for line in samples_of(whole)]
    assert sampled != sorted(sampled) and sorted(sampled) == list(range(40))


def tiny_sampler() -> tuple[RejectConfig, RejectInputs, TransformersGenerator]:
    config = load(None, [*SMALL], RejectConfig)
    inputs = read_reject_inputs(config)
    policy = load_frozen(config.model, inputs.tokenizer, torch.device("cpu"))
    return config, inputs, TransformersGenerator(policy, merge=False, max_sequences=256)


def test_the_samples_are_those_of_their_seeds(whole: Path) -> None:
    _, inputs, generator = tiny_sampler()
    prompt = inputs.prompts[7]
    name = prompt.question.id
    line = next(line for line in samples_of(whole) if line["id"] == name)
    seeds = tuple(request_seed(0, "reject", 0, name, i) for i in range(4))
    assert [completion["seed"] for completion in line["completions"]] == list(seeds) and len(set(seeds)) == 4
    (group,) = generator.generate([Request(prompt, seeds)], inputs.parameters)
    assert [rollout.text for rollout in group.rollouts] == [completion["text"] for completion in line["completions"]]


def test_a_warm_up_trains_on_the_very_tokens_that_were_sampled(tmp_path: Path) -> None:
    config, inputs, generator = tiny_sampler()
    groups = generator.generate([Request(prompt, (1, 2, 3, 4)) for prompt in inputs.prompts], inputs.parameters)
    ended = [(group.prompt, rollout) for group in groups for rollout in group.rollouts if not rollout.is_truncated]
    assert len(ended) > 100 and all(inputs.is_exact(prompt, rollout) for prompt, rollout in ended)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(solution_row(prompt, rollout.text)) + "\n" for prompt, rollout in ended))
    renderer = PromptRenderer(load_template(config.prompt.template), inputs.tokenizer)
    trained, _ = render_solutions(load_solutions(WarmupDataSection(path=str(file))), renderer, inputs.eos_token_ids,
                                  inputs.eos_token_ids[0], 256, "error")
    assert [(row.prompt.token_ids, row.completion_ids) for row in trained] == [
        (prompt.token_ids, rollout.token_ids) for prompt, rollout in ended]


def test_another_spelling_of_the_same_text_is_not_called_exact() -> None:
    _, inputs, _ = tiny_sampler()
    prompt = inputs.prompts[0]
    ids = tuple(inputs.tokenizer("19+28=47", add_special_tokens=False)["input_ids"])
    eos = inputs.eos_token_ids[0]

    def rollout(*token_ids: int, text: str = "19+28=47") -> Rollout:
        return Rollout(token_ids, (0.0,) * len(token_ids), text, "stop", 0, 0)

    assert inputs.is_exact(prompt, rollout(*ids, eos))
    assert not inputs.is_exact(prompt, rollout(*ids, ids[0], eos))  # a token without text, say
    assert not inputs.is_exact(prompt, rollout(*ids[1:], eos))
    # ended by a stop string, which the text lacks
    assert inputs.is_exact(prompt, rollout(*ids, ids[0], text="19+28=47"))


def test_without_labels_the_majority_of_agreeing_groups_is_kept(label_free: Path) -> None:
    gold, rows, report = answers(), rows_of(label_free), report_of(label_free)
    assert rows and report["dropped"]["entropy_high"] > 0 and report["dropped"]["reward"] > 0
    lines = {line["id"]: line for line in samples_of(label_free)}
    assert all(line["gold"] is None for line in lines.values())
    for row in rows:
        line = lines[row["id"]]
        sizes = Counter(completion["cluster"] for completion in line["completions"])
        (chosen,) = {
            completion["cluster"] for completion in line["completions"] if completion["text"] == row["solution"]}
        assert sizes[chosen] == max(sizes.values()) and line["normalised_entropy"] < 0.9
    sampled = [
        grade(completion["text"], gold[line["question"]]).correct
        for line in lines.values()
        for completion in line["completions"]]
    kept = [grade(row["solution"], gold[row["question"]]).correct for row in rows]
    assert sum(kept) / len(kept) > 0.8 > 0.6 > sum(sampled) / len(sampled)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_run_that_was_ended_leaves_no_result_and_goes_on_to_the_uninterrupted_one(
    number: signal.Signals, label_free: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "half"
    words = (*SMALL, *LABEL_FREE, "sampling.samples=8", f"run_dir={folder}")
    with after(SampleStore, "write", signal_itself(number)):
        ended = Fork(lambda: command(*words)).finished()
    assert ended.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    chunks = len(list((folder / "samples").glob("chunk-*.jsonl")))
    assert 1 <= chunks < 3 and not (folder / "solutions.jsonl").exists() and not (folder / "report.json").exists()
    first = (folder / "samples" / "chunk-00000.jsonl").stat().st_mtime_ns
    assert command("--resume", str(folder)) == 0
    assert (folder / "samples" / "chunk-00000.jsonl").stat().st_mtime_ns == first
    assert result_of(folder) == result_of(label_free)


def test_other_settings_or_other_data_are_no_resumption(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = result_of(folder)
    assert command("--resume", str(folder), "sampling.temperature=0.7", "seed=1", "rewards.0.weight=2") == 2
    said = capsys.readouterr().err
    for part in (
        f"sampling.temperature: 0.7, but the run in {folder} has 1.0", "seed: 1, but", "rewards.0.weight: 2.0, but",
        "Remedy: --resume",
    ):
        assert part in said
    identity = json.loads((folder / "samples" / "identity.json").read_text())
    for key in identity:
        (folder / "samples" / "identity.json").write_text(json.dumps(identity | {key: "another"}))
        assert command("--resume", str(folder)) == 2
        assert f"error: {key}: " in capsys.readouterr().err
    (folder / "samples" / "identity.json").write_text(json.dumps(identity, indent=2) + "\n")
    assert result_of(folder) == before


def test_a_changed_data_file_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "questions.jsonl"
    rows = resolve_path(ANSWERED).read_text().splitlines()[:8]
    data.write_text("\n".join(rows) + "\n")
    assert reject(tmp_path / "run", f"data={data}") == 0
    data.write_text("\n".join([*rows[:7], rows[7].replace('"answer": "', '"answer": "1')]) + "\n")
    capsys.readouterr()
    assert command("--resume", str(tmp_path / "run")) == 2
    assert "error: data.path: the questions, their answers or their prompts differ" in capsys.readouterr().err


def test_other_keep_and_mix_choose_again_without_sampling(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    chunks = {file.name: file.stat().st_mtime_ns for file in (folder / "samples").iterdir()}
    mix = "mix=[{path: models/tiny-arith/questions/warmup.jsonl, ratio: 0.5}]"
    capsys.readouterr()
    assert command("--resume", str(folder), "keep.near_duplicates=null", "keep.per_question=null", mix) == 0
    assert "step" not in capsys.readouterr().out
    report, rows = report_of(folder), rows_of(folder)
    assert report["dropped"]["near_duplicate"] == report["dropped"]["over_limit"] == 0
    assert report["kept"] == 160 - sum(report["dropped"].values()) > report_of(whole)["kept"]
    (mixed,) = report["mix"]
    assert (
        mixed["rows"] == int(report["kept"] / 2 + 0.5) == report["rows"] - report["kept"]
        and mixed["rows_in_file"] == 1024)
    others = [
        json.loads(line) for line in resolve_path("models/tiny-arith/questions/warmup.jsonl").read_text().splitlines()]
    assert len(rows) == report["rows"] and all(row in others for row in rows[report["kept"]:])
    assert load(folder / "config.resolved.yaml", [], RejectConfig).keep.per_question is None
    assert {file.name: file.stat().st_mtime_ns for file in (folder / "samples").iterdir()} == chunks
    # And back to what the first choice was.
    own = ["keep.near_duplicates=0.9", "keep.per_question=4", "mix=[]"]
    assert command("--resume", str(folder), *own) == 0 and result_of(folder) == result_of(whole)


def test_where_nothing_is_kept_no_file_is_written_and_the_samples_can_be_chosen_from_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert reject(folder, "keep.reward_at_least=1.5") == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("error: keep: nothing is left of 160 completions of 40 questions, so no file is written: 1")
    assert (
        "reward below keep.reward_at_least" in said and f"keep.reward_at_least=1 or less with --resume {folder}" in said
    )
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.resolved.yaml", "samples"]
    assert command("--resume", str(folder), "keep.reward_at_least=1") == 0
    assert len(rows_of(folder)) > 20
    before = result_of(folder)
    assert command("--resume", str(folder), "keep.reward_at_least=1.5") == 2
    assert command("--resume", str(folder), "mix=[{path: models/tiny-arith/questions/warmup.jsonl, ratio: 100}]") == 2
    assert "error: mix.0.ratio: 100 rows of" in capsys.readouterr().err
    assert result_of(folder) == before


def test_cut_completions_are_never_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        reject(
            tmp_path / "run", *LABEL_FREE, "sampling.max_completion_tokens=2", "keep.high=null",
            "keep.reward_at_least=0")
        == 2)
    assert (
        "160 cut at sampling.max_completion_tokens. Remedy: a higher sampling.max_completion_tokens"
        in capsys.readouterr().err)


def test_what_is_wrong_is_one_line_before_anything_is_sampled_and_an_earlier_run_stays(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    policy_reward = tmp_path / "asks.py"
    policy_reward.write_text(
        "def asks(*, completions, policy, **columns):\n    return [0.0] * len(completions)\n\n\nasks.needs_policy = "
        "True\n")
    capsys.readouterr()
    for words, said in (
        (["rewards.0.use=rewards.accuracy:acuracy"], "acuracy"),
        (
            [f"rewards.0.use={policy_reward}:asks"],
            "error: rewards: one of asks asks for the policy's own probabilities",
        ),
        ([f"data={UNANSWERED}"], f"error: {UNANSWERED}, column 'answer' (data.columns.answer): "),
        ([f"mix=[{ANSWERED}]"], f"error: mix.0.path: {resolve_path(ANSWERED)}:1: no 'solution' field"),
        (
            ["generator.backend=vllm_server", "generator.urls=[http://localhost:1]", "generator.start_timeout_s=0.5"],
            (
                "error: generator.urls: after 0.5 s (generator.start_timeout_s) no vLLM server answers at "
                "http://localhost:1"
            ),
        ),
        (
            ["sampling.max_completion_tokens=250"],
            "error: sampling.max_completion_tokens: 250 tokens after the longest prompt",
        ),
        (["sampling.temperature=0"], "error: override sampling: temperature 0 makes all 4 samples"),
        (["sampling.samples=1", "keep.low=0.1"], "error: keep.low and keep.high are bounds on the semantic entropy"),
        (["keep.low=0.5", "keep.high=0.5"], "error: override keep: the bounds cross"),
        (["keep.threshold=1"], "error: override keep.threshold: unknown key; keep has: reward_at_least, low"),
        (["model=models/none"], "error: model.path: there is no folder"),
        (
            ["reject_tiny.yaml"],
            "error: 'reject_tiny.yaml': expected an option or key=value (did you mean --config reject_tiny.yaml?)",
        ),
    ):
        assert reject(folder, *words) == 2
        (message,) = capsys.readouterr().err.strip().splitlines()
        assert message.startswith("error: ") and said.removeprefix("error: ") in message, message
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["asks.py", "run"]
    assert reject(folder) == 0  # a new run moves the earlier one aside
    assert result_of(folder) == result_of(tmp_path / "run.1") == result_of(whole)


def test_a_reward_that_reads_token_statistics_gets_them_from_the_embedded_sampler(tmp_path: Path) -> None:
    reward = "rewards.0.use=rewards.confidence:self_certainty"
    assert reject(tmp_path / "run", f"data={UNANSWERED}", reward, "keep.reward_at_least=-100") == 0
    rewards = {completion["reward"] for line in samples_of(tmp_path / "run") for completion in line["completions"]}
    assert len(rewards) > 50


def test_the_kept_file_warms_up_and_its_policy_is_sampled_from_in_turn(whole: Path, tmp_path: Path) -> None:
    words = ("data.held_out_rows=0", "steps=3", "evaluation.path=null")
    assert warm_up(tmp_path / "warmup", f"data={whole / 'solutions.jsonl'}", *words) == 0
    assert summary_of(tmp_path / "warmup")["steps"] == 3
    assert reject(tmp_path / "again", f"model.adapter={tmp_path / 'warmup' / 'adapter'}") == 0
    assert report_of(tmp_path / "again")["mean_reward"] != report_of(whole)["mean_reward"]
    assert json.loads((tmp_path / "again" / "samples" / "identity.json").read_text())["model.adapter"] is not None


def test_columns_of_the_questions_travel_and_answers_do_not(tmp_path: Path) -> None:
    data = tmp_path / "questions.jsonl"
    rows = [json.loads(line) for line in resolve_path(ANSWERED).read_text().splitlines()[:8]]
    data.write_text("".join(json.dumps(row | {"level": i, "messages": "x"}) + "\n" for i, row in enumerate(rows)))
    template = tmp_path / "levels.yaml"
    template.write_text('description: uses a column\nuser: "{% if level >= 0 %}{{ question }}{% endif %}\\n"\n')
    assert reject(tmp_path / "run", f"data={data}", f"prompt.template={template}") == 0
    assert all(row.keys() == {"id", "question", "solution", "level"} for row in rows_of(tmp_path / "run"))
    words = ("data.held_out_rows=0", "steps=1", "evaluation.path=null", f"prompt.template={template}")
    assert warm_up(tmp_path / "warmup", f"data={tmp_path / 'run' / 'solutions.jsonl'}", *words) == 0


def test_latest_is_the_newest_rejection_run_and_not_another_commands(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("older", "newer"):
        shutil.copytree(whole, tmp_path / "runs" / name)
    os.utime(tmp_path / "runs" / "older" / "samples", (1, 1))
    training = tmp_path / "runs" / "training"
    training.mkdir()
    (training / "config.resolved.yaml").write_text("steps: 3\n")
    assert command("--resume", "latest") == 0
    assert f"{Path('runs') / 'newer' / 'solutions.jsonl'}" in capsys.readouterr().out
    assert command("--resume", "older") == 0
    assert command("--resume", "oldest") == 2
    assert "did you mean older?" in capsys.readouterr().err


def test_the_help_names_every_key_and_a_dry_run_samples_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = python(
        "-c",
        "import sys\nfrom rl.reject import main\nassert main(['--help']) == main(['--print-config']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules")
    assert finished.returncode == 0, finished.stderr
    assert all(key.name in finished.stdout for key in all_keys(RejectConfig)) and "--resume [RUN]" in finished.stdout
    assert reject(tmp_path / "run", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert (
        "prompt of the first question  '19+28=?\\n', 8 tokens" in shown
        and "160, in 3 chunks of at most 16 questions x 4" in shown)
    assert list(tmp_path.iterdir()) == []
