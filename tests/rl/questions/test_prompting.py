"""rl/questions/prompting.py with a real character tokenizer, with and without a chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from rl.questions.inputs import read_inputs
from rl.questions.prompting import (
    Example,
    PromptError,
    PromptRenderer,
    PromptTemplate,
    load_template,
    render_prompts,
    template_names,
)
from rl.records import Question
from tests.reference.tiny_run import tiny_config

SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
CHAT = ("{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}")
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT)


def build_tokenizer(chat_template: str | None = None, closing: str = "") -> PreTrainedTokenizerFast:
    """One token a character; adds <bos> in front of a text, and `closing` behind it."""
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, "\n", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<bos> $A {closing}".strip(), special_tokens=[(token, vocabulary[token]) for token in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
    fast.chat_template = chat_template
    return fast


def question(text: str = "1+1=?", **columns: str) -> Question:
    return Question("q1", text, None, dict(columns))


def template(
    user: str = "{{ question }}", system: str | None = None, prefix: str = "", *examples: Example,
) -> PromptTemplate:
    return PromptTemplate(
        name="test", description="for a test", user=user, system=system, assistant_prefix=prefix, few_shot=examples)


def test_without_a_chat_template_the_tokenizer_adds_its_own_bos() -> None:
    tokenizer = build_tokenizer()
    prompt = PromptRenderer(load_template("question_line"), tokenizer).render(question())
    assert prompt.text == "1+1=?\n"
    assert tokenizer.decode(prompt.token_ids) == "<bos>1+1=?\n"


def test_an_end_of_sequence_token_that_the_tokenizer_adds_is_taken_off() -> None:
    tokenizer = build_tokenizer(closing="<eos>")
    assert tokenizer("1")["input_ids"][-1] == tokenizer.eos_token_id
    prompt = PromptRenderer(template(), tokenizer).render(question())
    assert tokenizer.decode(prompt.token_ids) == "<bos>1+1=?"


def test_an_end_of_sequence_token_in_the_text_itself_stays() -> None:
    tokenizer = build_tokenizer()
    prompt = PromptRenderer(template("{{ question }}<eos>"), tokenizer).render(question())
    assert tokenizer.decode(prompt.token_ids) == "<bos>1+1=?<eos>"


def test_plain_text_joins_system_examples_question_and_prefix() -> None:
    renderer = PromptRenderer(
        template("Q: {{ question }}\nA:", "Be exact.", "<think>\n", Example(question="2+2?", answer="4")),
        build_tokenizer())
    prompt = renderer.render(question())
    assert prompt.text == "Be exact.\n\nQ: 2+2?\nA: 4\n\nQ: 1+1=?\nA:\n<think>\n"
    assert prompt.assistant_prefix == "<think>\n"


def test_with_a_chat_template_there_is_exactly_one_bos() -> None:
    tokenizer = build_tokenizer(CHAT)
    prompt = PromptRenderer(template(system="Be exact."), tokenizer).render(question())
    assert prompt.text == "<bos>[system]Be exact.[/][user]1+1=?[/][assistant]"
    assert prompt.token_ids.count(tokenizer.bos_token_id) == 1 and prompt.token_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(prompt.token_ids) == prompt.text


def test_the_assistant_prefix_follows_the_generation_prompt_once() -> None:
    prompt = PromptRenderer(template(prefix="<think>\n"), build_tokenizer(CHAT)).render(question())
    assert prompt.text.endswith("[/][assistant]<think>\n")
    already = CHAT.replace("[assistant]{% endif %}", "[assistant]<think>\n{% endif %}")
    prompt = PromptRenderer(template(prefix="<think>\n"), build_tokenizer(already)).render(question())
    assert prompt.text.count("<think>") == 1 and prompt.assistant_prefix == "<think>\n"


def test_examples_become_turns() -> None:
    renderer = PromptRenderer(
        template("Q {{ question }}", None, "", Example(question="2+2?", answer="4")), build_tokenizer(CHAT))
    assert renderer.render(question()).text == "<bos>[user]Q 2+2?[/][assistant]4[/][user]Q 1+1=?[/][assistant]"


def test_never_ignores_the_chat_template_and_always_demands_one() -> None:
    assert PromptRenderer(template(), build_tokenizer(CHAT), "never").render(question()).text == "1+1=?"
    assert PromptRenderer(template(), build_tokenizer(CHAT), "always").uses_chat_template
    with pytest.raises(PromptError, match=r"^prompt\.chat_template: .*saw always\. Remedy: prompt\..*=auto or"):
        PromptRenderer(template(), build_tokenizer(), "always")


def test_a_chat_template_that_knows_no_system_text_gives_a_clear_error() -> None:
    assert PromptRenderer(template(), build_tokenizer(NO_SYSTEM)).render(question())
    with pytest.raises(PromptError, match=r"System role not supported.*without a system text"):
        PromptRenderer(template(system="Be exact."), build_tokenizer(NO_SYSTEM)).render(question())


def test_columns_are_variables_and_a_question_is_no_template() -> None:
    renderer = PromptRenderer(template("{{ hint }}: {{ question }}", "Level {{ level }}."), build_tokenizer())
    assert renderer.render(question("{{ 1 + 1 }} {% x", hint="h", level="3")).text == "Level 3.\n\nh: {{ 1 + 1 }} {% x"


def test_an_undefined_variable_is_an_error_that_names_the_variables() -> None:
    renderer = PromptRenderer(template("{{ qestion }}"), build_tokenizer())
    with pytest.raises(PromptError, match="'qestion' is undefined in question q1; the variables are: hint, question"):
        renderer.render(question(hint="h"))


def test_templates_are_sandboxed() -> None:
    renderer = PromptRenderer(template("{{ question.__class__.__mro__ }}"), build_tokenizer())
    with pytest.raises(PromptError, match="unsafe"):
        renderer.render(question())


def test_a_syntax_error_names_template_and_line() -> None:
    with pytest.raises(PromptError, match="template test: user: line 2"):
        PromptRenderer(template("a\n{{ question"), build_tokenizer())


def test_an_empty_prompt_is_an_error() -> None:
    tokenizer = build_tokenizer(CHAT.replace("{{ bos_token }}", ""))
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(PromptError, match="question q1: the prompt '' has no tokens"):
        PromptRenderer(template(), tokenizer).render(question())


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("chat_template", [None, CHAT])
def test_every_shipped_template_renders_the_question_once_in_both_ways(name: str, chat_template: str | None) -> None:
    loaded = load_template(name)
    prompt = PromptRenderer(loaded, build_tokenizer(chat_template)).render(question("WHAT?"))
    assert prompt.text.count("WHAT?") == 1
    assert prompt.text.endswith(loaded.assistant_prefix) and loaded.description
    assert name in ("question_line", "tiny_chain_sum", "chat_chain_sum") or "\\boxed{" in prompt.text


def test_the_published_wordings_are_kept() -> None:
    boxed = PromptRenderer(load_template("boxed"), build_tokenizer()).render(question("Q."))
    assert boxed.text == "Q. Let's think step by step and output the final answer within \\boxed{}."
    simple = PromptRenderer(load_template("qwen_boxed"), build_tokenizer(CHAT)).render(question("Q."))
    assert (
        simple.text
        == "<bos>[system]You are a helpful assistant.[/][user]Q.\nPlease reason step by step, and put your final "
        "answer within \\boxed{}.[/][assistant]")
    qwen = PromptRenderer(load_template("qwen_math"), build_tokenizer(CHAT)).render(question("Q."))
    assert qwen.text == ("<bos>[system]Please reason step by step, and put your final answer within \\boxed{}.[/]"
                         "[user]Q.[/][assistant]")


def test_r1_think_gives_base_models_the_roles_and_opens_the_thinking() -> None:
    plain = PromptRenderer(load_template("r1_think"), build_tokenizer()).render(question("Q."))
    assert plain.text.endswith("\n\nUser: Q.\nAssistant:\n<think>\n")
    chat = PromptRenderer(load_template("r1_think"), build_tokenizer(CHAT)).render(question("Q."))
    assert chat.text.endswith("[user]Q.[/][assistant]<think>\n")


def test_an_unknown_template_names_the_closest_and_all() -> None:
    with pytest.raises(
        PromptError,
        match=r"no template 'boxd'; did you mean boxed\? There are: boxed, chat_chain_sum, multiple_choice, ",
    ):
        load_template("boxd")


def test_a_template_may_be_a_file_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('description: mine\nuser: "{{ question }}!"\n')
    assert PromptRenderer(load_template(str(path)), build_tokenizer()).render(question()).text == "1+1=?!"


@pytest.mark.parametrize(("text", "message"), [
    ("user: x\n", "description: missing; expected what the template is for, as text"),
    ("description: d\nuser: x\nsytem: y\n", "sytem: unknown key; did you mean system?"),
    ("description: d\nuser: x\nzzz: y\n", "zzz: unknown key; there are: description, user, system"),
    ("description: d\nuser: [x]\n", 'user: saw ["x"]; expected what the user says, as text with {{ question }}'),
    ("description: d\nuser: x\nfew_shot: [{question: a}]\n", "few_shot.0.answer: missing; expected text"),
    ("description: d\nuser: x\nfew_shot: [{qestion: a, answer: b}]\n",
     "few_shot.0.qestion: unknown key; did you mean question?"),
    ("description: d\nuser: [x\n", "not valid YAML"),
])
def test_a_malformed_template_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(PromptError) as caught:
        load_template(str(path))
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_misspelt_key_of_a_template_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("description: d\nusr: x\n")
    with pytest.raises(PromptError) as caught:
        load_template(str(path))
    assert str(caught.value) == f"{path}: usr: unknown key; did you mean user?"


def test_over_long_prompts_are_dropped_and_counted() -> None:
    renderer = PromptRenderer(template(), build_tokenizer())
    questions = [question("12345"), question("123456"), question("1")]
    prompts, num_too_long = render_prompts(questions, renderer, max_prompt_tokens=6)
    assert [prompt.text for prompt in prompts] == ["12345", "1"] and num_too_long == 1
    assert prompts[0].question is questions[0] and len(prompts[0].token_ids) == 6


def test_when_all_prompts_are_too_long_the_error_names_the_key() -> None:
    renderer = PromptRenderer(template(), build_tokenizer())
    with pytest.raises(
        PromptError, match=r"all 2 prompts are longer than data.max_prompt_tokens=3 \(the shortest has 5 "
    ):
        render_prompts([question("1234"), question("12345")], renderer, max_prompt_tokens=3)


@pytest.mark.parametrize("template", ["qwen_math", "qwen_boxed"])
def test_a_template_for_chat_models_warns_where_it_is_rendered_as_plain_text(template: str) -> None:
    with pytest.warns(UserWarning, match=r"rendered as plain text.*Remedy: prompt\.chat_template=auto"):
        read_inputs(tiny_config(f"prompt.template={template}", "sampling.max_completion_tokens=8"))


def test_the_few_shot_template_stops_before_a_next_question() -> None:
    assert load_template("plain").stop_strings == ("\nQuestion:",)
    assert read_inputs(tiny_config("sampling.stop_strings=[END, STOP, END]")).stop_strings == ("END", "STOP")
