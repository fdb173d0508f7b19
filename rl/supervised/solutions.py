"""Turns a file of solutions into rows of token ids: the prompt as reinforcement learning will sample from it, then the
solution and the end of sequence.

A row of the file has a question and a solution, or messages. The question goes through the same PromptRenderer as a
training run's, so that what is learnt here is what is sampled there. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from rewards.errors import named
from rl.config import DataSection
from rl.configuration.problems import closest
from rl.errors import DataError
from rl.questions.chat import Message, PromptError
from rl.questions.files import Row, as_json, check_unicode, read_rows, shown_value
from rl.questions.prompting import PromptRenderer
from rl.records import Prompt, Question
from rl.supervised.config import WarmupColumnsSection, WarmupDataSection


@dataclass(frozen=True, slots=True)
class Solution:
    """where: "file:line". before: the conversation's messages before the question. text: what the policy shall
    write."""

    where: str
    question: Question
    text: str
    before: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class SolutionRow:
    """completion_ids: the tokens that carry loss, the end of sequence included."""

    where: str
    prompt: Prompt
    completion_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prompt.token_ids) + len(self.completion_ids)


def load_solutions(data: WarmupDataSection) -> list[Solution]:
    """The rows in the file's order. One question may have several solutions.

    Raises: DataError naming file, line and field, and settings data.path, data.columns.question, ..."""
    found: list[Solution] = []
    for row in read_rows(DataSection(path=data.path, split=data.split, subset=data.subset, revision=data.revision)):
        found.append(_solution(row, data.columns))
        if len(found) == data.limit:
            break
    if not found:
        raise DataError(
            f"{data.path}: has no rows; expected at least one with {data.columns.question!r} and "
            f"{data.columns.solution!r}, or {data.columns.messages!r}")
    return found


def render_solutions(
    solutions: Sequence[Solution],
    renderer: PromptRenderer,
    eos_token_ids: Collection[int],
    end_id: int,
    max_tokens: int,
    too_long: Literal["error", "drop"],
) -> tuple[tuple[SolutionRow, ...], int]:
    """The rows of at most max_tokens tokens, in order, and how many longer ones were dropped.

    eos_token_ids: all that end a completion; end_id: the one that is appended where the solution does not end in one.
    Raises: DataError for a longer row where too_long is error, or where all are longer; PromptError."""
    rows: list[SolutionRow] = []
    shortest = 0
    for solution in solutions:
        try:
            prompt = renderer.render(solution.question, solution.before)
        except PromptError as error:
            raise PromptError(*(replace(problem, where=": ".join(filter(None, (solution.where, problem.where))))
                                for problem in error.problems)) from None
        completion = completion_tokens(renderer, prompt, solution.text)
        if not completion or completion[-1] not in eos_token_ids:
            completion = (*completion, end_id)
        row = SolutionRow(solution.where, prompt, completion)
        shortest = min(shortest or row.num_tokens, row.num_tokens)
        if row.num_tokens <= max_tokens:
            rows.append(row)
        elif too_long == "error":
            raise DataError(
                f"{len(prompt.token_ids)} tokens of prompt and {len(completion)} of solution make {row.num_tokens}, "
                f"above {max_tokens} ({named('data.max_tokens')}, or the model's context)", where=row.where,
                remedy=f"shorten it, or {named('data.too_long', 'drop')} to leave such rows out")
    if not rows:
        raise DataError(
            f"all {len(solutions)} rows are longer than {max_tokens} tokens ({named('data.max_tokens')}, or the "
            f"model's context; the shortest has {shortest})", expected="at least one that fits")
    return tuple(rows), len(solutions) - len(rows)


def completion_tokens(renderer: PromptRenderer, prompt: Prompt, solution: str) -> tuple[int, ...]:
    """Ids of the solution after the prompt, without an end of sequence.

    The beginning that the template puts into the prompt (assistant_prefix) is not repeated. A plain prompt that ends in
    no space is followed by one, as in the template's own examples. The text is tokenised together with the prompt where
    that leaves the prompt's tokens as they are (some tokenizers begin a text of its own with a space), else apart: the
    sampler always has the prompt's own tokens."""
    for prefix in (prompt.assistant_prefix, prompt.assistant_prefix.strip()):
        if prefix and solution.startswith(prefix):
            solution = solution.removeprefix(prefix)
            break
    is_plain = not renderer.uses_chat_template and not prompt.assistant_prefix
    if is_plain and not prompt.text[-1:].isspace() and not solution[:1].isspace():
        solution = " " + solution
    both = tuple(renderer.encode(prompt.text + solution))
    if both[:len(prompt.token_ids)] == prompt.token_ids:
        return both[len(prompt.token_ids):]
    return tuple(renderer.tokenizer(solution, add_special_tokens=False)["input_ids"])


def end_token(renderer: PromptRenderer, eos_token_ids: Collection[int], tokenizer_eos: int | None) -> int:
    """The id that closes a solution: of those at which the sampler stops (chat models name several) the one that the
    chat template writes behind an answer; else the tokenizer's own, else the smallest."""
    if renderer.chat is not None:
        marker = "otherhalf"
        text = renderer.chat.render(
            [{"role": "user", "content": marker}, {"role": "assistant", "content": marker}],
            add_generation_prompt=False)
        behind = renderer.tokenizer(text.rpartition(marker)[2], add_special_tokens=False)["input_ids"]
        if written := [token for token in behind if token in eos_token_ids]:
            return int(written[0])
    return tokenizer_eos if tokenizer_eos is not None else min(eos_token_ids)


def _solution(row: Row, columns: WarmupColumnsSection) -> Solution:
    values = row.values
    others = {name: as_json(value, row, name) for name, value in values.items()
              if name not in (columns.question, columns.solution, columns.messages)}
    if columns.question in values:
        question = _text(row, columns.question, "data.columns.question", "the question")
        return Solution(
            row.where, Question(f"line-{row.number}", question, None, others),
            _text(row, columns.solution, "data.columns.solution", "the solution"))
    if columns.messages in values:
        *before, asked, answer = _messages(row, columns.messages)
        return Solution(
            row.where, Question(f"line-{row.number}", asked["content"], None, others), answer["content"], tuple(before))
    near = closest(columns.question, list(values))
    raise DataError(
        f"{row.where}: neither a {columns.question!r} nor a {columns.messages!r} field; the row has: "
        f"{', '.join(values) or 'none'}. Name the column with "
        f"{named('data.columns.question', near or 'NAME')} or {named('data.columns.messages', 'NAME')}")


def _text(row: Row, column: str, key: str, what: str) -> str:
    if column not in row.values:
        near = closest(column, list(row.values))
        raise DataError(
            f"{row.where}: no {column!r} field; the row has: {', '.join(row.values)}. A warm-up learns from solutions: "
            f"name their column with {named(key, near or 'NAME')}")
    return _checked(row, column, row.values[column], what)


def _checked(row: Row, column: str, value: object, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"{row.where}: field {column!r}: saw {shown_value(value)}; expected {what} as text that is not empty. Fill "
            "it in or remove the row")
    check_unicode(value, row, column)
    return value


def _messages(row: Row, column: str) -> list[Message]:
    """Optionally a system message, then user and assistant in turn, the assistant last."""
    value: Any = row.values[column]
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not all(isinstance(item, Mapping) for item in value)
    ):
        raise DataError(
            f"{row.where}: field {column!r}: saw {shown_value(value)}; expected a list of messages, each with role and "
            "content")
    roles = [item.get("role") for item in value]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(
            f"{row.where}: field {column!r}: saw the roles {', '.join(map(str, roles)) or 'none'}; expected user and "
            "assistant in turn, the assistant last, with at most one system message before them")
    return [
        {
            "role": str(item["role"]),
            "content": _checked(row, column, item.get("content"), f"the {item['role']} message's content")}
        for item in value]
