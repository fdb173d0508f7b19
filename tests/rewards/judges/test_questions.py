"""The judge's prompt and the reading of its reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.judges.questions import JudgePrompt, read_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Yes", True), ("yes", True), (" YES.\n", True), ("**Yes**", True), ("Yes, both name Paris.", True),
        ("Yes - the same", True), ("Yes\n\nThey agree", True), ('"No"', False), ("No.", False),
        ("no, they differ", False), ("No: 5 is not 6", False), ("<think>Hm, no. yes?</think>\n\nYes", True),
        ("<think>\nno", None), ("No doubt they agree", None), ("Yes and no", None), ("No, wait, yes", None),
        ("Yes, no difference", None), ("Maybe", None), ("", None), ("   ", None), ("The answer is yes", None),
        ("Yesterday", None), ("Nope", None), ("no'", None), (r"\boxed{Yes}", None), ("1", None), ("Ja", None),
        ("\x00", None),
    ],
)
def test_only_a_bare_yes_or_no_is_a_verdict(reply: str, verdict: bool | None) -> None:
    assert read_verdict(reply) is verdict


@given(st.text())
def test_a_reply_without_either_word_is_never_a_verdict(reply: str) -> None:
    if "yes" not in reply.lower() and "no" not in reply.lower():
        assert read_verdict(reply) is None


def test_the_prompt_holds_question_and_answers_in_the_given_order() -> None:
    text = JudgePrompt().fill("Who {{ wrote }} it?", ("Ada {% if %}", "Bob"))
    assert (
        text.index("Who {{ wrote }} it?") < text.index("Ada {% if %}") < text.index("Bob")
    ), "texts are filled in, not rendered"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("Same? {{ first }}", "does not use"),
        ("{{ first }} {{ second }} {{ querstion }}", "'querstion' is undefined.*question, first"),
        ("{{ first }} {% if %}", "judge_prompt: "),
        ("{{ first }} {{ second }} {{ first.__class__.__mro__ }}", "judge_prompt: "),
    ],
)
def test_a_prompt_that_cannot_work_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgePrompt(source)
