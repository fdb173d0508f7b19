"""A tokenizer's chat template with its settings: a conversation as text, and the token that ends an assistant's turn.

A template that prints the date asks for it by `strftime_now`, a global that transformers gives it. A keyword argument
of that name goes before the global, and answers with the day given here: the prompts are the same tomorrow. Imports no
torch.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import jinja2

from rewards.errors import UserError, named
from rl.configuration.problems import closest

Message: TypeAlias = "dict[str, str]"
"""One message of a conversation: role and content."""

REFUSALS = (jinja2.TemplateError, TypeError)
"""What a chat template raises for a conversation, or for arguments, that it was not made for."""

_OURS = ("conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "strftime_now")
"""Arguments of apply_chat_template that are not the user's."""
_OF_TRANSFORMERS = ("tools", "documents", "chat_template")
"""Arguments that it takes whatever the template's text; chat_template chooses among several templates by name."""


class PromptError(UserError):
    """A template does not exist, is malformed, or does not fit the tokenizer or a question."""


class PromptTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token_id: Any

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]: ...

    def __call__(self, text: str, *, add_special_tokens: bool) -> Mapping[str, Any]: ...

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **kwargs: Any
    ) -> Any: ...


class ChatTemplate:
    """printed_day: the day that the template has been given, once it has asked for it."""

    def __init__(
        self, tokenizer: PromptTokenizer, arguments: Mapping[str, Any], day: datetime.date | None = None
    ) -> None:
        """arguments: keyword arguments of the template. day: that it prints, today where left out. Raises PromptError
        where the template knows no such argument."""
        self._tokenizer = tokenizer
        self._day = day or datetime.date.today()
        self.printed_day: datetime.date | None = None
        _check(arguments, str(tokenizer.chat_template))
        self._arguments: dict[str, Any] = {"strftime_now": self._strftime_now, **arguments}

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Raises one of REFUSALS."""
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **self._arguments)
        return text

    @cached_property
    def turn_end_ids(self) -> tuple[int, ...]:
        """The added token (<|im_end|>, <|eot_id|>) that the template writes directly behind an assistant's message:
        where the conversation ends with it, else where the next turn follows. () where there is none."""
        asked, answered = {"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": "otherhalf"}
        controls = {str(token): index for index, token in self._tokenizer.added_tokens_decoder.items()}
        for messages in ([asked, answered], [asked, answered, asked]):
            try:
                text = self.render(messages, add_generation_prompt=False)
            except REFUSALS:
                continue
            _, is_there, behind = text.rpartition(answered["content"])
            if found := [text for text in controls if is_there and text.strip() and behind.lstrip().startswith(text)]:
                return (controls[max(found, key=len)],)
        return ()

    def _strftime_now(self, form: str) -> str:
        self.printed_day = self._day
        return datetime.datetime.combine(self._day, datetime.time()).strftime(form)


def _check(arguments: Mapping[str, Any], template: str) -> None:
    for name in arguments:
        where = named("prompt.chat_template_kwargs")
        if name in _OURS:
            raise PromptError(f"{name} is not the user's to set", where=where, remedy="leave it out")
        if name not in _OF_TRANSFORMERS and not re.search(rf"\b{re.escape(name)}\b", template):
            near = closest(name, sorted(set(re.findall(r"[A-Za-z_]\w+", template))))
            raise PromptError(f"the tokenizer's chat template has no {name}", where=where,
                              remedy=f"{near}, if that was meant" if near else "leave it out")
