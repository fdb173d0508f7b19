"""`python -m eval.forecast` on the four tiny bases, which go four different ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import otherhalf
from eval import forecast
from eval.readiness import CASES, Case
from rl.configuration.loading import load
from rl.paths import project_root
from tests.reference.whole_run import in_process

HELD_OUT = "models/tiny-arith/questions/held_out.jsonl"
MODEL = ("--model", "models/tiny-arith", "--prompt", "question_line", "--max-tokens", "48")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "case", "maj"), [
    ("tiny-arith", "latent", (0.75, 0.95)), ("tiny-arith-1300", "often_wrong", (0.35, 0.5)),
    ("tiny-arith-brief", "nearly_always_wrong", (0.05, 0.2)), ("tiny-arith-plain", "no_format", (0.0, 0.0))])
def test_each_base_is_told_from_the_others(model: str, case: Case, maj: tuple[float, float]) -> None:
    """maj: what maj@8 of 512 questions (models/README.md) may be on 64 of them."""
    finished = in_process(forecast.main, *MODEL, "--model", f"models/{model}", "--data", HELD_OUT, "-k", "8", "--json")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    assert found["case"] == case and found["title"] == CASES[case].title
    assert maj[0] <= found["group_maj"]["value"] <= maj[1]
    assert (found["num_questions"], found["num_labelled"], found["k"], found["groups"]["size"]) == (64, 64, 8, 8)
    assert (found["protocol"]["temperature"], found["protocol"]["max_tokens"]) == (1.0, 48)


@pytest.mark.slow
def test_rows_with_and_without_an_answer_are_sampled_alike(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (project_root() / HELD_OUT).read_text().splitlines()[:12]]
    for row in rows[4:]:
        del row["answer"]
    mixed, bare = tmp_path / "mixed.jsonl", tmp_path / "bare.jsonl"
    for file, kept in ((mixed, rows), (bare, [{**row, "answer": None} for row in rows])):
        file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    words = (*MODEL, "-k", "4", "--limit", "10", "--json")
    some, none, all_of_them = (
        json.loads(in_process(forecast.main, *words, "--data", str(data)).stdout) for data in (mixed, bare, HELD_OUT))
    assert [found["num_labelled"] for found in (some, none, all_of_them)] == [4, 0, 10]
    assert (some["case"], none["case"]) == ("latent", "no_labels") and none["avg"] is none["maj"] is None
    assert "4 question(s) with an answer are few" in some["notes"][0]
    assert {found["num_questions"] for found in (some, none, all_of_them)} == {10}
    assert (some["protocol"]["grader"], some["protocol"]["prompt"]) == ("rewards.accuracy:accuracy", "question_line")
    plain = (*words, "--model", "models/tiny-arith-plain", "--data", str(mixed))
    answered = [json.loads(in_process(forecast.main, *plain, *more).stdout)["answered"] for more in (
        (), ("--last-number",))]
    assert answered[0] == 0.0 and answered[1] > 0.9


@pytest.mark.slow
def test_a_benchmark_is_asked_as_it_is_and_people_read_lines() -> None:
    finished = in_process(
        forecast.main, "--model", "models/tiny-arith", "--data", "tiny_arith", "-k", "4", "--limit", "24")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("models/tiny-arith on ") and "24, 24 of them with an answer" in finished.stdout
    assert "groups of 4" in finished.stdout and "configs/empo_math.yaml" in finished.stdout


@pytest.mark.slow
def test_a_probe_trains_on_other_questions_and_measures_these_again(tmp_path: Path) -> None:
    words = (*MODEL, "--data", HELD_OUT, "-k", "8", "--limit", "48")
    out = tmp_path / "probe"
    finished = in_process(forecast.main, *words, "--probe", "6", "--probe-out", str(out), "--json",
                          "--probe-set", "optim.micro_batch_tokens=4096")
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout)
    probe, accuracy = found["probe"], found["probe"]["accuracy"]
    assert accuracy["before"] == found["avg"] and probe["steps"] == 6 and probe["stop_reason"] == "completed"
    assert probe["entropy"]["before"]["value"] == pytest.approx(found["normalised_entropy"])
    assert accuracy["difference"]["low"] > 0.05 and accuracy["after"]["value"] == pytest.approx(
        accuracy["before"]["value"] + accuracy["difference"]["value"])
    assert probe["agreement"]["difference"]["low"] > 0 > probe["entropy"]["difference"]["high"]
    assert probe["verdict"].startswith("Accuracy rose")
    rows = [json.loads(line) for line in (out / "questions.jsonl").read_text().splitlines()]
    measured = {json.loads(line)["question"] for line in (project_root() / HELD_OUT).read_text().splitlines()[:48]}
    assert len(rows) == 6 * 32 and not measured & {row["question"] for row in rows} and "answer" not in rows[0]
    config = load(out / "run" / "config.resolved.yaml", [])
    sampling, prompt = config.sampling, config.prompt.template
    assert (config.model.path, prompt, sampling.max_completion_tokens, sampling.group_size, config.selection.high) == (
        "models/tiny-arith", "question_line", 48, 8, 0.9)
    assert (config.optim.micro_batch_tokens, config.data.columns.answer, config.evaluation.path) == (4096, None, None)


@pytest.mark.slow
def test_a_probe_without_labels_tells_agreement_and_keeps_no_run(tmp_path: Path) -> None:
    bare = tmp_path / "bare.jsonl"
    rows = [json.loads(line) for line in (project_root() / HELD_OUT).read_text().splitlines()[:48]]
    bare.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
    finished = in_process(
        forecast.main, *MODEL, "--data", str(bare), "-k", "4", "--limit", "12", "--group-size", "4", "--probe", "1")
    assert finished.returncode == 0, finished.stderr
    assert "probe: 1 steps on other questions" in finished.stdout and "  agreement " in finished.stdout
    assert "  accuracy " not in finished.stdout and "  run: " not in finished.stdout
    assert sorted(tmp_path.iterdir()) == [bare]


@pytest.mark.slow
def test_a_probe_goes_on_with_an_adapter_of_any_rank(tmp_path: Path) -> None:
    data = [{"question": f"{a}+{b}=?", "answer": a + b} for a in range(10, 18) for b in range(10, 14)]
    run = otherhalf.train("models/tiny-arith", data, ["rewards.accuracy:accuracy"], steps=1, run_dir=tmp_path / "run",
                          sampling={"questions_per_step": 4, "group_size": 4}, lora={"rank": 4, "alpha": 12})
    words = ("--adapter", str(run.folder), "--data", HELD_OUT, "-k", "2", "--limit", "4", "--max-tokens", "16",
             "--group-size", "2", "--probe", "1", "--probe-out", str(tmp_path / "probe"))
    refused = in_process(forecast.main, *words, "--probe-set", "lora.rank=8")
    assert refused.returncode == 2 and refused.stdout == "" and "Remedy: lora.rank=4" in refused.stderr
    finished = in_process(forecast.main, *words)
    assert finished.returncode == 0, finished.stderr
    config = load(tmp_path / "probe" / "run" / "config.resolved.yaml", [])
    assert (config.lora.rank, config.lora.alpha) == (4, 12)


@pytest.mark.parametrize(("words", "message"), [
    (("--probe", "2"), "has 12 other questions than the 500 that are measured; expected 32 or more to train on"),
    (("--probe", "2", "--limit", "8", "--probe-set", "optim.lr=-1"), "override optim.lr: saw -1"),
    (("--probe", "-1"), "--probe: saw -1"),
])
def test_a_probe_that_cannot_be_run_is_refused_before_anything_is_sampled(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    finished = in_process(
        forecast.main, *MODEL, "--data", HELD_OUT, "--limit", "500", "--probe-out", str(tmp_path), *words)
    assert finished.returncode == 2 and finished.stdout == ""
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], finished.stderr


@pytest.mark.parametrize(("words", "message"), [
    ((), "--data: missing; expected a JSONL or parquet file"),
    (("--data", "no/such.jsonl"), "no such file"),
    (("--data", "questions"), "--data: there is no benchmark 'questions'"),
    (("--data", HELD_OUT, "--limit", "0"), "--limit: saw 0"),
    (("--data", HELD_OUT, "-k", "1"), "-k: saw 1; expected a whole number >= 2"),
    (("--data", HELD_OUT, "--group-size", "1"), "--group-size: saw 1"),
    (("--data", HELD_OUT, "--low", "0.9", "--high", "0.2"), "--low, --high: saw 0.9, 0.2"),
    (("--data", HELD_OUT, "--temperature", "3"), "--temperature: saw 3.0"),
    (("--data", HELD_OUT, "--grader", "rewards.accuracy:accurcy"), "accurcy"),
])
def test_bad_input_is_one_line_in_the_commands_own_words(words: tuple[str, ...], message: str) -> None:
    finished = in_process(forecast.main, *MODEL, *words)
    assert finished.returncode == 2 and finished.stdout == ""
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and "--benchmarks" not in errors[0], finished.stderr


def test_a_row_without_a_question_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"problem": "1+1=?"}\n')
    finished = in_process(forecast.main, *MODEL, "--data", str(tmp_path / "mine.jsonl"))
    assert finished.returncode == 2 and f"{tmp_path / 'mine.jsonl'}:1" in finished.stderr, finished.stderr
