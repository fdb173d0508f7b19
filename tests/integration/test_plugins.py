"""A person's own reward file trains a run: ours in ten lines, TRL's unchanged, and both in a weighted sum."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.runs.folder import RunFolder
from tests.reference.whole_run import metrics_of, train, trained_steps

BREVITY = '''
def brevity(*, question, completions, answer, longest=20, **columns):
    """1 for an empty completion, 0 from `longest` characters on."""
    assert isinstance(question, str) and answer is None
    return [max(0.0, 1 - len(text) / longest) for text in completions]
'''
TRL_STYLE = '''
def has_box(prompts, completions, completion_ids, level, **kwargs):
    assert len(prompts) == len(completions) == len(completion_ids) == len(level) and set(level) == {3}
    return [1.0 if "boxed" in text else None for text in completions]

async def later(completions, **kwargs):
    return [float(len(text) % 2) for text in completions]
'''


@pytest.fixture
def rewards_file(tmp_path: Path) -> Path:
    path = tmp_path / "my_rewards.py"
    path.write_text(BREVITY + TRL_STYLE)
    return path


@pytest.fixture
def questions(tmp_path: Path) -> str:
    """Questions with a column of their own."""
    rows = [{"question": f"{n}+{n + 3}=?", "level": 3} for n in range(1, 25)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={path}"


def completions_of(run_dir: Path) -> list[dict[str, object]]:
    lines = RunFolder(run_dir).rollouts_file.read_text().splitlines()
    return [completion for line in lines for completion in json.loads(line)["completions"]]


def test_a_reward_in_a_file_of_ones_own_trains_a_run(tmp_path: Path, rewards_file: Path) -> None:
    rewards = f"rewards=[{{use: {rewards_file}:brevity, arguments: {{longest: 30}}}}]"
    assert train(tmp_path / "run", rewards, "selection.low=null", "selection.high=null", "steps=2") == 0
    assert trained_steps(tmp_path / "run") == [1, 2]
    for completion in completions_of(tmp_path / "run"):
        assert completion["reward"] == max(0.0, 1 - len(str(completion["text"])) / 30)
    assert any(completion["advantage"] for completion in completions_of(tmp_path / "run"))


def test_a_relative_reward_file_is_found_in_the_working_directory(
    tmp_path: Path, rewards_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rewards_file.parent)
    assert train(Path("runs/own"), f"rewards.0.use={rewards_file.name}:brevity", "steps=1") == 0
    assert trained_steps(tmp_path / "runs" / "own") == [1]


@pytest.mark.parametrize("name", ["has_box", "later"])
def test_a_reward_written_for_trl_trains_a_run_unchanged(
    tmp_path: Path, rewards_file: Path, questions: str, name: str
) -> None:
    rewards = f"rewards=[{{use: {rewards_file}:{name}, style: trl}}]"
    assert train(tmp_path / "run", questions, rewards, "selection.low=null", "selection.high=null", "steps=2") == 0
    for completion in completions_of(tmp_path / "run"):
        text = str(completion["text"])
        expected = float(len(text) % 2) if name == "later" else 1.0
        if name == "later" or "boxed" in text:
            assert completion["scores"] == {name: expected}


def test_several_rewards_add_up_with_their_weights(tmp_path: Path, rewards_file: Path) -> None:
    rewards = (f"rewards=[{{use: {rewards_file}:brevity, weight: 0.5, name: short}}, "
               "{use: rewards.semantic_entropy:semantic_entropy, weight: 2}]")
    assert train(tmp_path / "run", rewards, "steps=1") == 0
    completions = completions_of(tmp_path / "run")
    assert len(completions) == 8 * 4
    for completion in completions:
        scores = completion["scores"]
        assert isinstance(scores, dict)
        assert completion["reward"] == pytest.approx(0.5 * scores["short"] + 2 * scores["semantic_entropy"], abs=1e-12)
    (metrics,) = [record for record in metrics_of(tmp_path / "run") if record["kind"] == "train"]
    assert metrics["reward/short"] == pytest.approx(sum(c["scores"]["short"] for c in completions) / len(completions))  # type: ignore[index]
