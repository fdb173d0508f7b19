"""Lines of rollouts.jsonl, of an evaluation's completions.jsonl or of rejection sampling's chunks -> one kind of group,
and what the page lists of it.

Right or wrong is what the run itself recorded (a reward named accuracy, the grader of an evaluation). Where a question
has a gold answer and no such reward saw it, answers are compared by rewards/equivalence.py as far as no computer
algebra is needed; what remains is unknown (None), never wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from rewards.accuracy import gold_answer
from rewards.answer_place import answer_place
from rewards.answers.reading import read
from rewards.clustering import entropy_of
from rewards.equivalence import decide_now
from rewards.extraction import extract

RIGHT = 0.5  # a score above counts as right


@dataclass(frozen=True, slots=True)
class Completion:
    """correct: in [0, 1], None where that is not known. reward, scores, advantage: None or empty in an evaluation.
    tokens: texts of the sampled tokens with their natural log-probabilities, where the run recorded them."""

    text: str
    answer: str | None
    cluster: int
    correct: float | None
    truncated: bool
    num_tokens: int | None
    reward: float | None = None
    scores: Mapping[str, float] | None = None
    advantage: float | None = None
    policy_version: int | None = None
    tokens: Sequence[tuple[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one question at one step. step: 0 in an evaluation, the chunk in rejection sampling. refused:
    the reason why it did not train; trained: None where nothing trains. normalised_entropy: in [0, 1]."""

    step: int
    question_id: str
    question: str
    gold: str | None
    completions: tuple[Completion, ...]
    normalised_entropy: float
    prompt: str = ""
    benchmark: str | None = None
    refused: str | None = None
    trained: bool | None = None

    @property
    def largest(self) -> tuple[str | None, int, bool]:
        """(answer, completions, whether it is the only one of that size) of the largest cluster of answers."""
        votes = Counter(one.cluster for one in self.completions if one.answer is not None)
        if not votes:
            return None, 0, False
        size = max(votes.values())
        label = next(label for label, count in votes.items() if count == size)
        answer = next(one.answer for one in self.completions if one.cluster == label)
        return answer, size, list(votes.values()).count(size) == 1

    @property
    def majority_is_right(self) -> bool | None:
        """None without a majority, or where nothing is known of it."""
        answer, _, is_clear = self.largest
        if not is_clear:
            return None
        known = [one.correct for one in self.completions if one.answer == answer and one.correct is not None]
        return known[0] > RIGHT if known else None


def from_rollouts(line: Mapping[str, Any]) -> Group:
    """A line of rollouts.jsonl (rl/runs/tracking.py). Raises KeyError, TypeError where it is none."""
    gold = line["answer"]
    completions = []
    for item in line["completions"]:
        tokens = item.get("tokens")
        completions.append(Completion(
            item["text"], item["answer"], item["cluster"], _correct(item["scores"], item["answer"], gold),
            item["finish_reason"] == "length", item["num_tokens"], item["reward"], item["scores"], item["advantage"],
            item["policy_version"], None if tokens is None else [(text, value) for text, value in tokens]))
    return Group(
        line["step"], line["question_id"], line["question"], gold, tuple(completions), line["normalised_entropy"],
        line["prompt"], refused=line["refused"], trained=any(one.advantage is not None for one in completions))


def from_evaluation(lines: Sequence[Mapping[str, Any]]) -> Group:
    """The lines of one question of completions.jsonl (eval/records.py). Raises KeyError, TypeError."""
    first = lines[0]
    completions = tuple(
        Completion(item["completion"], item["answer"], item["cluster"], float(item["correct"]), item["truncated"],
                   item["num_tokens"]) for item in lines)
    return Group(
        0, first["id"], first["question"], first["gold"], completions,
        normalised(entropy_of([one.cluster for one in completions]), len(completions)), benchmark=first["benchmark"])


def from_samples(line: Mapping[str, Any], chunk: int) -> Group:
    """A line of samples/chunk-00000.jsonl (rl/rejection/samples.py). Raises KeyError, TypeError."""
    gold = line["gold"]
    completions = tuple(
        Completion(item["text"], item["answer"], item["cluster"], _correct(item["scores"], item["answer"], gold),
                   item["truncated"], item["num_tokens"], item["reward"], item["scores"])
        for item in line["completions"])
    return Group(chunk, line["id"], line["question"], gold, completions, line["normalised_entropy"] or 0.0,
                 refused=None if line["judged"] else "skipped")


def as_shown(group: Group) -> dict[str, Any]:
    """For the page: the group's fields, and of each completion its text in three parts, the middle one its answer."""
    fields = asdict(group)
    for one, shown in zip(group.completions, fields["completions"], strict=True):
        shown["parts"] = marked(one.text, one.answer)
        del shown["text"]
    answer, size, is_clear = group.largest
    return fields | {"majority": answer if is_clear else None, "largest": size,
                     "majority_is_right": group.majority_is_right}


def marked(text: str, answer: str | None) -> tuple[str, str, str]:
    """(before, where the answer stands as it was written, behind); the last two are empty where it stands nowhere."""
    if answer is None:
        return text, "", ""
    extraction = extract(text, last_number=True)
    place = answer_place(text, extraction) if extraction.answer == answer else None
    if place is not None:
        return text[:place.start], text[place.start:place.end], text[place.end:]
    start = text.rfind(answer)
    return (text, "", "") if start < 0 else (text[:start], answer, text[start + len(answer):])


def normalised(entropy: float, size: int) -> float:
    """H / ln n in [0, 1]; 0 for one completion."""
    return entropy / math.log(size) if size > 1 else 0.0


def _correct(scores: Mapping[str, float], answer: str | None, gold: str | None) -> float | None:
    if "accuracy" in scores:
        return scores["accuracy"]
    if gold is None:
        return None
    return 0.0 if answer is None else _equals_gold(answer, gold)


@lru_cache(maxsize=100_000)
def _equals_gold(answer: str, gold: str) -> float | None:
    if answer in (gold, gold_answer(gold)):
        return 1.0
    decided = decide_now(read(answer), read(gold_answer(gold)))
    return None if decided is None or decided.timed_out else float(decided.equal)
