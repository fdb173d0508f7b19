"""What a probe's changes are, and what is said of them, on hand-made questions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from eval.probe import Probe, agreement, answered, compare, render
from eval.records import GradedQuestion, Sample
from rl.runs.summary import Summary

SUMMARY = Summary(5, "completed", None, None, None, None, 1.0, 1.0, 100, 0, {})


def question(answers: str) -> GradedQuestion:
    """A letter is a completion's answer, `-` is none, `r` the right one."""
    samples = tuple(
        Sample(letter, None if letter == "-" else letter, float(letter == "r"),
               1000 + place if letter == "-" else ord(letter), False) for place, letter in enumerate(answers))
    return GradedQuestion("made", "id", "question", "r", {}, samples)


def probe(before: str, after: str, times: int = 20, labelled: bool = True) -> Probe:
    made = [[question(answers)] * times for answers in (before, after)]
    first, second = ([questions, []] if labelled else [[], questions] for questions in made)
    return compare(first, second, SUMMARY, None)


def test_agreement_is_the_largest_clusters_share_and_no_answer_agrees_with_nothing() -> None:
    assert [agreement(question(answers)) for answers in ("rrab", "aabb", "--a-", "----")] == [0.5, 0.5, 0.25, 0.0]
    assert [answered(question(answers)) for answers in ("rrab", "--a-")] == [1.0, 0.25]


def test_differences_are_paired_by_question() -> None:
    """Two questions far apart that change alike: the means are uncertain, their difference is not."""
    before, after = [question("rrrb"), question("abcd")], [question("rrrr"), question("rbcd")]
    found = compare([before, []], [after, []], SUMMARY, "runs/probe")
    assert found.accuracy is not None and found.accuracy.before.value == 0.375 and found.accuracy.after.value == 0.625
    assert (found.accuracy.difference.low, found.accuracy.difference.high) == (0.25, 0.25)
    assert found.accuracy.direction == 1 and found.accuracy.before.low < found.accuracy.before.high
    assert found.entropy.direction == -1 or found.entropy.difference.value < 0
    assert found.run == "runs/probe" and "  run: runs/probe" in render(found)


def test_questions_without_an_answer_count_for_all_but_accuracy() -> None:
    found = compare([[question("rrab")], [question("abcd")]], [[question("rrab")], [question("aaaa")]], SUMMARY, None)
    assert found.accuracy is not None and found.accuracy.difference.value == 0.0
    assert found.agreement.difference.value == pytest.approx(0.375)


@pytest.mark.parametrize(("before", "after", "labelled", "begins"), [
    ("rrab", "rrrb", True, "Accuracy rose"),
    ("rrab", "aaab", True, "Accuracy fell"),
    ("rabc", "raab", True, "Answers agree more, and accuracy changed no more than chance"),
    ("rabc", "rabc", True, "Answers agree no more than before"),
    ("rrab", "aabr", True, "Accuracy fell"),
    ("rabc", "raab", False, "Answers agree more than before; whether they are right"),
    ("rabc", "rabc", False, "Answers agree no more than before"),
    ("rrab", "rrr-", True, "Fewer completions state an answer"),
])
def test_what_is_said_follows_from_what_changed(before: str, after: str, labelled: bool, begins: str) -> None:
    found = probe(before, after, labelled=labelled)
    assert found.verdict.startswith(begins) and f"  {found.verdict}." in render(found)
    assert (found.accuracy is None) == (not labelled) == ("accuracy" not in "".join(render(found)[:-1]))


def test_a_run_that_was_stopped_says_so() -> None:
    stopped = replace(probe("rrab", "rrrb"), stop_reason="watchdog", message="no completion has an answer")
    assert render(stopped)[0] == "probe: 5 steps on other questions; stopped: no completion has an answer"
