"""What a run reads before it loads a model: rewards, questions, prompts. Checked here, so that `--dry-run` refuses what
a run would refuse.

Loads the tokenizer but no weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import jinja2
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from rewards.contract import RewardError
from rewards.errors import named
from rewards.scoring import RewardSum
from rl.config import DataSection, HeldOutSection, ModelSection, PromptSection, RewardSection, RunConfig
from rl.errors import ConfigError, DataError
from rl.paths import resolve_path, similar_path
from rl.planning.shapes import check_shapes
from rl.questions.files import LoadedQuestions, load_questions
from rl.questions.generated import held_out_task, is_generated
from rl.questions.prompting import PromptRenderer, make_renderer, render_prompts, warn_of_plain_text
from rl.questions.usual_ranges import warn_of_unusual
from rl.records import Prompt, Question
from rl.scoring.rewarding import build_rewards, check_answers, check_columns


@dataclass(frozen=True, slots=True)
class Inputs:
    """prompts, held_out, anchors: rendered questions. dropped: how many questions of a file were left out, by reason.

    stop_strings: the template's and the configuration's. turn_end_ids: end an assistant's turn in the chat template.
    digests: of each file's prompts and answers, by the key that names it. anchor_rewards: what judges anchors; None
    where there are none."""

    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig
    rewards: RewardSum
    grader: RewardSum | None
    prompts: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    dropped: Mapping[str, int]
    stop_strings: tuple[str, ...]
    turn_end_ids: tuple[int, ...]
    digests: Mapping[str, str]
    anchors: tuple[Prompt, ...] = ()
    anchor_rewards: RewardSum | None = None

    @property
    def longest_prompt(self) -> int:
        """Tokens, of the questions that train."""
        return max(len(prompt.token_ids) for prompt in (*self.prompts, *self.anchors))


def read_inputs(config: RunConfig) -> Inputs:
    """Everything but the model. Raises ConfigError, DataError, PromptError or RewardError with the remedy."""
    for tracker in config.tracking.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise ConfigError(f"{tracker} is not installed", where=named("tracking.trackers"),
                              remedy=f"pip install -e '.[{tracker}]'")
    rewards = build_rewards(config.rewards, config.sampling.max_completion_tokens)
    _check_staleness(config, rewards)
    _check_votes(config, rewards)
    grader = build_grader(config.evaluation, config.sampling.max_completion_tokens)
    tokenizer, model_config = load_tokenizer(config.model), load_model_config(config.model)
    training = read_questions(config.data, config.prompt, rewards, tokenizer)
    renderer, prompts, dropped = training.renderer, training.prompts, dict(training.dropped)
    anchors, anchor_rewards, left_out = read_anchors(config, renderer)
    dropped |= left_out
    if anchors:
        prompts, dropped["that are anchors"] = _without(prompts, anchors, config.data)
    held_out: tuple[Prompt, ...] = ()
    if grader is not None:
        held_out, left_out = read_held_out(
            config.evaluation, grader, renderer, config.data.max_prompt_tokens, training.texts)
        dropped |= left_out
        warn_of_overlap((*prompts, *anchors), held_out)
    check_lengths(config.sampling.max_completion_tokens, model_config, (*prompts, *anchors, *held_out))
    check_shapes(config.model, model_config)
    check_vocabulary((*prompts, *anchors, *held_out), model_config)
    check_stop_tokens(config.sampling.stop_token_ids, len(tokenizer))
    warn_of_unusual(config, prompts, tokenizer, context_of(model_config))
    if config.sampling.top_p < 1.0 or config.sampling.top_k > 0:
        warnings.warn(
            "sampling.top_p below 1 or sampling.top_k above 0: the sampler's distribution is not the one whose gradient"
            " is taken, so the gradient is biased. Remedy: sampling.top_p=1 sampling.top_k=0", stacklevel=2)
    stop_strings = tuple(dict.fromkeys([*renderer.template.stop_strings, *config.sampling.stop_strings]))
    digests = {"data.path": prompts_digest(prompts)} | (
        {"evaluation.path": prompts_digest(held_out)} if grader is not None else {}) | (
        {"anchors.path": prompts_digest(anchors)} if anchors else {})
    return Inputs(
        tokenizer, model_config, rewards, grader, prompts, held_out, dropped, stop_strings, renderer.turn_end_ids,
        digests, anchors, anchor_rewards)


def _check_staleness(config: RunConfig, rewards: RewardSum) -> None:
    if config.generator.max_staleness and (rewards.needs_policy or rewards.needs_token_statistics):
        raise ConfigError(
            f"1 samples a step's groups before the step before it has trained, and a reward among "
            f"{', '.join(rewards.names)} asks the policy itself, which has changed by then",
            where=named("generator.max_staleness"),
            remedy=f"{named('generator.max_staleness', 0)}, or rewards that read the completions")


def _check_votes(config: RunConfig, rewards: RewardSum) -> None:
    if rewards.needs_votes and config.votes is None:
        raise ConfigError(
            f"null samples no votes, and a reward among {', '.join(rewards.names)} counts them", where=named("votes"),
            remedy=f"{named('votes.samples', 8)}, or rewards.majority:majority_vote, which counts the group's own")
    if config.votes is not None and not rewards.needs_votes:
        raise ConfigError(
            f"{config.votes.samples} votes a question would be sampled, and no reward among "
            f"{', '.join(rewards.names) or 'none'} counts them", where=named("votes"),
            remedy=f"the reward rewards.majority:share_of_votes, or {named('votes', 'null')}")


def read_anchors(
    config: RunConfig, renderer: PromptRenderer
) -> tuple[tuple[Prompt, ...], RewardSum | None, dict[str, int]]:
    """The labelled questions that are mixed in, what judges them, and how many were left out, by reason; (), None, {}
    where none are asked for. Raises ConfigError or DataError, which name keys of `anchors`."""
    anchors = config.anchors
    if anchors is None:
        return (), None, {}
    rewards = build_rewards([RewardSection(use=anchors.reward)], config.sampling.max_completion_tokens)
    _check_reads_completions(rewards, anchors.reward, "anchors.reward")
    try:
        loaded = load_questions(anchors.as_data())
    except DataError as error:
        raise error.renamed(lambda key: re.sub(r"^data\b", "anchors", key)) from None
    # Ids enter the sampling seeds, and tell in rollouts.jsonl whose label was read.
    questions = tuple(replace(q, id=f"anchor:{q.id}", is_anchor=True) for q in loaded.questions)
    try:
        check_answers(rewards, questions)
        check_columns(rewards, questions)
    except RewardError as error:
        raise ConfigError(
            f"{error.problems[0].what}; every anchor is a labelled question", where=named("anchors.path"),
            remedy=named("anchors.columns.answer", "NAME") + " where the column has another name") from error
    prompts, num_too_long = render_prompts(questions, renderer, config.data.max_prompt_tokens)
    return prompts, rewards, {
        "anchors too long": num_too_long, f"anchors {_duplicates(loaded)}": loaded.counts.num_duplicates}


def _without(
    prompts: tuple[Prompt, ...], anchors: Sequence[Prompt], data: DataSection
) -> tuple[tuple[Prompt, ...], int]:
    """The questions that are no anchors, and how many are: one question is not trained with and without its label."""
    texts = {prompt.question.text for prompt in anchors}
    kept = tuple(prompt for prompt in prompts if prompt.question.text not in texts)
    if not kept:
        raise ConfigError(f"each of the {len(prompts)} questions of {data.path} is an anchor too, and none is left to "
                          "train without its label", where=named("data.path"), expected="other questions beside them")
    return kept, len(prompts) - len(kept)


@dataclass(frozen=True, slots=True)
class RenderedQuestions:
    """prompts: of the questions that are not too long, in the file's order. texts: of all questions. dropped: how many
    rows were left out, by reason."""

    renderer: PromptRenderer
    prompts: tuple[Prompt, ...]
    texts: frozenset[str]
    dropped: Mapping[str, int]


def read_questions(
    data: DataSection, prompt: PromptSection, rewards: RewardSum, tokenizer: PreTrainedTokenizerBase
) -> RenderedQuestions:
    """The questions that are sampled, with what the rewards need of each. Raises ConfigError, DataError or
    PromptError."""
    renderer = make_renderer(prompt, tokenizer)
    if renderer.uses_chat_template:
        check_chat_template(tokenizer, prompt.chat_template_kwargs)
    warn_of_plain_text(renderer)
    loaded = load_questions(data)
    _check_training_answers(rewards, loaded.questions, data)
    _check_columns(rewards, loaded.questions, "data", data)
    prompts, num_too_long = render_prompts(loaded.questions, renderer, data.max_prompt_tokens)
    dropped = {_duplicates(loaded): loaded.counts.num_duplicates, "too long": num_too_long}
    return RenderedQuestions(renderer, prompts, frozenset(question.text for question in loaded.questions), dropped)


def build_grader(evaluation: HeldOutSection, max_completion_tokens: int) -> RewardSum | None:
    """What judges held-out completions; None where there are no held-out questions. Raises ConfigError or
    RewardError."""
    if evaluation.path is None:
        return None
    grader = build_rewards([RewardSection(use=_grader(evaluation))], max_completion_tokens)
    _check_reads_completions(grader, _grader(evaluation), "evaluation.reward")
    return grader


def _check_reads_completions(rewards: RewardSum, use: str, where: str) -> None:
    """Raises ConfigError where a reward asks for more than completions have that are not sampled for training."""
    if rewards.needs_policy or rewards.needs_token_statistics or rewards.needs_votes:
        by = "votes" if rewards.needs_votes else "the policy's own probabilities"
        raise ConfigError(f"{use} judges by {by}", where=named(where),
                          expected="one that reads the completions, such as rewards.accuracy:accuracy")


def read_held_out(
    evaluation: HeldOutSection, grader: RewardSum, renderer: PromptRenderer, max_prompt_tokens: int,
    training_texts: Collection[str],
) -> tuple[tuple[Prompt, ...], dict[str, int]]:
    """The held-out prompts, and how many questions were left out, by reason. training_texts: the training questions,
    which generated held-out questions may not repeat. Raises ConfigError, DataError, PromptError or RewardError."""
    loaded = load_held_out_questions(evaluation, training_texts)
    _check_columns(grader, loaded.questions, "evaluation", evaluation)
    _check_held_out_answers(grader, loaded.questions)
    held_out, num_too_long = render_prompts(loaded.questions, renderer, max_prompt_tokens)
    return held_out, {
        f"held-out {_duplicates(loaded)}": loaded.counts.num_duplicates, "held-out too long": num_too_long,
        "held-out that are training questions": loaded.counts.num_excluded}


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. Raises ConfigError where the checkpoint cannot be read."""
    _check_folder(model)
    try:
        return AutoTokenizer.from_pretrained(
            str(resolve_path(model.path)), revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unreadable(model, "tokenizer", error) from error


def load_model_config(model: ModelSection) -> PretrainedConfig:
    """The checkpoint's config.json. Raises ConfigError where the checkpoint cannot be read."""
    _check_folder(model)
    try:
        return AutoConfig.from_pretrained(
            str(resolve_path(model.path)), revision=model.revision, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise _unreadable(model, "config.json", error) from error


def _check_folder(model: ModelSection) -> None:
    path = resolve_path(model.path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"the folder {path} holds no config.json", where=named("model.path"),
                          expected="a Hugging Face checkpoint")
    # models/ is a folder of this project: what is not made yet there is not to be asked of the hub.
    looks_local = model.path.startswith((".", "/", "~", "models/")) or model.path.count("/") > 1
    if looks_local and not path.is_dir():
        raise ConfigError(
            f"there is no folder {path}{similar_path(path)}", where=named("model.path"),
            expected="a folder with a Hugging Face checkpoint, or a hub id",
            remedy="make smollm2" if path.name == "smollm2-135m-instruct" else "")


def _in_models(path: str) -> str:
    """A folder of models/ that a name without its folder may mean."""
    return "" if "/" in path else similar_path(f"models/{path}")


def _unreadable(model: ModelSection, what: str, error: Exception) -> ConfigError:
    first_line = str(error).strip().splitlines()[0]
    return ConfigError(
        f"the {what} of {model.path!r} cannot be read ({first_line}){_in_models(model.path)}",
        where=named("model.path"),
        expected="a folder with a Hugging Face checkpoint, or a hub id that this machine can reach")


def load_held_out_questions(evaluation: HeldOutSection, training_texts: Collection[str]) -> LoadedQuestions:
    """The held-out questions. training_texts: see `read_held_out`. Raises DataError, which names keys of
    `evaluation`."""
    path = evaluation.path
    assert path is not None
    data = DataSection(
        path=path, task=held_out_task(path, evaluation.task), split=evaluation.split, subset=evaluation.subset,
        revision=evaluation.revision, columns=evaluation.columns, limit=evaluation.num_questions)
    try:
        return load_questions(data, exclude=training_texts if is_generated(path) else ())
    except DataError as error:
        raise error.renamed(lambda key: re.sub(r"^data\b", "evaluation", key)) from None


def _duplicates(loaded: LoadedQuestions) -> str:
    contradicting = loaded.counts.num_contradicting
    return f"duplicates ({contradicting} of them with another answer)" if contradicting else "duplicates"


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of what the sampler and the rewards are given: a checkpoint belongs to these questions."""
    digest = hashlib.sha256()
    for prompt in prompts:
        question = prompt.question
        columns = json.dumps(dict(question.columns), sort_keys=True, default=str)
        digest.update(
            repr((question.id, question.text, question.answer, columns, prompt.token_ids)).encode(
                "utf-8", "backslashreplace"))
    return digest.hexdigest()


def warn_of_overlap(prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    seen = {prompt.question.text for prompt in prompts}
    shared = [prompt.question.id for prompt in held_out if prompt.question.text in seen]
    if shared:
        warnings.warn(
            f"{len(shared)} of {len(held_out)} held-out questions are training questions too (the first: "
            f"{shared[0]!r}): held-out accuracy will flatter the policy. Remedy: remove them from one of the files",
            stacklevel=3)


def context_of(model_config: PretrainedConfig) -> int | None:
    """Tokens of the model's longest sequence; None where it does not say."""
    context: int | None = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    return context


def check_lengths(max_completion_tokens: int, model_config: PretrainedConfig, prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError where the longest prompt with the longest completion is above the model's context."""
    context = context_of(model_config)
    longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
    needed = len(longest.token_ids) + max_completion_tokens
    if context is not None and needed > context:
        key, room = "sampling.max_completion_tokens", context - len(longest.token_ids)
        raise ConfigError(
            f"{max_completion_tokens} tokens after the longest prompt ({len(longest.token_ids)} tokens, question "
            f"{longest.question.id!r}) make {needed}, above the model's context of {context}", where=named(key),
            remedy=f"{f'{named(key, room)} or less, or ' if room > 0 else ''}a lower {named('data.max_prompt_tokens')}")


def check_chat_template(tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, object]) -> None:
    """Raises ConfigError where the tokenizer's chat template cannot be read, or there are several, none is the default
    and `arguments` (prompt.chat_template_kwargs) choose none."""
    template, where = tokenizer.chat_template, named("model.path")
    remedy = f"another tokenizer_config.json, or {named('prompt.chat_template', 'never')}"
    if isinstance(template, dict) and "default" not in template and "chat_template" not in arguments:
        raise ConfigError(f"its tokenizer has the chat templates {', '.join(sorted(template))} and no default",
                          where=where, remedy=f"{named('prompt.chat_template_kwargs', '{chat_template: NAME}')}, "
                          f"or {remedy}")
    try:
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True, **arguments)
    except (jinja2.TemplateSyntaxError, TypeError) as error:
        raise ConfigError(f"its chat template cannot be read ({error})", where=where, remedy=remedy) from error
    except jinja2.TemplateError:  # it refuses this message, and may well take the questions
        return


def check_vocabulary(prompts: Sequence[Prompt], model_config: PretrainedConfig) -> None:
    """Raises ConfigError where the tokenizer makes ids that the model has no embedding for."""
    size: int = model_config.get_text_config().vocab_size
    for prompt in prompts:
        if max(prompt.token_ids) >= size:
            raise ConfigError(
                f"the tokenizer makes token {max(prompt.token_ids)} of question {prompt.question.id!r}, and the model "
                f"has a vocabulary of {size}", where=named("model.path"), remedy="the checkpoint's own tokenizer")


def _grader(evaluation: HeldOutSection) -> str:
    default = "rewards.reasoning_gym:solved" if is_generated(evaluation.path) else "rewards.accuracy:accuracy"
    return evaluation.reward or default


def _check_columns(rewards: RewardSum, questions: Sequence[Question], name: str,
                   section: DataSection | HeldOutSection) -> None:
    try:
        check_columns(rewards, questions)
    except RewardError as error:
        remedy = "questions that have it"
        if section.columns.answer is None:
            key = named(f"{name}.columns.answer", "answer")
            remedy = f"{key} (null keeps columns that lead to the answer from rewards)"
        raise ConfigError(f"{section.path}: {error}", where=named(f"{name}.path"),
                          remedy=f"{remedy}, or another reward") from error


def _check_training_answers(rewards: RewardSum, questions: Sequence[Question], data: DataSection) -> None:
    try:
        check_answers(rewards, questions)
    except RewardError as error:
        if data.columns.answer is None:
            key = "data.columns.answer"
            raise ConfigError(
                f"null reads no answers from {data.path}, but {error.problems[0].what}", where=named(key),
                remedy=f"{named(key, 'answer')} (the column's name), or a reward that needs no answer") from error
        raise ConfigError(f"{data.path}, column {data.columns.answer!r} (data.columns.answer): {error}") from error


def _check_held_out_answers(grader: RewardSum, questions: Sequence[Question]) -> None:
    try:
        check_answers(grader, questions)
    except RewardError as error:
        raise ConfigError(
            f"{error.problems[0].what}; held-out accuracy needs one in every row", where=named("evaluation.path"),
            remedy=f"{named('evaluation.columns.answer', 'NAME')} where the column has another name, or "
            f"{named('evaluation.path', 'null')}") from error


def check_stop_tokens(ids: Sequence[int], num_tokens: int) -> None:
    if unknown := [token for token in ids if not 0 <= token < num_tokens]:
        raise ConfigError(where=named("sampling.stop_token_ids"), seen=str(unknown[0]),
                          expected=f"ids below the tokenizer's {num_tokens}")
