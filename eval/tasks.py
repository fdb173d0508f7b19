"""A benchmark and what the user asks -> a task: prompts, grader, and how to sample, all of it known before the model is
loaded.

What the user leaves open is taken from the benchmark's protocol of the literature. Used by `eval.run` and during
training alike.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from eval.benchmarks import Benchmark, LoadedBenchmark
from rewards.contract import RewardError
from rewards.errors import UserError, named
from rewards.scoring import RewardSpec, RewardSum
from rl.generate.protocol import Request, SamplingParameters, request_seed
from rl.policy.model_identity import rewards_digest
from rl.questions.inputs import check_stop_tokens
from rl.questions.prompting import ChatTemplateMode, PromptRenderer, load_template
from rl.records import Prompt
from rl.scoring.rewarding import check_answers, check_columns


class EvaluationError(UserError):
    """An evaluation that cannot be done as asked; the message names the option, the value seen and the remedy."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides a task beside the benchmark; None: the benchmark's protocol. ks: the k of avg@k, pass@k, maj@k.

    date: that a chat template which prints one is given; None: today. stop_strings, stop_token_ids: beside the
    template's and the model's. samples: n >= every k. grader, best_of: rewards by name (file.py:name). head_dtype,
    quantization: those that the sampler was opened with."""

    ks: tuple[int, ...] = ()
    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    prompt: str | None = None
    chat_template: ChatTemplateMode = "auto"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: datetime.date | None = None
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    grader: str | None = None
    best_of: str | None = None
    seed: int = 0
    head_dtype: str | None = None
    quantization: str | None = None

    def __post_init__(self) -> None:

        def check(option: str, value: float | None, is_right: Callable[[float], bool], expected: str) -> None:
            if value is not None and not is_right(value):
                raise EvaluationError(where=named(option), seen=str(value), expected=expected)

        for k in self.ks:
            check("-k", k, lambda value: value >= 1, "whole numbers >= 1")
            if self.samples is not None and k > self.samples:
                raise EvaluationError(
                    f"pass@{k} needs at least {k} samples of each question, and {named('--samples')} is {self.samples}",
                    where=named("-k"), remedy=f"{named('--samples', k)}, or {named('-k', self.samples)}")
        for option, count in (("--samples", self.samples), ("--max-tokens", self.max_tokens)):
            check(option, count, lambda value: value >= 1, "a whole number >= 1")
        check("--temperature", self.temperature, lambda value: 0.0 <= value <= 2.0, "a number from 0 (greedy) to 2")
        check("--top-p", self.top_p, lambda value: 0.0 < value <= 1.0, "a number above 0, at most 1")


@dataclass(frozen=True, slots=True)
class Task:
    """One benchmark under one prompt. name: in results. ranker: the reward that best@k chooses by, where one is asked
    for.

    samples: n, per question. protocol: what result.json says about how it was sampled and graded. notes: what people
    should know."""

    name: str
    prompts: tuple[Prompt, ...]
    grader: RewardSum
    ranker: RewardSum | None
    parameters: SamplingParameters
    samples: int
    ks: tuple[int, ...]
    seed: int
    protocol: Mapping[str, Any]
    notes: tuple[str, ...] = field(default=())

    @property
    def max_tokens(self) -> int:
        """Of the longest prompt with the longest completion."""
        return max(len(prompt.token_ids) for prompt in self.prompts) + self.parameters.max_completion_tokens

    def requests(self, prompts: Sequence[Prompt]) -> list[Request]:
        """The seeds depend on the evaluation's seed, the benchmark, the question and the sample's number: two policies
        that are compared share their random numbers."""
        purpose = f"eval/{self.protocol['benchmark']}"
        return [
            Request(
                prompt, tuple(request_seed(self.seed, purpose, 0, prompt.question.id, i) for i in range(self.samples)))
            for prompt in prompts]


def build_task(
    benchmark: Benchmark, loaded: LoadedBenchmark, asked: Asked, tokenizer: PreTrainedTokenizerBase,
    context: int | None, name: str | None = None, end_ids: Collection[int] = (),
) -> Task:
    """context: most tokens of a sequence that the model was made for, None where that is unknown. name: in results,
    where it is not the benchmark's. end_ids: at which the model ends a completion by itself. Raises EvaluationError,
    PromptError or RewardError."""
    samples = asked.samples or max(asked.ks, default=benchmark.protocol.samples)
    temperature, top_p = _temperature_and_top_p(benchmark, asked, samples)
    template = load_template(asked.prompt or benchmark.prompt)
    renderer = PromptRenderer(template, tokenizer, asked.chat_template, asked.chat_template_kwargs, asked.date)
    prompts = tuple(renderer.render(question) for question in loaded.questions)
    grader, ranker = _grader_and_ranker(benchmark, loaded, asked)
    longest = max(len(prompt.token_ids) for prompt in prompts)
    max_tokens, notes = _fitting_length(
        benchmark.name, asked.max_tokens, benchmark.protocol.max_tokens, longest, context)
    if temperature == 0.0 and samples > 1:
        notes.append(f"{benchmark.name}: at temperature 0 all {samples} samples of a question are the same")
    if template.needs_chat_template and not renderer.uses_chat_template:
        notes.append(
            f"{benchmark.name}: prompt {template.name} was made for a chat template and is rendered as plain text")
    stop_strings = tuple(dict.fromkeys([*template.stop_strings, *asked.stop_strings]))
    check_stop_tokens(asked.stop_token_ids, len(tokenizer))
    stop_ids = tuple(
        token for token in dict.fromkeys([*renderer.turn_end_ids, *asked.stop_token_ids]) if token not in end_ids)
    parameters = SamplingParameters(temperature, top_p, 0, max_tokens, stop_ids, stop_strings)
    protocol = {
        "benchmark": benchmark.name, "source": loaded.source, "questions_digest": loaded.digest,
        "prompt": template.name, "prompt_digest": _digest(prompts), "chat_template": renderer.uses_chat_template,
        "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "samples": samples, "seed": asked.seed,
        "stop_strings": list(stop_strings), "grader": asked.grader or benchmark.grader.use,
        "grader_arguments": {} if asked.grader is not None else dict(benchmark.grader.arguments),
        "best_of": asked.best_of, "grader_digest": rewards_digest(grader),
        "best_of_digest": None if ranker is None else rewards_digest(ranker),
    } | _only_where_there_are(renderer, asked, stop_ids)
    ks = tuple(sorted(set(asked.ks))) or (samples,)
    return Task(name=name or benchmark.name, prompts=prompts, grader=grader, ranker=ranker, parameters=parameters,
                samples=samples, ks=ks, seed=asked.seed, protocol=protocol, notes=(*loaded.warnings, *notes))


def _only_where_there_are(renderer: PromptRenderer, asked: Asked, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Of the protocol, what most evaluations have not; older ones, which lack it, go on. stop_token_ids: beside the
    model's own. date: where the chat template printed it."""
    day = None if renderer.chat is None else renderer.chat.printed_day
    found = {"chat_template_kwargs": dict(asked.chat_template_kwargs), "date": day and day.isoformat(),
             "stop_token_ids": list(stop_ids), "head_dtype": asked.head_dtype, "quantization": asked.quantization}
    return {key: value for key, value in found.items() if value}


def _temperature_and_top_p(benchmark: Benchmark, asked: Asked, samples: int) -> tuple[float, float]:
    """As asked; else the protocol's where so many samples are its own, else greedy for one and the benchmark's choice
    for several. top_p is 1 beside a temperature that the user chose."""
    protocol = benchmark.protocol
    if samples == protocol.samples:
        temperature, top_p = protocol.temperature, protocol.top_p
    elif samples == 1:
        temperature, top_p = 0.0, 1.0
    else:
        temperature, top_p = benchmark.sampled.temperature, benchmark.sampled.top_p
    if asked.temperature is not None:
        temperature, top_p = asked.temperature, 1.0
    return temperature, top_p if asked.top_p is None else asked.top_p


def _grader_and_ranker(
    benchmark: Benchmark, loaded: LoadedBenchmark, asked: Asked
) -> tuple[RewardSum, RewardSum | None]:
    """Raises EvaluationError where one of them needs more than the questions and the completions."""
    own = RewardSpec(benchmark.grader.use, arguments=dict(benchmark.grader.arguments))
    grader = RewardSum([own if asked.grader is None else RewardSpec(asked.grader)])
    ranker = None if asked.best_of is None else RewardSum([RewardSpec(asked.best_of)])
    for option, rewards in (("--grader", grader), ("--best-of", ranker)):
        if rewards is None:
            continue
        if rewards.needs_policy or rewards.needs_token_statistics:
            raise EvaluationError(
                f"{', '.join(rewards.names)} judges by the policy's own probabilities", where=named(option),
                expected="a reward that reads the completions, such as rewards.accuracy:accuracy")
        try:
            check_columns(rewards, loaded.questions)
            check_answers(rewards, loaded.questions)
        except RewardError as error:
            raise EvaluationError(f"{loaded.source}: {error}", where=named("--benchmarks", benchmark.name)) from error
    return grader, ranker


def _fitting_length(
    benchmark: str, asked: int | None, default: int, longest: int, context: int | None
) -> tuple[int, list[str]]:
    """The longest completion, and what to say about it. Raises EvaluationError where the prompts leave no room."""
    wanted = default if asked is None else asked
    if context is None or longest + wanted <= context:
        return wanted, []
    room = context - longest
    if asked is not None and room > 0:
        raise EvaluationError(
            f"saw {asked}; the longest prompt of {benchmark} has {longest} tokens, and with it more than {room} do not "
            f"fit into the model's context of {context}", where=named("--max-tokens"),
            remedy=named("--max-tokens", room))
    if room < 1:
        raise EvaluationError(
            f"its longest prompt has {longest} tokens, and the model's context is {context}",
            where=named("--benchmarks", benchmark), remedy=f"a shorter {named('--prompt')}, or another model")
    return room, [
        f"{benchmark}: completions are cut at {room} tokens, not at the protocol's {default}: the model's context is "
        f"{context}"]


def _digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of what the sampler is given, 16 hexadecimal digits of it."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.question.id, prompt.token_ids)).encode())
    return digest.hexdigest()[:16]
