"""rl/questions/chat.py through PromptRenderer: arguments of chat templates, their date, and what ends a turn."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers.utils import chat_template_utils

from rl.questions.chat import PromptError
from rl.questions.prompting import PromptRenderer, PromptTokenizer, load_template
from rl.questions.run_prompt import with_day
from tests.reference.tiny_run import tiny_config
from tests.rl.questions.test_prompting import build_tokenizer, question

# What matters of Llama-3.2's template: the date, which a caller may give.
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    '{%- endif %}{{- "<|head|>Today Date: " + date_string + "<|eot|>" }}'
    '{%- for m in messages %}{{- "<|head|>" + m.role + "\\n" + m.content + "<|eot|>" }}{%- endfor %}'
    '{%- if add_generation_prompt %}{{- "<|head|>assistant\\n" }}{%- endif %}')
# Of Qwen2.5's: ChatML. Its bases name <|endoftext|> alone as their end.
CHATML = (
    "{%- for m in messages %}{{- '<|head|>' + m.role + '\\n' + m.content + '<|eot|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|head|>assistant\\n' }}{%- if enable_thinking is defined and not "
    "enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}")
NO_LAST_END = "{% for m in messages %}{{ m.content }}{% if not loop.last %}<|eot|>{% endif %}{% endfor %}"
NEXT_TURN = "{% for m in messages %}{{ '<|head|>' if m.role == 'user' else '' }}{{ m.content }}{% endfor %}"
UNMARKED = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
EOS = "{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
REFUSING = "{{ raise_exception('users only') if messages | length > 1 else messages[0].content }}"


def chat_tokenizer(chat_template: str) -> Any:
    tokenizer = build_tokenizer(chat_template)
    tokenizer.add_tokens([AddedToken("<|head|>", special=True), AddedToken("<|eot|>", special=True)])
    return tokenizer


def renderer(tokenizer: PromptTokenizer, day: datetime.date | None = None, **arguments: object) -> PromptRenderer:
    return PromptRenderer(load_template("question_line"), tokenizer, "auto", arguments, day)


def the_clock_says(year: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To templates that ask transformers for the time."""
    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
            return cls(year, 1, 2)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def test_a_template_that_prints_the_date_renders_the_same_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = renderer(chat_tokenizer(LLAMA), datetime.date(2026, 11, 28))
    assert asker.chat is not None and asker.chat.printed_day is None
    texts = []
    for year in (2026, 2031):
        the_clock_says(year, monkeypatch)
        texts.append(asker.render(question()).text)
    assert texts[0] == texts[1]
    assert texts[0].startswith("<|head|>Today Date: 28 Nov 2026<|eot|><|head|>user\n1+1=?")
    assert asker.chat.printed_day == datetime.date(2026, 11, 28)


def test_the_date_is_todays_where_none_is_given() -> None:
    today = datetime.date.today().strftime("%d %b %Y")
    assert f"Today Date: {today}" in renderer(chat_tokenizer(LLAMA)).render(question()).text


def test_a_users_date_goes_before_the_runs_day() -> None:
    asker = renderer(chat_tokenizer(LLAMA), datetime.date(2026, 11, 28), date_string="1 April 1999")
    assert "Today Date: 1 April 1999" in asker.render(question()).text
    assert asker.chat is not None and asker.chat.printed_day is None


def test_arguments_reach_the_template() -> None:
    tokenizer = chat_tokenizer(CHATML)
    assert renderer(tokenizer).render(question()).text.endswith("<|head|>assistant\n")
    assert renderer(tokenizer, enable_thinking=False).render(question()).text.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("template", "arguments", "words"),
    [
        (CHATML, {"enable_thinkng": False}, "has no enable_thinkng. Remedy: enable_thinking, if that was meant"),
        (CHATML, {"tokenize": True}, "tokenize is not the user's to set"),
        ("", {"enable_thinking": False}, "enable_thinking: there is no chat template to take it"),
    ],
)
def test_an_argument_that_nobody_reads_is_refused(template: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PromptError) as caught:
        renderer(chat_tokenizer(template), **arguments)
    assert words in str(caught.value) and str(caught.value).startswith("prompt.chat_template_kwargs: ")


def test_an_argument_of_a_kind_that_the_template_cannot_take_is_a_users_error() -> None:
    with pytest.raises(PromptError, match="the tokenizer's chat template refuses it"):
        renderer(chat_tokenizer(LLAMA), date_string=1999).render(question())


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|eot|>"), (LLAMA, "<|eot|>"), (NO_LAST_END, "<|eot|>"), (NEXT_TURN, "<|head|>"), (EOS, "<eos>"),
     (UNMARKED, None), (REFUSING, None)],
    ids=["chatml", "llama", "no-end-at-the-last", "next-turn-begins", "eos", "unmarked", "refuses"],
)
def test_what_ends_a_turn_is_read_off_the_template(template: str, end: str | None) -> None:
    tokenizer = chat_tokenizer(template)
    expected = () if end is None else (tokenizer.convert_tokens_to_ids(end),)
    assert renderer(tokenizer).turn_end_ids == expected


def test_plain_text_has_no_turns() -> None:
    assert PromptRenderer(load_template("question_line"), chat_tokenizer(CHATML), "never").turn_end_ids == ()


def test_a_new_run_has_today_and_a_named_day_stays() -> None:
    assert with_day(tiny_config(), resume=False).prompt.date == datetime.date.today()
    named = tiny_config("prompt.date=2024-07-26")
    assert with_day(named, resume=False) == named and named.prompt.date == datetime.date(2024, 7, 26)
