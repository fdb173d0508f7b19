import json
import math
from typing import Any

import pytest

from tests.reference.viewed import HOSTILE
from view.groups import Completion, Group, as_shown, from_evaluation, from_rollouts, from_samples, marked


def line(answers: list[str | None], gold: str | None, scores: list[dict[str, float]] | None = None) -> dict[str, Any]:
    labels = [index if answer is None else answers.index(answer) for index, answer in enumerate(answers)]
    return {"step": 2, "question_id": "q", "question": "1+1=?", "answer": gold, "prompt": "1+1=?\n", "refused": None,
            "normalised_entropy": 0.5, "completions": [
                {"text": f"\\boxed{{{answer}}}", "answer": answer, "cluster": label, "reward": 0.0,
                 "scores": scores[index] if scores else {}, "advantage": None, "num_tokens": 3, "finish_reason": "stop",
                 "policy_version": 0} for index, (answer, label) in enumerate(zip(answers, labels, strict=True))]}


def test_right_is_what_the_reward_accuracy_said_before_what_is_compared_here() -> None:
    group = from_rollouts(line(["2", "3"], "2", [{"accuracy": 0.0}, {"accuracy": 1.0}]))
    assert [one.correct for one in group.completions] == [0.0, 1.0]


def test_without_that_reward_answers_are_compared_by_the_projects_own_rules_or_not_known() -> None:
    group = from_rollouts(line(["1/2", "0.5", "3", None, "\\int_0^1 x\\,dx"], "The answer is \\boxed{0.50}"))
    assert [one.correct for one in group.completions] == [1.0, 1.0, 0.0, 0.0, None]
    assert [one.correct for one in from_rollouts(line(["2", None], None)).completions] == [None, None]


@pytest.mark.parametrize(("answers", "majority", "is_right"), [
    (["2", "2", "3"], "2", True), (["3", "3", "2"], "3", False), (["2", "3"], None, None), ([None, None], None, None)])
def test_the_majority_is_the_one_largest_cluster_of_answers(
    answers: list[str | None], majority: str | None, is_right: bool | None
) -> None:
    shown = as_shown(from_rollouts(line(answers, "2")))
    assert (shown["majority"], shown["majority_is_right"]) == (majority, is_right)


@pytest.mark.parametrize(("text", "answer", "parts"), [
    ("so \\boxed{12} it is", "12", ("so \\boxed{", "12", "} it is")),
    ("12 is not it\n#### 7", "7", ("12 is not it\n#### ", "7", "")),
    ("the answer is 3/4.", "3/4", ("the answer is ", "3/4.", "")),
    ("12 and then 12 again", "12", ("12 and then ", "12", " again")),
    ("nothing here", "5", ("nothing here", "", "")),
    ("nothing", None, ("nothing", "", "")),
])
def test_the_answer_is_marked_where_it_stands(text: str, answer: str | None, parts: tuple[str, str, str]) -> None:
    assert marked(text, answer) == parts


def test_the_parts_of_a_hostile_text_join_to_the_text() -> None:
    assert "".join(marked(HOSTILE, "7")) == HOSTILE
    assert marked(HOSTILE, "7")[1] == "7"


def test_an_evaluations_entropy_is_that_of_its_clusters() -> None:
    lines = [{"benchmark": "b", "id": "q", "sample": index, "question": "?", "gold": "1", "completion": "1",
              "answer": "1", "correct": 1.0, "cluster": cluster, "truncated": False, "num_tokens": 1, "seed": 0}
             for index, cluster in enumerate([0, 0, 1, 1])]
    assert from_evaluation(lines).normalised_entropy == pytest.approx(math.log(2) / math.log(4))


def test_rejection_samplings_lines_are_groups() -> None:
    sample = {
        "id": "q", "question": "1+1=?", "gold": "2", "normalised_entropy": None, "judged": False, "completions": [{
            "text": "\\boxed{2}", "num_tokens": 4, "truncated": True, "seed": 1, "reward": 1.0,
            "scores": {"accuracy": 1.0}, "answer": "2", "cluster": 0, "exact": True}]}
    assert from_samples(json.loads(json.dumps(sample)), 3) == Group(
        3, "q", "1+1=?", "2", (Completion("\\boxed{2}", "2", 0, 1.0, True, 4, 1.0, {"accuracy": 1.0}),), 0.0,
        refused="skipped")
