"""Settings under which policies hardly learn are told, and the shipped configurations have none of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from rl.config import RunConfig
from rl.configuration.loading import load
from rl.configuration.yaml_text import read_mapping
from rl.paths import project_root
from rl.questions.inputs import load_tokenizer, read_inputs
from rl.questions.prompting import PromptRenderer, load_template, render_prompts
from rl.questions.usual_ranges import warn_of_learning_rate, warn_of_unusual
from rl.records import Question
from rl.supervised.config import WarmupConfig
from tests.reference.tiny_run import tiny_config

BOXED = ("prompt.template=boxed", "sampling.max_completion_tokens=128")
ANSWERS = ("data.path=models/tiny-arith/questions/train_with_answers.jsonl", "sampling.max_completion_tokens=2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("optim.lr=5e-7",), r"optim.lr=5e-07 is a learning rate of full-parameter training.*Usual: optim.lr=1e-5 to"),
        (("sampling.group_size=2",), r"compared with 1 other\(s\).*give two completions the same. Usual: 8 to 16"),
        (ANSWERS, r"max_completion_tokens=2: \d+ of \d+ gold answers alone have as many tokens or more"),
    ],
    ids=["learning-rate", "group-size", "gold-answers"],
)
def test_what_hardly_learns_is_told_with_the_usual_range(words: tuple[str, ...], said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        read_inputs(tiny_config("data.limit=64", *words))


@pytest.mark.parametrize(
    "words",
    [("optim.lr=5e-7", "lora.enabled=false"), ("prompt.template=boxed", "sampling.max_completion_tokens=256"),
     ("sampling.group_size=2", "rewards=[]", "teacher=models/tiny-arith")],
    ids=["full-parameters", "long-enough", "distillation"],
)
def test_what_is_right_elsewhere_is_not_told(words: tuple[str, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about(*words, context=4096)


def warn_about(*words: str, context: int | None) -> None:
    """What is told of these settings, with one question, for a model of this context."""
    config = tiny_config(*words)
    tokenizer = load_tokenizer(config.model)
    prompt = PromptRenderer(load_template(config.prompt.template), tokenizer).render(Question("1", "1+1=?", "2", {}))
    warn_of_unusual(config, [prompt], tokenizer, context)


def test_reasoning_that_is_cut_is_told_unless_the_model_itself_has_no_room_for_more() -> None:
    for context in (4096, None):
        said = r"max_completion_tokens=128: the prompt asks for reasoning.*Usual: 1024 to 8192 tokens"
        with pytest.warns(UserWarning, match=said):
            warn_about(*BOXED, context=context)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_about(*BOXED, context=256)  # the tiny model's


@pytest.mark.parametrize("path", sorted((project_root() / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_configuration_warns(path: Path) -> None:
    values = read_mapping(path)
    tokenizer = load_tokenizer(tiny_config().model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if "rewards" in values and "sampling" in values and "optim" in values:
            config = load(path, [], RunConfig)
            renderer = PromptRenderer(load_template(config.prompt.template), tokenizer)
            question = Question("1", "State the final answer to the following arithmetic problem: 1 + 1 =", "2", {})
            warn_of_unusual(config, render_prompts([question], renderer, 4096)[0], tokenizer, 4096)
        elif path.stem.startswith("warmup"):
            warmup = load(path, [], WarmupConfig)
            warn_of_learning_rate(warmup.optim, warmup.lora)
