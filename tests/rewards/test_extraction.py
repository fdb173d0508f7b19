"""Which part of a completion is its answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.extraction import Extraction, bare_answer, extract, extract_all, rule_shares


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
    ("因此，最终答案为：５", "５", "phrase"),
    ("故选：C", "C", "phrase"),
    ("The correct option is (B).", "(B)", "phrase"),
    ("Therefore the answer to the question is $\\frac{1}{2}$ cm.", "$\\frac{1}{2}$ cm", "phrase"),
    ("**Final Answer**\n42", "42", "phrase"),
    ("Answer: The probability is 3/4.", "3/4", "phrase"),
    ("The answer is 5 because 2+3=5.", "5", "phrase"),
    ("The answer is\n\\[ x = 5. \\]\nDone", "\\[ x = 5. \\]", "phrase"),
    ("The answers are 3 and 4.", "3 and 4", "phrase"),
    ("The answer should be 7", "7", "phrase"),
    ("<|im_start|>assistant\nthe answer is 5<|im_end|>\n<|im_start|>user\nthe answer is 6", "5", "phrase"),
    (r"\boxed{\text{The answer is } 5}", "5", "boxed"),
    (r"\boxed{\text{neither even nor odd}}", r"\text{neither even nor odd}", "boxed"),
    (r"$y_1 = \boxed{2x}$ and $y_2 = \boxed{3x}$", "2x, 3x", "boxed"),
    (r"\boxed{5} or \boxed{6}", "5, 6", "boxed"),
    (r"#### 3 but \boxed{4}", "4", "boxed"),
])
def test_each_rule_finds_its_answer(text: str, answer: str, rule: str) -> None:
    assert extract(text) == Extraction(answer, rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"), (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("Therefore, the probability that she wins is 2/3. I hope it is correct.", "2/3"),
        ("Thus $x <= 2$ is our answer.", "$x <= 2$"), ("I counted 12 apples on the tree", "12"),
        ("D. None of the above", "D. None of the above"), ("the number is not 10 which is 1,000.99€", "1,000.99€"),
        ("two circles", "two circles"), ("", None), ("  ", None),
    ],
)
def test_a_bare_answer_is_itself_or_what_its_last_sentence_states(text: str, answer: str | None) -> None:
    assert bare_answer(text) == answer


def test_shares_of_rules_count_every_completion_once() -> None:
    shares = rule_shares(extract_all([r"\boxed{1}", "the answer is 2", "nothing", r"\boxed{3}"]))
    assert shares["extracted_by/boxed"] == 0.5
    assert shares["extracted_by/phrase"] == shares["extracted_by/none"] == 0.25
    assert sum(shares.values()) == 1.0


@pytest.mark.parametrize(
    "text", ["", "no answer here, only 12", r"\boxed{}", r"\boxed{ }", "####", "<answer></answer>"]
)
def test_nothing_found_is_none_and_no_empty_string(text: str) -> None:
    assert extract(text).answer is None


@pytest.mark.parametrize(
    "text", [r"the answer is \boxed{12", r"\boxed{5} no wait \boxed{6", r"\boxed{ {5 }", r"#### 3 \boxed{"]
)
def test_an_unclosed_last_box_finds_nothing(text: str) -> None:
    assert extract(text).answer is None


def test_the_last_number_counts_only_on_request() -> None:
    text = "there are 3 of 1,250 left"
    assert extract(text).answer is None
    assert extract(text, last_number=True) == Extraction("1,250", "last_number")
    assert extract("it is -3/4", last_number=True).answer == "-3/4"


@pytest.mark.parametrize(
    "piece",
    [
        "\\boxed{",
        "{",
        "}",
        "\\boxed",
        "\\boxed ",
        " ",
        "answer is",
        "answer ",
        "####",
        "<answer>",
        "1,",
        "9",
        "\\boxed{1},",
        "</answer>",
        "\\[",
        "\\(",
        "$$",
        "answer to ",
        "the answer to x ",
        "答案",
        "故选",
        " is",
        "<|im_end|>",
        "\n",
        ". ",
        "\\text{",
        " because",
    ],
)
def test_time_is_linear_for_hostile_repetition(piece: str) -> None:
    start = time.perf_counter()
    extract(piece * (400_000 // len(piece)), last_number=True)
    bare_answer(piece * (400_000 // len(piece)))
    extract("the answer is " + piece * (400_000 // len(piece)))
    assert time.perf_counter() - start < 3.0


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                "\\boxed",
                "\\fbox{",
                "{",
                "}",
                "\\",
                "$",
                "####",
                "<answer>",
                "</answer>",
                "the answer is",
                "1",
                ",",
                " ",
                "\n",
                "x",
                "\x00",
                "\u202e",
                ".",
            ]
        ),
        max_size=25,
    ).map("".join)
    | st.text(max_size=40)
)
def test_extraction_never_raises_and_never_gives_an_empty_answer(text: str) -> None:
    found = extract(text, last_number=True)
    assert found.answer is None or found.answer.strip() == found.answer != ""
    bare = bare_answer(text)
    assert bare is None or bare != ""
