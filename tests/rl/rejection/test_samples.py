"""rl/rejection/samples.py: records come back as they were, and files of other samples, or damaged ones, are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rl.errors import ConfigError
from rl.records import Prompt, Question
from rl.rejection.samples import SampledQuestion, SampleStore
from rl.runs.folder import RunFolderError
from tests.reference.reject import completion, sampled

IDENTITY = {
    "model.path": "aa", "model.adapter": None, "model.dtype": "float32 on cpu", "data.path": "bb", "rewards": "cc"}


def prompt(name: str) -> Prompt:
    return Prompt(Question(name, f"What is {name}?", "1", {}), "text", (5, 6))


CHUNKS = [[prompt("a"), prompt("b")], [prompt("c")]]


def question(name: str) -> SampledQuestion:
    return sampled(
        [completion("Ünïcode 數\u2028x", 0.1 + 0.2), completion(f"It is {name}.", truncated=True)], name=name,
        entropy=1 / 3)


def store(folder: Path) -> SampleStore:
    return SampleStore(folder / "samples", CHUNKS, 2)


def test_records_come_back_as_they_were_and_missing_chunks_are_known(tmp_path: Path) -> None:
    chunks = store(tmp_path)
    chunks.begin(IDENTITY)
    assert chunks.missing == [0, 1]
    chunks.write(1, [question("c")])
    assert store(tmp_path).missing == [0] and store(tmp_path).read(1) == [question("c")]
    chunks.write(0, [question("a"), question("b")])
    assert store(tmp_path).missing == [] and store(tmp_path).read(0) == [question("a"), question("b")]
    line = json.loads((tmp_path / "samples" / "chunk-00000.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert (line["question"], line["gold"], line["completions"][0]["reward"]) == ("What is a?", "1", 0.1 + 0.2)


def test_samples_of_other_weights_questions_or_rewards_are_refused_by_key(tmp_path: Path) -> None:
    store(tmp_path).begin(IDENTITY)
    store(tmp_path).begin(IDENTITY)
    for key in IDENTITY:
        with pytest.raises(ConfigError) as caught:
            store(tmp_path).begin(IDENTITY | {key: "other"})
        assert str(caught.value).startswith(f"{key}: the ") and "here other" in str(caught.value)
        assert "Remedy: --resume with what the run began with" in str(caught.value)


def test_a_damaged_or_foreign_chunk_is_named_with_what_to_do(tmp_path: Path) -> None:
    chunks = store(tmp_path)
    chunks.begin(IDENTITY)
    chunks.write(1, [question("c")])
    file = tmp_path / "samples" / "chunk-00001.jsonl"
    whole = file.read_text(encoding="utf-8")
    damaged = "the file was edited or damaged"
    for text, said in (
        (whole[:-20], damaged), (whole.replace('"c"', '"d"'), "expected 1, the first"), ("", "holds 0 questions"),
        ("[]\n", damaged), (whole.replace('"seed"', '"sown"'), damaged),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(RunFolderError) as caught:
            chunks.read(1)
        assert str(file) in str(caught.value) and said in str(caught.value) and "Remedy: delete it" in str(caught.value)


def test_what_a_kill_left_of_a_file_is_cleared_away(tmp_path: Path) -> None:
    store(tmp_path).begin(IDENTITY)
    (tmp_path / "samples" / ".chunk-00000.jsonl.99.tmp").write_text("half")
    store(tmp_path).begin(IDENTITY)
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["identity.json"] and store(
        tmp_path
    ).missing == [0, 1]
