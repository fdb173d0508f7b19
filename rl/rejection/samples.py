"""What rejection sampling knows of each completion, and the files that keep it: samples/chunk-00000.jsonl, one line per
question.

A chunk is questions that were sampled and scored together. Its file appears whole or not at all, so that a killed run
samples again exactly the chunks that it lacks, with the same requests together as the uninterrupted run had.
samples/identity.json says by which model they were sampled and by which rewards judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewards.errors import Problem, named
from rl.errors import ConfigError
from rl.records import Json, Prompt, Rollout, ScoredGroup
from rl.runs.folder import RunFolderError, write_atomically

IDENTITY = "identity.json"
TURN_ENDS = "sampling.stop_token_ids"  # of the identity: the chat template's, which earlier versions did not stop at
SAMPLE_AGAIN = "delete it and go on with --resume, which samples it again"
MEANING = {
    "model.path": "the weights differ from those that the run has sampled with",
    "model.adapter": "the weights differ from those that the run has sampled with",
    "model.dtype": "the run has sampled with another dtype, or on another device",
    "data.path": "the questions, their answers or their prompts differ from those that the run has sampled for",
    "rewards": "the source of the reward functions differs from that which the run has scored with",
    TURN_ENDS: "the ids that end a turn of the chat template differ from those that the run's completions ended at",
}


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled and scored completion.

    text: as rewards see it (assistant prefix included, no special tokens), which is the solution if it is kept.
    num_tokens: with the stop token. reward: the weighted sum; scores: each reward's own value. answer: None where none
    was found. cluster: completions of a question with equivalent answers share it. exact: a warm-up on the text trains
    on the very tokens that were sampled."""

    text: str
    num_tokens: int
    truncated: bool
    seed: int
    reward: float
    scores: Mapping[str, float]
    answer: str | None
    cluster: int
    exact: bool


@dataclass(frozen=True, slots=True)
class SampledQuestion:
    """A question with its n completions. normalised_entropy: H / ln n in [0, 1], None for n = 1. judged: False where a
    reward gave some completion no verdict; rewards and clusters mean nothing then."""

    id: str
    normalised_entropy: float | None
    judged: bool
    completions: tuple[Completion, ...]


def sampled_question(scored: ScoredGroup, is_exact: Callable[[Prompt, Rollout], bool]) -> SampledQuestion:
    """A scored group as a record; is_exact: see Completion."""
    size = len(scored.rewards)
    # A reward's gaps are filled for training; a completion without a verdict must not be kept as if it had one.
    judged = not scored.skipped and scored.metrics.get("group/unscored_share", 0.0) == 0.0
    return SampledQuestion(
        scored.group.question.id,
        scored.normalised_entropy if size > 1 else None,
        judged,
        tuple(
            Completion(
                text=rollout.text, num_tokens=len(rollout.token_ids), truncated=rollout.is_truncated, seed=rollout.seed,
                reward=scored.rewards[i], scores={name: values[i] for name, values in scored.scores.items()},
                answer=scored.answers[i], cluster=scored.labels[i], exact=is_exact(scored.group.prompt, rollout))
            for i, rollout in enumerate(scored.group.rollouts)))


class SampleStore:
    """The chunks of a run in its samples/ folder. chunks: the prompts of each, in the order in which they are
    sampled."""

    def __init__(self, folder: Path, chunks: Sequence[Sequence[Prompt]], num_samples: int) -> None:
        self._folder = folder
        self._chunks = chunks
        self._num_samples = num_samples

    @property
    def missing(self) -> list[int]:
        """Numbers of the chunks that are not there yet."""
        return [number for number in range(len(self._chunks)) if not self._file(number).is_file()]

    def identity(self) -> dict[str, Json] | None:
        """What the samples that are there belong to; None where there are none yet. Raises RunFolderError."""
        file = self._folder / IDENTITY
        if not file.is_file():
            return None
        try:
            there: dict[str, Json] = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(
                f"{file} is not readable ({error}): what the samples were made with is not known",
                remedy="a new run_dir") from None
        return there

    def begin(self, identity: Mapping[str, Json]) -> None:
        """Open the folder for samples of this model, these questions and these rewards. Raises ConfigError, with each
        key that differs, where it holds samples of others."""
        self._folder.mkdir(exist_ok=True)
        for unfinished in self._folder.glob(".*.tmp"):  # of a run that was killed in the middle of writing
            unfinished.unlink()
        there = self.identity()
        if there is None:
            write_atomically(self._folder / IDENTITY, json.dumps(identity, indent=2) + "\n")
            return
        if changed := [
            Problem(f"{MEANING[key]} (there {there.get(key)}, here {identity[key]})", named(key))
            for key in identity
            if there.get(key) != identity[key]
        ]:
            raise ConfigError(*changed, Problem(remedy="--resume with what the run began with, or a new run_dir"))

    def write(self, number: int, questions: Sequence[SampledQuestion]) -> None:
        """Raises OSError; the chunk is then missing."""
        prompts = self._chunks[number]
        lines = [json.dumps({"id": question.id, "question": prompt.question.text, "gold": prompt.question.answer,
                             "normalised_entropy": question.normalised_entropy, "judged": question.judged,
                             "completions": [asdict(completion) for completion in question.completions]},
                            ensure_ascii=False, allow_nan=False)
                 for prompt, question in zip(prompts, questions, strict=True)]
        write_atomically(self._file(number), "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))

    def read(self, number: int) -> list[SampledQuestion]:
        """Raises RunFolderError where the file is not what was written."""
        file = self._file(number)
        try:
            # Bytes: of the ends of lines that text knows, some stand in completions.
            questions = [_from_json(json.loads(line)) for line in file.read_bytes().splitlines()]
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{type(error).__name__}: {error}; the file was edited or damaged", where=str(file),
                remedy=SAMPLE_AGAIN) from None
        found = [(question.id, len(question.completions)) for question in questions]
        wanted = [(prompt.question.id, self._num_samples) for prompt in self._chunks[number]]
        if found != wanted:
            raise RunFolderError(
                f"holds {len(found)} questions, the first (id, completions) {found[:1]}", where=str(file),
                expected=f"{len(wanted)}, the first {wanted[:1]}", remedy=SAMPLE_AGAIN)
        return questions

    def _file(self, number: int) -> Path:
        return self._folder / f"chunk-{number:05d}.jsonl"


def _from_json(line: dict[str, Any]) -> SampledQuestion:
    return SampledQuestion(line["id"], line["normalised_entropy"], line["judged"],
                           tuple(Completion(**completion) for completion in line["completions"]))
