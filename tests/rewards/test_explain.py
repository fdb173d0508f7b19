"""`python -m rewards.explain`: what is said about a group, and about what cannot be explained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rewards.explain import main

ACCURACY = ["--reward", "rewards.accuracy:accuracy"]


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    return shown.err


def section(text: str, i: int) -> str:
    """What is said about completion i."""
    return text.partition(f"\ncompletion {i} ")[2].partition("\n\n")[0]


def test_each_completion_says_what_was_extracted_compared_and_scored(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(
        capsys,
        *ACCURACY,
        "--question",
        "1/4 + 1/4?",
        "--answer",
        r"It is \boxed{1/2}",
        "--completion",
        r"\boxed{0.5}",
        "--completion",
        "The answer is 0.6.",
        "--completion",
        "hm",
        "--completion",
        r"\boxed{\frac{2}{4}}",
        "--completion",
        r"\boxed{0.5")
    assert "question     1/4 + 1/4?" in text and "gold answer  1/2   (from " in text
    first = section(text, 0)
    assert "extracted  0.5   by rule: boxed" in first and "1/2" in first and "equal" in first
    assert "cluster    0, with completion 3" in first and "score      1   accuracy" in first
    second = section(text, 1)
    assert (
        "extracted  0.6   by rule: phrase" in second and "not equal" in second and "score      0   accuracy" in second)
    assert (
        "extracted  nothing" in section(text, 2)
        and "rule: none" in section(text, 2)
        and "cluster    2, alone" in section(text, 2))
    assert "since 0.5 founded it:" in section(text, 3)
    assert "extracted  nothing" in section(text, 4) and "rule: boxed" in section(text, 4)
    assert "4 clusters of 5, semantic entropy 1.332 nats" in text and "accuracy/timed_out_share" in text


def test_a_setting_of_the_reward_is_one_of_the_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*ACCURACY, "--answer", "42", "--completion", "so I get 42"]
    assert "extracted  nothing" in explained(capsys, *words)
    text = explained(capsys, *words, "--arguments", '{"last_number": true}')
    assert "extracted  42   by rule: last_number" in text and "score      1" in text


def test_long_and_hostile_completions_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(
        capsys, *ACCURACY, "--answer", "1", "--completion", "\\boxed{" + "9" * 100_000 + "}", "--completion", "",
        "--completion", "\u202e\\boxed{1}")
    assert "(100008 characters)" in text and len(text) < 5000
    assert "score      1   accuracy" in section(text, 2)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run's two files, as rl/runs/tracking.py and rl/run.py write them; the last answer was recorded as another
    one."""
    def group(step: int, question_id: str) -> dict[str, Any]:
        texts = {
            r"\boxed{4}": "4", r"\boxed{8/2}": "8/2", "none": None, r"\boxed{5}": "6" if question_id == "q2" else "5"}
        completions: list[dict[str, Any]] = []
        for i, ((text, answer), cluster) in enumerate(zip(texts.items(), (0, 0, 1, 2), strict=True)):
            reward = 0.0 if answer is None else 0.5 if i < 2 else 0.25
            completions.append(
                {
                    "text": text, "answer": answer, "cluster": cluster, "reward": reward, "scores": {},
                    "advantage": None, "num_tokens": 3, "finish_reason": "stop", "policy_version": 0})
        return {
            "step": step, "question_id": question_id, "question": f"2+2 {question_id}", "answer": None,
            "columns": {"level": 3}, "prompt": "2+2?\n", "entropy": 1.04, "normalised_entropy": 0.75, "refused": None,
            "completions": completions}

    groups = [group(1, "q1"), group(1, "q2"), group(2, "q3"), group(2, "q1")]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(item) + "\n" for item in groups) + '{"step": 3, "cut')
    rewards = [
        {
            "use": "rewards.semantic_entropy:semantic_entropy", "weight": 1.0, "name": None, "style": "group",
            "arguments": {}}]
    (tmp_path / "config.resolved.yaml").write_text(yaml.safe_dump({"rewards": rewards}))
    return tmp_path


def test_a_recorded_group_is_explained_with_the_runs_rewards(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = explained(capsys, "--rollouts", str(run_dir), "--step", "1", "--question-id", "q1")
    assert text.startswith("step 1, question q1, rewards: rewards.semantic_entropy:semantic_entropy")
    assert "score      0.5   semantic_entropy" in section(
        text, 1
    ) and "recorded   answer '8/2', cluster 0, reward 0.5" in section(text, 1)
    assert "differs" not in text


def test_a_record_that_differs_from_what_is_computed_now_is_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = explained(capsys, "--rollouts", str(run_dir / "rollouts.jsonl"), "--question-id", "q2")
    assert (
        "recorded   answer '6', cluster 2, reward 0.25   -- differs from now" in section(text, 3)
        and text.count("differs") == 1)


def test_which_group_is_taken(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, title in (
        (["--question-id", "q1"], "step 2, question q1"),
        (["--step", "1"], "step 1, question q1"),
        ([], "step 2, question q3"),
    ):
        assert explained(capsys, "--rollouts", str(run_dir), *words).startswith(title)


def test_another_reward_with_an_answer_of_ones_own_explains_a_recorded_group(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = explained(capsys, "--rollouts", str(run_dir), *ACCURACY, "--answer", "4")
    assert "score      1   accuracy" in section(text, 1) and "recorded" not in text


def test_what_cannot_be_explained_is_said_in_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["--rollouts", str(run_dir)]
    completion = ["--completion", "x"]
    empty = run_dir / "other"
    empty.mkdir()
    for words, message in (
        (completion, "--reward is missing"),
        (ACCURACY, "there is no completion to explain"),
        ([*ACCURACY, *completion], "needs a gold answer, and question 'given here' has none"),
        (["--reward", "rewards.accuracy:acuracy", *completion], "did you mean 'accuracy'?"),
        (["--reward", "nothing.py:x", *completion], "there is no file"),
        ([*ACCURACY, *completion, "--answer", "1", "--arguments", "["], "--arguments: saw '[', which is not JSON"),
        ([*ACCURACY, *completion, "--answer", "1", "--columns", "1"], "--columns: saw '1'; expected an object"),
        (["--rollouts", str(empty)], "is a folder without rollouts.jsonl"),
        (["--rollouts", "/nothing"], "/nothing does not exist"),
        (["--rollouts", str(run_dir / "config.resolved.yaml")], "config.resolved.yaml:1 is not a group of a run"),
        ([*run, "--question-id", "q7"], "saw 'q7'"),
        ([*run, "--question-id", "q33"], "the closest is 'q3'"),
        ([*run, "--step", "9"], "--step: saw 9; "),
        ([*run, *ACCURACY], "needs a gold answer, and question 'q3' has none"),
        (["--reward", "rewards.reasoning_gym:score", *completion], "needs the column 'reasoning_gym'"),
    ):
        assert message in refused(capsys, *words)
    (run_dir / "config.resolved.yaml").unlink()
    assert "name one with --reward" in refused(capsys, *run)


def test_both_commands_load_neither_torch_nor_algebra() -> None:
    code = ("import sys, rewards.explain, rewards.check\n"
            "print([m for m in ('torch', 'sympy', 'math_verify', 'rl', 'yaml', 'reasoning_gym') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rewards.explain", *ACCURACY, "--completion", r"\boxed{2}", "--answer", "2"],
        capture_output=True, text=True)
    assert done.returncode == 0 and "score      1   accuracy" in done.stdout and done.stderr == ""


def test_rewards_that_read_tokens_are_left_out_with_a_note_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--question", "1+1?", "--answer", "2", "--completion", r"\boxed{2}"]
    for use, style in (
        ("rewards.overlong:overlong_penalty", "group"), ("docs/examples/trl_reward.py:ends_early", "trl"),
        ("rewards.reference_likelihood:reference_likelihood", "group"),
    ):
        assert main(["--reward", use, "--style", style, *words]) == 2
        error = capsys.readouterr().err
        assert f"not computed {use}" in error and "--reward" in error
