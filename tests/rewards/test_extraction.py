"""Which part of a completion is its answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.extraction import Extraction, extract


@pytest.mark.parametrize(("text", "answer", "rule"), [
    (r"so \boxed{5}", "5", "boxed"),
    (r"first \boxed{4}, then \boxed{\frac{1}{2}}.", r"\frac{1}{2}", "boxed"),
    (r"\fbox{7} units", "7", "boxed"),
    (r"\boxed 5 done", "5", "boxed"),
    (r"$\boxed 12$.", "12", "boxed"),
    (r"\boxed{\boxed{9}}", "9", "boxed"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}", "boxed"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right.", "boxed"),
    (r"stray { brace \boxed{3}", "3", "boxed"),
    (r"$\boxed{2}$ and $\boxed{3}$", "2, 3", "boxed"),
    (r"\boxed{2}, \boxed{2}", "2", "boxed"),
    ("work\n#### 1,234\n", "1,234", "hash"),
    ("<think>a</think><answer> 12 </answer>", "12", "answer_tag"),
    ("The final answer is 42. I hope so.", "42", "phrase"),
    ("The answer is: $3.5$", "$3.5$", "phrase"),
    ("Answer: 7\nmore", "7", "phrase"),
    ("A: 3\nB: 4\nso\nA: 12\n", "12", "phrase"),
    ("答案是 5。", "5", "phrase"),
    (r"#### 3 but \boxed{4}", "4", "boxed"),
])
def test_each_rule_finds_its_answer(text: str, answer: str, rule: str) -> None:
    assert extract(text) == Extraction(answer, rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "no answer here, only 12", r"\boxed{}", r"\boxed{ }", "####", "<answer></answer>"])
def test_nothing_found_is_none_and_no_empty_string(text: str) -> None:
    assert extract(text).answer is None


@pytest.mark.parametrize("text", [r"the answer is \boxed{12", r"\boxed{5} no wait \boxed{6", r"\boxed{ {5 }", r"#### 3 \boxed{"])
def test_an_unclosed_last_box_finds_nothing(text: str) -> None:
    assert extract(text).answer is None


def test_the_last_number_counts_only_on_request() -> None:
    text = "there are 3 of 1,250 left"
    assert extract(text).answer is None
    assert extract(text, last_number=True) == Extraction("1,250", "last_number")
    assert extract("it is -3/4", last_number=True).answer == "-3/4"


@pytest.mark.parametrize("piece",
                         ["\\boxed{", "{", "}", "\\boxed", "\\boxed ", " ", "answer is", "answer ", "####", "<answer>", "1,", "9",
                                   "\\boxed{1},", "</answer>"])
def test_time_is_linear_for_hostile_repetition(piece: str) -> None:
    start = time.perf_counter()
    extract(piece * (400_000 // len(piece)), last_number=True)
    assert time.perf_counter() - start < 3.0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["\\boxed", "\\fbox{", "{", "}", "\\", "$", "####", "<answer>", "</answer>", "the answer is",
                                 "1", ",", " ",
                                 "\n", "x", "\x00", "\u202e", "."]), max_size=25).map("".join) | st.text(max_size=40))
def test_extraction_never_raises_and_never_gives_an_empty_answer(text: str) -> None:
    found = extract(text, last_number=True)
    assert found.answer is None or found.answer.strip() == found.answer != ""
