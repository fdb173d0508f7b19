"""What an evaluation asks for: the protocol where the user is silent, and messages that name the option where it cannot
be done."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eval.benchmarks import find_benchmark, load_benchmark
from eval.run import build_tasks, parse
from eval.subject import Subject, find_subject
from eval.tasks import Asked, EvaluationError, Task, build_task
from rl.paths import project_root


@pytest.fixture(scope="module")
def subject() -> Subject:
    return find_subject("models/tiny-arith", None)


def task(
    subject: Subject, benchmark: str = "tiny_arith", limit: int | None = 4, context: int | None = 256, **asked: object
) -> Task:
    found = find_benchmark(benchmark)
    return build_task(found, load_benchmark(found, None, limit), Asked(**asked), subject.tokenizer, context)  # type: ignore[arg-type]


def test_a_silent_user_gets_the_benchmarks_protocol(subject: Subject) -> None:
    found = task(subject)
    assert (found.samples, found.ks, found.parameters.temperature, found.parameters.top_p) == (16, (16,), 1.0, 1.0)
    assert found.parameters.max_completion_tokens == 48
    assert found.protocol["prompt"] == "question_line" and found.protocol["grader"] == "rewards.accuracy:accuracy"


def test_the_output_layer_is_that_of_the_policys_run_and_part_of_the_protocol(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(project_root() / "models" / "tiny-arith", tmp_path / "model")
    model = str(tmp_path / "model")
    (tmp_path / "config.resolved.yaml").write_text("model:\n  path: models/tiny-arith\n  head_dtype: float32\n")
    for word, expected in ((None, "float32"), ("float32", "float32"), ("null", None)):
        found = find_subject(model, None, head_dtype=word)
        assert found.model.head_dtype == expected
        options = parse(["--model", model, "--benchmarks", "tiny_arith", *(["--head-dtype", word] if word else [])])
        [asked] = build_tasks(options, found)
        assert asked.protocol.get("head_dtype") == expected
        said = capsys.readouterr().err
        assert ("another output layer" in said) == (word == "null")
        assert said.count("is compared under --prompt question_line --head-dtype float32\n") == (expected is not None)
    assert find_subject("models/tiny-arith", None).model.head_dtype is None


def test_one_sample_is_greedy_and_several_are_not(subject: Subject, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "1+1=?", "answer": "2"}\n')
    asked = {"benchmark": str(file), "prompt": "question_line", "max_tokens": 32}
    assert task(subject, **asked).parameters.temperature == 0.0  # type: ignore[arg-type]
    several = task(subject, **asked, ks=(8,))  # type: ignore[arg-type]
    assert (several.parameters.temperature, several.parameters.top_p) == (0.6, 0.95)
    warm = task(subject, **asked, ks=(8,), temperature=0.9)  # type: ignore[arg-type]
    assert (warm.parameters.temperature, warm.parameters.top_p) == (0.9, 1.0)


def test_samples_are_as_many_as_the_largest_k_needs(subject: Subject) -> None:
    assert task(subject, ks=(1, 4)).samples == 4
    assert task(subject, ks=(1, 4), samples=12).samples == 12


def test_two_models_share_the_random_numbers_of_a_question(subject: Subject) -> None:
    """The seeds know the benchmark, the question and the sample, and nothing of the model or the prompt."""
    one, other = task(subject, limit=4), task(subject, limit=2, prompt="boxed")
    seeds = [request.seeds for request in one.requests(one.prompts)]
    assert [request.seeds for request in other.requests(other.prompts)] == seeds[:2]
    assert len({seed for row in seeds for seed in row}) == 4 * 16
    assert [request.seeds for request in task(subject, seed=1).requests(one.prompts)] != seeds


def test_a_protocol_longer_than_the_context_is_cut_and_said(subject: Subject) -> None:
    found = task(subject, context=40)
    longest = max(len(prompt.token_ids) for prompt in found.prompts)
    assert found.parameters.max_completion_tokens == 40 - longest
    assert "not at the protocol's 48" in found.notes[0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"ks": (0,)}, "-k: saw 0; expected whole numbers >= 1"),
        (
            {"ks": (8,), "samples": 4},
            "-k: pass@8 needs at least 8 samples of each question, and --samples is 4. Remedy: --samples 8, or -k 4",
        ),
        ({"samples": 0}, "--samples: saw 0"),
        ({"temperature": -1.0}, "--temperature: saw -1"),
        ({"top_p": 0.0}, "--top-p: saw 0"),
        ({"max_tokens": 500}, "--max-tokens: saw 500; the longest prompt of tiny_arith has"),
        (
            {"grader": "rewards.confidence:self_certainty"},
            "--grader: self_certainty judges by the policy's own probabilities",
        ),
    ],
)
def test_what_cannot_be_done_names_the_option(subject: Subject, asked: dict[str, object], words: str) -> None:
    with pytest.raises(EvaluationError, match=r".") as caught:
        task(subject, **asked)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_context_without_room_is_refused(subject: Subject) -> None:
    with pytest.raises(EvaluationError, match="the model's context is 5"):
        task(subject, context=5)
