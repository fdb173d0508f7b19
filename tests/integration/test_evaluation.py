"""`python -m eval.run` and its neighbours as a user starts them, on models/tiny-arith."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import answer, compare, run
from eval import grade as grade_again
from eval.store import read_completions
from rewards.accuracy import grade
from rl.export import main as export
from tests.reference.fork import Fork
from tests.reference.whole_run import GRPO, in_process, pixels, python, train

MODEL = ("--model", "models/tiny-arith")
needs_data = pytest.mark.skipif(
    "OTHERHALF_DATA" not in os.environ, reason="OTHERHALF_DATA (folder with the benchmark data) is not set")

# Kills its process when it has been called so many times; grades like accuracy.
KILLER = '''
import os
import signal

from rewards.accuracy import accuracy

num_calls = 0

def killer(*, question, completions, answer, **columns):
    global num_calls
    num_calls += 1
    if num_calls == int(os.environ.get("KILL_AT_CALL", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    return accuracy(completions=completions, answer=answer)
'''


def evaluate(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return in_process(run.main, "--out", str(out), *words)


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def without_times(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in result_of(folder).items() if key != "wall_s"}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    with pixels():
        finished = evaluate(out, *MODEL, "--benchmarks", "tiny_arith", "-k", "8", "--limit", "48")
    assert finished.returncode == 0, finished.stderr
    assert "avg@k" in finished.stdout and "48 questions, one of them is 2.1 points" in finished.stdout
    assert "384/384 completions" in finished.stderr
    return out


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("adapter") / "run"
    assert train(run, *GRPO, "optim.lr=5e-3", "steps=3", "evaluation.path=null") == 0
    return next((run / "checkpoints").glob("step-000003")) / "adapter"


def test_the_result_has_the_names_that_others_rely_on(evaluated: Path) -> None:
    entry = result_of(evaluated)["benchmarks"]["tiny_arith"]
    for name in ("avg@8", "pass@8", "maj@8", "pass@1", "maj@2"):
        assert set(entry[name]) == {"value", "low", "high"}
        assert 0 <= entry[name]["low"] <= entry[name]["value"] <= entry[name]["high"] <= 1
    assert entry["avg@8"]["value"] < entry["maj@8"]["value"] <= entry["pass@8"]["value"]
    assert entry["pass@1"]["value"] == pytest.approx(entry["avg@8"]["value"])
    assert (evaluated / "result.md").read_text().startswith("# models/tiny-arith\n\n| benchmark")
    assert {path.suffix for path in (evaluated / "plots").iterdir()} == {".png"}


def test_every_completion_is_kept_with_its_answer_and_verdict(evaluated: Path) -> None:
    lines = [json.loads(line) for line in (evaluated / "completions.jsonl").read_text().splitlines()]
    assert len(lines) == 48 * 8
    for line in lines[::7]:
        verdict = grade(line["completion"], line["gold"])
        assert (float(verdict.correct), verdict.extracted) == (line["correct"], line["answer"])
    mean = sum(line["correct"] for line in lines) / len(lines)
    assert result_of(evaluated)["benchmarks"]["tiny_arith"]["avg@8"]["value"] == pytest.approx(mean)


def test_greedy_completions_are_those_of_transformers(tmp_path: Path) -> None:
    finished = evaluate(
        tmp_path / "out", *MODEL, "--benchmarks", "tiny_arith", "-k", "1", "--limit", "12", "--no-plots")
    assert finished.returncode == 0, finished.stderr
    model = AutoModelForCausalLM.from_pretrained(MODEL[1], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL[1])
    for question in read_completions(tmp_path / "out"):
        ids = tokenizer(question.question + "\n", return_tensors="pt")["input_ids"]
        out = model.generate(ids, do_sample=False, max_new_tokens=48)[0, ids.shape[1]:]
        assert question.samples[0].text == tokenizer.decode(out, skip_special_tokens=True)


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Path]:
    """The words of an evaluation that can be killed, and the folder of one that was not."""
    folder = tmp_path_factory.mktemp("killer")
    grader = folder / "killer.py"
    grader.write_text(KILLER)
    words = (
        *MODEL, "--benchmarks", "tiny_arith", "-k", "8", "--limit", "80", "--grader", f"{grader}:killer", "--no-plots")
    assert evaluate(folder / "whole", *words).returncode == 0
    return words, folder / "whole"


@pytest.mark.parametrize("kill_at", [1, 40])
def test_a_killed_evaluation_goes_on_and_ends_as_the_uninterrupted_one(
    tmp_path: Path, killer: tuple[tuple[str, ...], Path], kill_at: int
) -> None:
    """In the first chunk, of 32 questions, and in the second one."""
    (words, whole), cut = killer, tmp_path / "cut"
    killed = Fork(lambda: evaluate(cut, *words).returncode, {"KILL_AT_CALL": str(kill_at)})
    assert killed.finished().returncode == -signal.SIGKILL
    assert not (cut / "result.json").exists()
    kept = len(read_completions(cut)) if (cut / "completions.jsonl").exists() else 0
    assert kept == (0 if kill_at == 1 else 32)
    again = evaluate(cut, *words)
    assert again.returncode == 0, again.stderr
    assert (f"going on after {kept} questions" in again.stderr) == (kept > 0)
    assert without_times(cut) == without_times(whole)
    assert (cut / "completions.jsonl").read_bytes() == (whole / "completions.jsonl").read_bytes()
    once_more = evaluate(cut, *words)
    assert once_more.returncode == 0 and "completions  accuracy" not in once_more.stderr
    assert without_times(cut) == without_times(whole)


def test_an_adapter_is_what_is_evaluated_and_is_compared_with_its_base(adapter: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    assert in_process(export, str(adapter), str(exported)).returncode == 0
    words = ("--benchmarks", "tiny_arith", "-k", "4", "--limit", "32", "--no-plots")
    for name, subject in (
        ("base", MODEL), ("adapter", ("--adapter", str(adapter))), ("exported", ("--model", str(exported))),
    ):
        finished = evaluate(tmp_path / name, *subject, *words)
        assert finished.returncode == 0, finished.stderr
    texts = {name: [sample.text for question in read_completions(tmp_path / name) for sample in question.samples]
             for name in ("base", "adapter", "exported")}
    assert texts["adapter"] == texts["exported"] != texts["base"]
    compared = in_process(compare.main, str(tmp_path / "base"), str(tmp_path / "adapter"))
    assert compared.returncode == 0 and "B - A [95%]" in compared.stdout and "differently" not in compared.stdout
    assert result_of(tmp_path / "adapter")["adapter"] == str(adapter)


def test_several_prompts_are_compared_side_by_side(tmp_path: Path) -> None:
    finished = evaluate(tmp_path / "out", *MODEL, "--benchmarks", "tiny_arith", "-k", "2", "--limit", "8", "--no-plots",
                        "--prompt", "question_line,boxed")
    assert finished.returncode == 0, finished.stderr
    benchmarks = result_of(tmp_path / "out")["benchmarks"]
    assert list(benchmarks) == ["tiny_arith/question_line", "tiny_arith/boxed"]
    assert benchmarks["tiny_arith/boxed"]["avg@2"]["value"] < 0.1  # the tiny model knows its own form alone


def test_best_of_n_takes_the_completion_that_a_reward_likes(tmp_path: Path) -> None:
    """With the right answer as the reward, best@k is pass@k; with the wrong ones liked, what is right only where all
    are."""
    out = tmp_path / "out"
    for reward, check in (("rewards.accuracy:accuracy", lambda e: e["best@4"] == e["pass@4"]),
                          ("rewards.controls:inverted_accuracy", lambda e: e["best@4"]["value"] < e["avg@4"]["value"])):
        finished = evaluate(
            out, *MODEL, "--benchmarks", "tiny_arith", "-k", "4", "--limit", "16", "--no-plots", "--restart",
            "--best-of", reward)
        assert finished.returncode == 0 and "best@k" in finished.stdout, finished.stderr
        assert check(result_of(out)["benchmarks"]["tiny_arith"])


def test_grading_again_changes_the_verdicts_and_samples_nothing(evaluated: Path, tmp_path: Path) -> None:
    same = in_process(grade_again.main, str(evaluated), "--out", str(tmp_path / "same"), "--no-plots")
    assert same.returncode == 0 and "tiny_arith: 0 of 384 verdicts changed" in same.stdout, same.stderr
    assert without_times(tmp_path / "same")["benchmarks"] == without_times(evaluated)["benchmarks"]
    inverted = in_process(grade_again.main, str(evaluated), "--out", str(tmp_path / "other"), "--grader",
                          "rewards.controls:inverted_accuracy", "--no-plots")
    assert "384 of 384 verdicts changed" in inverted.stdout
    before, after = (
        result_of(folder)["benchmarks"]["tiny_arith"]["avg@8"]["value"] for folder in (evaluated, tmp_path / "other"))
    assert after == pytest.approx(1 - before)


@needs_data
@pytest.mark.parametrize(("file", "key", "accuracy"), [
    ("math100_n8_dev.jsonl", "correct", 0.915), ("gsm8k_gpt3_n4_dev.jsonl", "recorded_correct", 0.393399)])
def test_recorded_groups_score_as_their_source_states(tmp_path: Path, file: str, key: str, accuracy: float) -> None:
    path = Path(os.environ["OTHERHALF_DATA"]) / "samples" / file
    stated = [bool(sample[key]) for line in path.read_text().splitlines() for sample in json.loads(line)["samples"]]
    finished = in_process(
        grade_again.main, "--samples", str(path.resolve()), "--recorded", key, "--out", str(tmp_path), "--no-plots")
    assert finished.returncode == 0, finished.stderr
    (entry,) = result_of(tmp_path)["benchmarks"].values()
    assert entry["recorded_accuracy"] == pytest.approx(sum(stated) / len(stated)) == pytest.approx(accuracy, abs=1e-6)
    size = entry["num_samples"]
    assert entry[f"avg@{size}"]["value"] == pytest.approx(sum(stated) / len(stated), abs=0.005)
    assert entry["recorded_agreement"] > 0.99


def test_benchmarks_are_read_from_the_data_folder(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, total in (("amc23_40", 9), ("amc22_23_83", 8)):
        (data / f"{name}.jsonl").write_text(
            json.dumps({"id": "a", "question": f"{total}-1=?", "answer": f"{total - 1}.0"}) + "\n")
    finished = evaluate(tmp_path / "out", *MODEL, "--benchmarks", "amc23,amc22_23", "--data-dir", str(data), "-k", "2",
                        "--max-tokens", "40", "--temperature", "1.0", "--prompt", "question_line", "--no-plots")
    assert finished.returncode == 0, finished.stderr
    assert "has 1 rows; AMC 12 2023" in finished.stderr  # a copy with another number of problems is told
    assert list(result_of(tmp_path / "out")["benchmarks"]) == ["amc23", "amc22_23"]
    assert [(q.benchmark, q.gold) for q in read_completions(tmp_path / "out")] == [("amc23", "8"), ("amc22_23", "7")]


def test_an_answer_comes_with_its_share_and_entropy() -> None:
    finished = python("-m", "eval.answer", *MODEL, "--prompt", "question_line", "-k", "12", "--json", "7+8=?")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert len(found["completions"]) == 12 and found["answer"] == "15"
    assert 0 < found["share"] <= 1 and found["support"] in [one["text"] for one in found["completions"]]
    shown = in_process(answer.main, *MODEL, "--prompt", "question_line", "-k", "12", "7+8=?").stdout
    assert shown.startswith("answer      15\n") and "entropy" in shown


@pytest.mark.parametrize(("words", "message"), [
    (("--benchmarks", "mat500"), "there is no benchmark 'mat500'; did you mean math500?"),
    (("--benchmarks", "math500", "--data-dir", "no/such"), "--data-dir: no/such does not exist"),
    (("--benchmarks", "math500", "--data-dir", "configs"), "--data-dir: configs has no file for math500"),
    (("--benchmarks", "tiny_arith", "-k", "0"), "-k: saw 0"),
    (("--benchmarks", "tiny_arith", "-k", "8", "-n", "4"), "pass@8 needs at least 8 samples"),
    (("--benchmarks", "tiny_arith", "-k", "x"), "-k: saw 'x'; expected whole numbers"),
    (("--benchmarks", "tiny_arith,tiny_arith"), "named twice"),
    (("--benchmarks", "tiny_arith", "--prompt", "boxd"), "no template 'boxd'; did you mean boxed?"),
    (("--benchmarks", "tiny_arith", "--generator", "vlm"), "--generator"),
    ((), "--benchmarks: missing"),
    (("--benchmarks", "tiny_arith", "--model", "no/such/model"), "--model: there is no folder"),
    (("--benchmarks", "tiny_arith", "--adapter", "configs"), "no run 'configs'"),
])
def test_bad_input_is_one_line_with_the_remedy_and_leaves_nothing(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    finished = evaluate(tmp_path / "out", *MODEL, *words)
    assert finished.returncode == 2
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], finished.stderr
    assert "Traceback" not in finished.stderr and not (tmp_path / "out").exists()


def test_a_row_without_an_answer_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "1+1=?", "answer": "2"}\n{"question": "1+2=?"}\n')
    finished = evaluate(tmp_path / "out", *MODEL, "--benchmarks", str(file))
    assert finished.returncode == 2 and f"{file}:2" in finished.stderr, finished.stderr


def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained("models/tiny-arith", dtype=torch.float32)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained("models/tiny-arith").save_pretrained(other)
    finished = evaluate(
        tmp_path / "out", "--model", str(other), "--adapter", str(adapter), "--benchmarks", "tiny_arith")
    assert finished.returncode == 2 and "--adapter: " in finished.stderr and "was trained on" in finished.stderr


def test_another_evaluation_in_the_folder_is_not_overwritten(evaluated: Path) -> None:
    before = (evaluated / "completions.jsonl").read_bytes()
    finished = evaluate(evaluated, *MODEL, "--benchmarks", "tiny_arith", "-k", "4", "--limit", "48")
    assert finished.returncode == 2
    assert "holds an evaluation with other settings: tasks.tiny_arith.samples is 8 there and 4" in finished.stderr
    assert (evaluated / "completions.jsonl").read_bytes() == before


def test_a_folder_that_was_graded_anew_is_no_longer_the_first_graders(evaluated: Path, tmp_path: Path) -> None:
    """Otherwise the same command would go on with the other grader's verdicts under the first one's name."""
    folder = tmp_path / "folder"
    shutil.copytree(evaluated, folder)
    assert (
        in_process(
            grade_again.main, str(folder), "--grader", "rewards.controls:inverted_accuracy", "--no-plots"
        ).returncode
        == 0)
    finished = evaluate(folder, *MODEL, "--benchmarks", "tiny_arith", "-k", "8", "--limit", "48")
    assert finished.returncode == 2 and "grader" in finished.stderr and "--restart" in finished.stderr


def test_a_grader_that_was_changed_in_between_is_another_grader(tmp_path: Path) -> None:
    grader = tmp_path / "mine.py"
    words = (
        *MODEL, "--benchmarks", "tiny_arith", "-k", "2", "--limit", "4", "--grader", f"{grader}:all_equal",
        "--no-plots")
    for value, code in ((0.0, 0), (1.0, 2)):
        grader.write_text(
            f"def all_equal(*, completions, answer, **columns):\n    return [{value}] * len(completions)\n")
        finished = evaluate(tmp_path / "out", *words)
        assert finished.returncode == code, finished.stderr
    assert "grader_digest is" in finished.stderr


def test_a_grader_without_a_verdict_stops_with_what_was_graded_kept(tmp_path: Path) -> None:
    grader = tmp_path / "service.py"
    grader.write_text(
        "from rewards.contract import GroupScore\n\ncalls = 0\n\n"
        "def judge(*, completions, answer, **columns):\n    global calls\n    calls += 1\n"
        "    return GroupScore([1.0] * len(completions), skipped=calls > 40)\n")
    finished = evaluate(
        tmp_path / "out", *MODEL, "--benchmarks", "tiny_arith", "-k", "8", "--limit", "80", "--grader",
        f"{grader}:judge")
    assert finished.returncode == 2 and "no verdict is neither right nor wrong" in finished.stderr, finished.stderr
    assert len(read_completions(tmp_path / "out")) == 32
