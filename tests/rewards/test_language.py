"""Language consistency by hand: what counts as a letter, whose script is wanted, and that hostile text costs linear
time."""

from __future__ import annotations

import time

import pytest

from rewards.language import count_scripts, language_consistency


def share(question: str, completion: str, script: str | None = None) -> float:
    (score,) = language_consistency(question=question, completions=[completion], script=script).scores
    assert score is not None
    return score


@pytest.mark.parametrize(("question", "completion", "expected"), [
    ("How many are left?", "There are four.", 1.0),
    ("How many are left?", "有四个 ab", 2 / 5),
    ("How many are left?", "Осталось four", 4 / 12),
    ("还剩多少个？", "还剩四个。", 1.0),
    ("还剩多少个？", "设 x 为剩下的个数,x=4", 1.0),  # a variable is no English
    ("还剩多少个？", r"\text{四} $x + ab = cd$ \(ef\) \[gh\] $$ij$$ \frac{1}{2}", 1.0),
    ("还剩多少个？", "<think>想</think><answer>四</answer>", 1.0),
    ("残りはいくつですか", "残りは四つです", 1.0),  # kana and han together
    ("残りはいくつですか", "ab残り", 0.5),
    ("몇 개가 남았습니까?", "네 개 two", 2 / 5),
    ("كم بقي؟", "بقي أربعة", 1.0),
    ("Сколько осталось?", "four", 0.0),
    ("How many are left?", "ｆｏｕｒ", 1.0),  # full width
    ("How many are left?", r"3+4=7 \boxed{7}", 1.0),  # no letters
    ("How many are left?", "", 1.0),
    ("3+4=?", "四 four", 1.0),  # nothing says which script is wanted
    ("Wie viele Äpfel?", "Vier Äpfel", 1.0),
])
def test_share_of_the_letters_in_the_questions_script(question: str, completion: str, expected: float) -> None:
    assert share(question, completion) == pytest.approx(expected)


def test_the_wanted_script_can_be_named() -> None:
    assert share("How many?", "四个 ab", "han") == 0.5
    assert share("3+4=?", "ab cd", "cyrillic") == 0.0
    assert share("3+4=?", "四つ", "kana") == 1.0
    with pytest.raises(ValueError, match="script is 'english', expected one of latin"):
        share("How many?", "four", "english")


def test_the_questions_mathematics_does_not_choose_its_script() -> None:
    assert share(r"求 $f(x) = \sin(abc) + defgh$ 的值", "值") == 1.0


def test_letters_of_scripts_without_a_name_count_as_other() -> None:
    assert count_scripts("ab ᚠᚢ") == {"latin": 2, "other": 2}


def test_a_letter_beside_an_accented_one_is_no_variable() -> None:
    assert count_scripts("été") == {"latin": 3}
    assert count_scripts("x é α y2") == {}


def test_an_opening_that_is_never_closed_opens_nothing() -> None:
    assert count_scripts("ab $ cd") == {"latin": 4}
    assert count_scripts(r"\( ab \[cd\] ef") == {"latin": 4}


@pytest.mark.parametrize(
    "text",
    [
        "\\(" * 400_000,
        "$" * 1_000_001,
        "\\[\\(" * 200_000,
        "x" * 1_000_000,
        "\\begin{" * 100_000,
        "<" * 500_000,
        "\\" * 1_000_000,
        "é" * 500_000,
    ],
)
def test_hostile_text_takes_linear_time(text: str) -> None:
    started = time.process_time()
    assert 0.0 <= share("How many?", text) <= 1.0
    assert time.process_time() - started < 5.0
