"""Pays for written work: more lines than the group's median, as long as there is a final answer."""

from statistics import median

from rewards import GroupScore
from rewards.extraction import extract_answers


def show_work(*, completions, bonus=1.0, **columns):
    """`bonus` for an answered completion with at least as many lines as the group's median, otherwise 0."""
    lengths = [text.strip().count("\n") + 1 for text in completions]
    middle = median(lengths)
    answers = extract_answers(completions)
    scores = [bonus if answer is not None and length >= middle else 0.0
              for answer, length in zip(answers, lengths, strict=True)]
    return GroupScore(scores, metrics={"median_lines": float(middle)})
