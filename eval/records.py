"""What an evaluation knows of each completion, and the lines of completions.jsonl that keep it.

Question -> samples -> lines, and back: scoring, comparing, plotting and grading anew work on these records
alone, whoever sampled them. One line is one completion; those of a question stand together, in the order of their
samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rewards.errors import UserError
from rl.records import Json


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded completion.

    text: as the grader sees it (assistant prefix included). answer: what was extracted, None where nothing was found.
    correct: the grader's verdict, in [0, 1]. cluster: completions of a question with equivalent answers share it; one
    without an answer has its own.
    num_tokens, seed: None where somebody else sampled it. ranks_by: value of the reward that best@k chooses by, where
    there is one.
    """

    text: str
    answer: str | None
    correct: float
    cluster: int
    truncated: bool
    num_tokens: int | None = None
    seed: int | None = None
    ranks_by: float | None = None


@dataclass(frozen=True, slots=True)
class GradedQuestion:
    """A question with all of its samples [n]. columns: what the grader read beside question and answer, to grade again.

    timed_out_share: of the samples, those that the grader did not decide within its deadline and that hence count as
    wrong."""

    benchmark: str
    id: str
    question: str
    gold: str | None
    columns: Mapping[str, Json]
    samples: tuple[Sample, ...]
    timed_out_share: float = 0.0

    @property
    def accuracy(self) -> float:
        """avg@n of this question."""
        return sum(sample.correct for sample in self.samples) / len(self.samples)


class RecordsError(UserError):
    """A file of completions is not what an evaluation wrote; the message names file, line and field."""


def to_lines(question: GradedQuestion) -> Iterator[dict[str, Any]]:
    """One mapping per completion. The columns stand in the first one alone."""
    for index, sample in enumerate(question.samples):
        line: dict[str, Any] = {
            "benchmark": question.benchmark, "id": question.id, "sample": index, "question": question.question,
            "gold": question.gold, "completion": sample.text, "answer": sample.answer, "correct": sample.correct,
            "cluster": sample.cluster, "truncated": sample.truncated, "num_tokens": sample.num_tokens,
            "seed": sample.seed}
        if sample.ranks_by is not None:
            line["ranks_by"] = sample.ranks_by
        if index == 0 and question.columns:
            line["columns"] = dict(question.columns)
        if index == 0 and question.timed_out_share:
            line["timed_out_share"] = question.timed_out_share
        yield line


def from_lines(lines: Iterable[Mapping[str, Any]], where: str) -> list[GradedQuestion]:
    """Questions in the order of the file. where: the file, for messages. Raises RecordsError."""
    found: dict[tuple[str, str], tuple[Mapping[str, Any], list[Sample]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            _, samples = found.setdefault((line["benchmark"], line["id"]), (line, []))
            if line["sample"] != len(samples):
                raise RecordsError(
                    f"sample {line['sample']} of question {line['id']!r} follows {len(samples)} samples",
                    where=f"{where}:{number}", expected="them in order, each once",
                    remedy="the file as the evaluation wrote it")
            if not 0.0 <= (correct := float(line["correct"])) <= 1.0:
                raise ValueError(f"correct is {correct}, outside [0, 1]")
            samples.append(
                Sample(
                    line["completion"], line["answer"], correct, line["cluster"], line["truncated"], line["num_tokens"],
                    line["seed"], line.get("ranks_by")))
        except RecordsError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise RecordsError(
                f"{type(error).__name__}: {error}", where=f"{where}:{number}",
                expected="a line that an evaluation wrote, with benchmark, id, sample, completion, answer, correct, "
                "cluster, truncated, num_tokens, seed") from None
    return [
        GradedQuestion(
            benchmark, question_id, first["question"], first["gold"], first.get("columns", {}), tuple(samples),
            first.get("timed_out_share", 0.0))
        for (benchmark, question_id), (first, samples) in found.items()]
