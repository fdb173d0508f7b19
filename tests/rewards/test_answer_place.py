"""Where the final answer stands, by the rule that found it."""

from __future__ import annotations

import time

import pytest

from rewards.answer_place import answer_place
from rewards.extraction import Extraction, extract


@pytest.mark.parametrize(
    ("completion", "opening", "answer"),
    [
        (r"so \boxed{7}.", r"\boxed{", "7"),
        (r"\boxed{1} no, \boxed{ \frac{1}{2} } ok", r"\boxed{ ", r"\frac{1}{2} "),
        (r"\boxed{\{1, 2\}}", r"\boxed{", r"\{1, 2\}"),
        (r"\boxed 7 apples", r"\boxed ", "7"),
        (r"\boxed 7", r"\boxed ", "7"),
        ("3+4\n#### 7\nmore", "#### ", "7"),
        ("#### 7", "#### ", "7"),
        ("<answer>\n7 </answer> x", "<answer>\n", "7 "),
        ("The answer is 7. So\n8", "answer is ", "7. So"),
        ("答案是 7。", "答案是 ", "7。"),
    ],
)
def test_the_answer_as_written(completion: str, opening: str, answer: str) -> None:
    place = answer_place(completion, extract(completion))
    assert place is not None
    assert (completion[place.opening:place.start], completion[place.start:place.end]) == (opening, answer)


def test_without_a_container_it_is_the_last_place_of_the_answer() -> None:
    text = "7 or 8 or 7 apples"
    place = answer_place(text, extract(text, last_number=True))
    assert place is not None and (place.opening, place.start, place.end) == (10, 10, 11)
    assert answer_place("seven", Extraction("7", "last_number")) is None


@pytest.mark.parametrize("text", ["none", "", r"\boxed{7"])
def test_no_answer_has_no_place(text: str) -> None:
    assert answer_place(text, extract(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{" * 150_000,
        "{" * 1_000_000,
        "<answer>" * 100_000,
        "answer is " * 100_000,
        "####" * 200_000,
        "\\boxed{}" * 100_000,
    ],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.process_time()
    for rule in ("boxed", "answer_tag", "phrase", "hash", "last_number"):
        answer_place(text, Extraction("7", rule))
    assert time.process_time() - started < 5.0


@pytest.mark.parametrize(
    ("completion", "before"),
    [
        ("The final answer should be 7", "The final "), ("so the correct option is (B).", "so the "), ("故选：C", ""),
        ("最终答案应该是 5", "最终"),
    ],
)
def test_every_phrase_of_extraction_is_an_opening(completion: str, before: str) -> None:
    place = answer_place(completion, extract(completion))
    assert place is not None
    assert completion[:place.opening] == before
    assert completion[place.start:place.end].rstrip(".") == extract(completion).answer
