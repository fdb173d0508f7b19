"""Turns a Question into a Prompt: a template of prompts/ through the tokenizer's chat template, or as plain text.

A template is a YAML file with: description; user (Jinja, with `question`, the row's other columns and
`uses_chat_template`); optionally system (Jinja too), few_shot (examples with question and answer) and assistant_prefix
(the beginning of the answer). To add one, write a file into prompts/, or anywhere and give its path. Imports no torch.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.sandbox
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewards.errors import Problem, named
from rl.config import PromptSection
from rl.configuration.problems import closest, seen
from rl.configuration.yaml_text import read_mapping
from rl.errors import ConfigError
from rl.paths import project_root, resolve_path
from rl.questions.chat import REFUSALS, ChatTemplate, Message, PromptError, PromptTokenizer
from rl.records import Prompt, Question

ChatTemplateMode = Literal["auto", "always", "never"]


_EXPECTED = {
    "description": "what the template is for, as text", "user": "what the user says, as text with {{ question }}",
    "few_shot": "a list, each entry with question and answer", "stop_strings": "a list of texts",
    "needs_chat_template": "true or false"}


class Example(BaseModel):
    """One worked example of a few-shot template."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class PromptTemplate(BaseModel):
    """A template as its file has it; `name` is the file's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = Field(min_length=1)
    user: str = Field(min_length=1)
    system: str | None = None
    assistant_prefix: str = ""
    few_shot: tuple[Example, ...] = ()
    stop_strings: tuple[str, ...] = ()
    needs_chat_template: bool = False


def template_names() -> list[str]:
    """The templates that come with the project."""
    return sorted(path.stem for path in (project_root() / "prompts").glob("*.yaml"))


def load_template(name: str) -> PromptTemplate:
    """The template of this name in prompts/, or of this path if it ends in .yaml or .yml. Raises: PromptError."""
    if name.endswith((".yaml", ".yml")):
        path = resolve_path(name)
    else:
        path = project_root() / "prompts" / f"{name}.yaml"
        if name not in template_names():
            near = closest(name, template_names())
            raise PromptError(
                f"{named('prompt.template')}: no template {name!r}{f'; did you mean {near}?' if near else '.'} "
                f"There are: {', '.join(template_names())}, or give the path of a YAML file")
    try:
        return PromptTemplate.model_validate({**read_mapping(path), "name": Path(name).stem})
    except ConfigError as error:
        raise PromptError(f"{named('prompt.template')}: {error}") from None
    except ValidationError as error:
        raise PromptError(*_problems(path, error)) from None


def _problems(path: Path, error: ValidationError) -> list[Problem]:
    """One for each key that is wrong; that a key is missing is not said where another one looks like it."""
    found, meant = [], set()
    for item in sorted(error.errors(include_url=False), key=lambda item: item["type"] == "missing"):
        *before, name = map(str, item["loc"])
        model = Example if before else PromptTemplate
        known = [key for key in model.model_fields if key != "name"]
        near = closest(name, known)
        where = f"{path}: {named('.'.join([*before, name]))}"
        if item["type"] == "extra_forbidden":
            meant |= {near}
            hint = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
            found.append(Problem(f"unknown key; {hint}", where))
        elif item["type"] != "missing":
            found.append(Problem("", where, seen(item["input"]), _EXPECTED.get(name, "text")))
        elif name not in meant:
            found.append(Problem("missing", where, expected=_EXPECTED.get(name, "text")))
    return found


class PromptRenderer:
    """Renders questions with one template and one tokenizer.

    With the chat template: system, the examples as turns, the user's turn, the generation prompt
    (add_generation_prompt=True), then the assistant prefix as text, unless the chat template itself ends with it.
    (continue_final_message would need the prefix to survive the chat template, and those of reasoning models strip it.)
    The text is encoded without special tokens: it has them already. As plain text: system, examples and user text one
    after the other, blank lines between, then the assistant prefix on a line of its own; the tokenizer adds its own
    special tokens, of which an end-of-sequence token at the end is taken off."""

    def __init__(
        self, template: PromptTemplate, tokenizer: PromptTokenizer, chat_template: ChatTemplateMode = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None, day: datetime.date | None = None,
    ) -> None:
        """day: that a chat template which prints one is given; None: today."""
        has_chat_template = bool(getattr(tokenizer, "chat_template", None))
        if chat_template == "always" and not has_chat_template:
            raise PromptError(
                "the tokenizer has no chat template", where=named("prompt.chat_template"), seen="always",
                remedy=f"{named('prompt.chat_template', 'auto')} or {named('prompt.chat_template', 'never')}")
        self.template = template
        self.tokenizer = tokenizer
        is_plain = not has_chat_template or chat_template == "never"
        if is_plain and chat_template_kwargs:
            raise PromptError(
                f"{', '.join(chat_template_kwargs)}: there is no chat template to take it, prompts are plain text",
                where=named("prompt.chat_template_kwargs"),
                remedy=f"leave it out, or {named('prompt.chat_template', 'auto')} with a tokenizer that has one")
        self.chat = None if is_plain else ChatTemplate(tokenizer, chat_template_kwargs or {}, day)
        # Sandboxed: a template may come from somebody else. StrictUndefined: a misspelt variable must not become an
        # empty text.
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        self._user = self._compile(environment, template.user, "user")
        self._system = self._compile(environment, template.system, "system") if template.system else None

    @property
    def uses_chat_template(self) -> bool:
        return self.chat is not None

    @property
    def turn_end_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn, and so a completion; () in plain text."""
        return () if self.chat is None else self.chat.turn_end_ids

    def render(self, question: Question, before: Sequence[Message] = ()) -> Prompt:
        """before: messages that precede the question in its conversation; a system message among them takes the place
        of the template's.

        Raises: PromptError if the question lacks a variable of the template, or the chat template refuses the
        conversation."""
        if before and not self.uses_chat_template:
            raise PromptError(
                f"{len(before)} messages precede it, which only a chat template can render",
                where=f"question {question.id}",
                remedy=f"{named('prompt.chat_template', 'auto')} with a tokenizer that has one, or single questions")
        text = self._plain_text(question) if self.chat is None else self._chat_text(self.chat, question, before)
        token_ids = self.encode(text)
        if not token_ids:
            raise PromptError(
                f"question {question.id}: the prompt {text!r} has no tokens; check template {self.template.name}")
        return Prompt(question, text, tuple(token_ids), self.template.assistant_prefix)

    def _compile(self, environment: jinja2.Environment, source: str, key: str) -> jinja2.Template:
        try:
            return environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(f"template {self.template.name}: {key}: line {error.lineno}: {error.message}") from None

    def _fill(self, template: jinja2.Template, question: Question, text: str) -> str:
        variables = {**question.columns, "question": text, "uses_chat_template": self.uses_chat_template}
        try:
            return template.render(variables)
        except jinja2.UndefinedError as error:
            raise PromptError(f"template {self.template.name}: {error.message} in question {question.id}; "
                              f"the variables are: {', '.join(variables)}") from None
        except (jinja2.TemplateError, TypeError) as error:
            raise PromptError(f"template {self.template.name}: {error} in question {question.id}") from None

    def _chat_text(self, chat: ChatTemplate, question: Question, before: Sequence[Message]) -> str:
        own_system = [message for message in before if message["role"] == "system"]
        messages = list(own_system)
        if self._system and not own_system:
            messages = [{"role": "system", "content": self._fill(self._system, question, question.text)}]
        for example in self.template.few_shot:
            messages.append({"role": "user", "content": self._fill(self._user, question, example.question)})
            messages.append({"role": "assistant", "content": example.answer})
        messages += [message for message in before if message["role"] != "system"]
        messages.append({"role": "user", "content": self._fill(self._user, question, question.text)})
        try:
            text = chat.render(messages, add_generation_prompt=True)
        except REFUSALS as error:
            raise PromptError(
                f"template {self.template.name}: the tokenizer's chat template refuses it ({error}); use a "
                f"template without a system text, or {named('prompt.chat_template', 'never')}") from None
        prefix = self.template.assistant_prefix
        return text if prefix and text.rstrip().endswith(prefix.strip()) else text + prefix

    def _plain_text(self, question: Question) -> str:
        parts = [self._fill(self._system, question, question.text)] if self._system else []
        for example in self.template.few_shot:
            asked = self._fill(self._user, question, example.question)
            parts.append(asked + ("" if asked[-1:].isspace() else " ") + example.answer)
        text = "\n\n".join([part.rstrip("\n") for part in parts] + [self._fill(self._user, question, question.text)])
        prefix = self.template.assistant_prefix
        return text + ("\n" if prefix and not text[-1:].isspace() else "") + prefix

    def encode(self, text: str) -> list[int]:
        """A prompt's text, or that of a prompt and what follows it, as the ids that the model reads."""
        bare: list[int] = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.uses_chat_template:
            return bare
        token_ids: list[int] = list(self.tokenizer(text, add_special_tokens=True)["input_ids"])
        # Some tokenizers close every text with an end-of-sequence token: nothing could be sampled after it.
        closes = bool(token_ids) and token_ids[-1] == self.tokenizer.eos_token_id and bare[-1:] != token_ids[-1:]
        return token_ids[:-1] if closes else token_ids


def make_renderer(prompt: PromptSection, tokenizer: PromptTokenizer) -> PromptRenderer:
    """As configured. Raises PromptError."""
    return PromptRenderer(
        load_template(prompt.template), tokenizer, prompt.chat_template, prompt.chat_template_kwargs, prompt.date)


def warn_of_plain_text(renderer: PromptRenderer) -> None:
    """Warns where a template that was made for a chat template is rendered without one."""
    template = renderer.template
    if template.needs_chat_template and not renderer.uses_chat_template:
        warnings.warn(
            f"prompt.template: {template.name} was made for a chat template and is rendered as plain text. Remedy: "
            "prompt.chat_template=auto with a tokenizer that has one, or another template such as boxed", stacklevel=3)


def render_prompts(
    questions: Sequence[Question], renderer: PromptRenderer, max_prompt_tokens: int,
) -> tuple[tuple[Prompt, ...], int]:
    """The prompts of at most max_prompt_tokens tokens, in order, and how many longer ones were dropped.

    Raises: PromptError if all were dropped."""
    rendered = [renderer.render(question) for question in questions]
    prompts = tuple(prompt for prompt in rendered if len(prompt.token_ids) <= max_prompt_tokens)
    if rendered and not prompts:
        shortest = min(len(prompt.token_ids) for prompt in rendered)
        raise PromptError(
            f"all {len(rendered)} prompts are longer than {named('data.max_prompt_tokens', max_prompt_tokens)} (the "
            f"shortest has {shortest} tokens)",
            remedy=f"a higher {named('data.max_prompt_tokens')}, or a shorter template than {renderer.template.name}")
    return prompts, len(rendered) - len(prompts)
