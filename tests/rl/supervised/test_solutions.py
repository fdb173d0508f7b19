"""rl/supervised/solutions.py: the prompt is the one that is sampled from, the completion what the policy has to write,
and bad rows are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import AutoTokenizer

from rl.configuration.loading import load
from rl.errors import DataError
from rl.paths import resolve_path
from rl.questions.prompting import PromptError, PromptRenderer, load_template
from rl.records import Prompt, Question
from rl.supervised.config import WarmupConfig, WarmupDataSection
from rl.supervised.solutions import SolutionRow, completion_tokens, end_token, load_solutions, render_solutions

EOS, UNKNOWN = 1, 2
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% "
    "endfor %}{% if add_generation_prompt %}[assistant]{% endif %}")


def tokenizer(chat_template: str | None = None) -> Any:
    found = AutoTokenizer.from_pretrained(resolve_path("models/tiny-arith"))
    found.chat_template = chat_template
    return found


def data(folder: Path, *rows: object, **settings: object) -> WarmupDataSection:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return WarmupDataSection.model_validate({"path": str(folder / "rows.jsonl"), **settings})


def rendered(
    section: WarmupDataSection, *, template: str = "question_line", chat: str | None = None, max_tokens: int = 256
) -> list[SolutionRow]:
    renderer = PromptRenderer(load_template(template), tokenizer(chat))
    rows, _ = render_solutions(load_solutions(section), renderer, (EOS,), EOS, max_tokens, section.too_long)
    return list(rows)


def refusal(section: WarmupDataSection, **how: Any) -> str:
    with pytest.raises((DataError, PromptError)) as caught:
        rendered(section, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def bare_template(folder: Path) -> str:
    """The question and nothing else."""
    (folder / "bare.yaml").write_text('description: nothing else\nuser: "{{ question }}"\n')
    return str(folder / "bare.yaml")


def text(ids: tuple[int, ...]) -> str:
    return str(tokenizer().decode(list(ids)))


def test_a_row_is_the_prompt_that_is_sampled_from_then_the_solution_and_the_end(tmp_path: Path) -> None:
    (row,) = rendered(data(tmp_path, {"question": "1+1=?", "solution": "1+1=2\n\\boxed{2}"}))
    sampled_from = PromptRenderer(load_template("question_line"), tokenizer()).render(Question("q", "1+1=?", None, {}))
    assert row.prompt.token_ids == sampled_from.token_ids
    assert text(row.completion_ids) == "1+1=2\n\\boxed{2}<eos>"
    assert row.completion_ids.count(EOS) == 1


def test_a_solution_that_brings_its_end_gets_no_second_one(tmp_path: Path) -> None:
    (row,) = rendered(data(tmp_path, {"question": "1+1=?", "solution": "2<eos>"}))
    assert text(row.completion_ids) == "2<eos>" and row.completion_ids.count(EOS) == 1


def test_what_the_template_puts_into_the_prompt_is_not_learnt_again(tmp_path: Path) -> None:
    prefix = load_template("r1_think").assistant_prefix
    assert prefix.strip() == "<think>"
    for solution in (f"{prefix}I add.</think>2", "<think>I add.</think>2"):
        (row,) = rendered(
            data(tmp_path, {"question": "1+1=?", "solution": solution}), template="r1_think", max_tokens=4096)
        assert text(row.completion_ids) == "I add.</think>2<eos>"


def test_columns_have_the_names_that_are_configured_and_several_solutions_of_a_question_stay(tmp_path: Path) -> None:
    columns = {"question": "problem", "solution": "worked"}
    rows = rendered(
        data(tmp_path, {"problem": "1+1=?", "worked": "2"}, {"problem": "1+1=?", "worked": "two"}, columns=columns))
    assert [text(row.completion_ids) for row in rows] == ["2<eos>", "two<eos>"]


def test_messages_without_a_chat_template_are_question_and_solution(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "1+1=?"}, {"role": "assistant", "content": "2"}]
    (from_messages,) = rendered(data(tmp_path, {"messages": messages}))
    (plain,) = rendered(data(tmp_path, {"question": "1+1=?", "solution": "2"}))
    assert (from_messages.prompt.token_ids, from_messages.completion_ids) == (
        plain.prompt.token_ids, plain.completion_ids)


def test_a_conversation_goes_through_the_chat_template_and_only_its_last_answer_is_learnt(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Add."}, {"role": "user", "content": "1+1=?"},
        {"role": "assistant", "content": "2"}, {"role": "user", "content": "2+2=?"},
        {"role": "assistant", "content": "4"}]
    (row,) = rendered(data(tmp_path, {"messages": messages}), template=bare_template(tmp_path), chat=CHAT)
    assert row.prompt.text == "[system]Add.[user]1+1=?[assistant]2<eos>[user]2+2=?[assistant]"
    assert text(row.completion_ids) == "4<eos>"
    assert "3 messages precede it, which only a chat template can render" in refusal(
        data(tmp_path, {"messages": messages}))


def test_the_end_is_the_one_that_the_chat_template_writes_where_the_sampler_stops_at_it(tmp_path: Path) -> None:
    template = load_template(bare_template(tmp_path))
    writes_zero = CHAT.replace("{{ eos_token }}", "0")
    zero = tokenizer()("0", add_special_tokens=False)["input_ids"][0]
    chat = PromptRenderer(template, tokenizer(writes_zero))
    assert end_token(chat, (EOS, zero), EOS) == zero
    assert end_token(chat, (EOS,), EOS) == EOS  # the sampler would go on behind a 0
    assert end_token(PromptRenderer(template, tokenizer()), (EOS, zero), EOS) == EOS
    assert end_token(PromptRenderer(template, tokenizer()), (zero, EOS), None) == min(EOS, zero)


def test_the_completion_is_tokenised_with_its_prompt_where_that_leaves_the_prompt_as_it_is(tmp_path: Path) -> None:
    class Merging:
        """Encodes `ab` as one token, and begins every text of its own with the token 9."""
        chat_template = None
        eos_token_id = None
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

        def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
            ids, rest = [9], text
            while rest:
                size = 2 if rest.startswith("ab") else 1
                ids, rest = [*ids, sum(map(ord, rest[:size]))], rest[size:]
            return {"input_ids": ids}

        def apply_chat_template(
            self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool, **kwargs: Any
        ) -> str:
            raise AssertionError

    renderer = PromptRenderer(load_template(bare_template(tmp_path)), Merging())
    for question, solution, expected in (("x\n", "b", (98,)), ("x", " b", (32, 98)), ("x", "b", (32, 98))):
        prompt = renderer.render(Question("q", question, None, {}))
        assert completion_tokens(renderer, prompt, solution) == expected
    # `a` and `b` would be one token, which is not what the sampler's prompt ends with.
    prompt = Prompt(Question("q", "a", None, {}), "[assistant]a", tuple(renderer.encode("[assistant]a")), "a")
    assert completion_tokens(renderer, prompt, "b") == (9, 98)


def test_a_solution_longer_than_the_context_is_named_or_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"question": "1+1=?", "solution": "2"}, {"question": "1+2=?", "solution": "3" * 60}]
    message = refusal(data(tmp_path, *rows), max_tokens=40)
    assert message.startswith(f"{tmp_path}/rows.jsonl:2: 6 tokens of prompt and 61 of solution make 67, above 40")
    assert "data.too_long=drop" in message
    assert [row.where[-2:] for row in rendered(data(tmp_path, *rows, too_long="drop"), max_tokens=40)] == [":1"]
    assert "all 1 rows are longer than 40 tokens" in refusal(data(tmp_path, rows[1], too_long="drop"), max_tokens=40)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"question": "1+1=?", "answer": "2"},
            "no 'solution' field; the row has: question, answer. A warm-up learns from solutions",
        ),
        ({"question": "1+1=?", "solutions": "2"}, "data.columns.solution=solutions"),
        (
            {"question": "1+1=?", "solution": "  "},
            "field 'solution': saw '  '; expected the solution as text that is not empty",
        ),
        ({"question": "1+1=?", "solution": 2}, "field 'solution': saw 2; expected the solution as text"),
        ({"question": "", "solution": "2"}, "field 'question': saw ''; expected the question as text"),
        ({"text": "1+1=2"}, "neither a 'question' nor a 'messages' field; the row has: text"),
        ({"messages": "1+1=2"}, "expected a list of messages, each with role and content"),
        ({"messages": []}, "saw the roles none; expected user and assistant in turn"),
        (
            {"messages": [{"role": "user", "content": "1+1=?"}]},
            "saw the roles user; expected user and assistant in turn, the assistant last",
        ),
        (
            {"messages": [{"role": "user", "content": "1+1=?"}, {"role": "assistant"}]},
            "expected the assistant message's content",
        ),
    ],
)
def test_a_bad_row_is_named_with_file_line_and_remedy(row: dict[str, object], said: str, tmp_path: Path) -> None:
    message = refusal(data(tmp_path, {"question": "1+1=?", "solution": "2"}, row))
    assert message.startswith(f"{tmp_path}/rows.jsonl:2: ") and said in message


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "has no rows" in refusal(data(tmp_path))


def test_the_shipped_solutions_are_what_the_script_writes_and_none_is_held_out() -> None:
    section = load(None, [], WarmupConfig).data
    from arith import Sum, worked_solution  # models/ is on the tests' path

    for solution in load_solutions(section):
        digits = solution.question.text.removesuffix("=?").replace("-", "+-").split("+")
        problem = Sum(
            tuple(abs(int(number)) for number in digits),
            tuple(-1 if number.startswith("-") else 1 for number in digits[1:]))
        assert problem.question == solution.question.text and not problem.is_held_out
        assert solution.text == worked_solution(problem)
