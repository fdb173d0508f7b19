"""The teacher of a run: a frozen model on the run's own device, or running `vllm serve` processes. Neither has a state
to resume.

`check_teacher` compares, before any weights are loaded, what must fit: token ids, since log-probabilities are compared
token by token, and room for the longest row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedTokenizerBase

from rewards.errors import UserError
from rl.config import ModelSection, RunConfig, TeacherModelSection, TeacherSection
from rl.errors import ConfigError, GeneratorError
from rl.paths import resolve_path
from rl.policy.adapter_place import ADAPTER, FILE, adapter_folder, missing_adapter
from rl.policy.file_digest import weights_digest
from rl.policy.forward import PolicyForward, check_head
from rl.policy.logprob_calculator import LogprobCalculator
from rl.policy.policy import (
    Policy,
    explain_loading,
    load_frozen,
    load_generation_config,
    named_end_ids,
)
from rl.questions.inputs import Inputs, load_model_config, load_tokenizer
from rl.records import PromptCompletion
from rl.teacher.advantages import Teacher

PROBE = "Question: 12 + 7 = ? Let's think step by step.\nΔx ≤ 3/4, thus \\boxed{19}."
NUM_PROBED_PROMPTS = 8


class LocalTeacher:
    """Teacher (rl/teacher/advantages.py) in this process. max_tokens: of one forward pass, padding included."""

    def __init__(self, policy: Policy, forward: PolicyForward, *, max_tokens: int, description: str) -> None:
        self.description = description
        self._num_outputs = policy.causal_lm.get_output_embeddings().weight.shape[0]
        self._calculator = LogprobCalculator(policy, forward, max_tokens=max_tokens)

    def logprobs(self, pairs: Sequence[PromptCompletion]) -> list[tuple[float, ...]]:
        """Raises GeneratorError for an id that the teacher does not have: a family's models pad their outputs to
        different sizes."""
        largest = max((max(*prompt, *completion) for prompt, completion in pairs), default=0)
        if largest >= self._num_outputs:
            raise GeneratorError(
                f"the student has sampled the id {largest}, which stands for no token, and the teacher "
                f"({self.description}) has {self._num_outputs} outputs: expected ids below", where="teacher.path",
                remedy="a teacher with as many outputs as the student; or a lower sampling.temperature or "
                "sampling.top_p, which leave such ids out")
        return [tuple(found.logprobs_N.tolist()) for found in self._calculator.logprobs(pairs)]

    def close(self) -> None:
        """The model goes with the process."""


def open_teacher(config: RunConfig, inputs: Inputs, device: torch.device) -> Teacher | None:
    """The teacher that the configuration names, ready to be asked; None where it names none.

    Raises PolicyError, ConfigError or GeneratorError, with the remedy, where it cannot be had."""
    section = config.teacher
    if section is None:
        return None
    if section.backend == "vllm_server":
        from rl.teacher.servers import ServerTeacher

        return ServerTeacher(
            section, inputs.tokenizer, [inputs.prompts[0].text, PROBE], needed_context(config, inputs))
    policy = load_teacher(section, "teacher", inputs.tokenizer, device)
    forward = PolicyForward(policy, temperature=1.0)
    with in_words_of("teacher"):
        check_head(forward, policy, inputs.prompts[0].token_ids, 1.0)
    adapter = f" with {section.adapter}" if section.adapter else ""
    return LocalTeacher(
        policy, forward, max_tokens=config.optim.micro_batch_tokens, description=f"local, {section.path}{adapter}")


def check_run_teacher(config: RunConfig, inputs: Inputs) -> None:
    """What can be told before any weights are loaded. Raises ConfigError."""
    if config.teacher is not None:
        check_teacher(
            config.teacher, "teacher", config.model, inputs.tokenizer,
            [prompt.text for prompt in inputs.prompts[:NUM_PROBED_PROMPTS]], needed_context(config, inputs),
            "let the teacher answer the questions and warm up on its samples (rl/warmup.py data.path=SAMPLES)")


def needed_context(config: RunConfig, inputs: Inputs) -> int:
    """Tokens of the longest training prompt with the longest completion."""
    return inputs.longest_prompt + config.sampling.max_completion_tokens


def teacher_digests(section: TeacherModelSection | None, key: str) -> dict[str, str]:
    """Of the weights in the teacher's local folders, by the key that names each; {} for no teacher or one behind a
    server. A checkpoint belongs to this teacher. key: the section's name."""
    if section is None or (isinstance(section, TeacherSection) and section.backend != "local"):
        return {}
    places = {f"{key}.path": resolve_path(section.path)}
    if section.adapter is not None:
        places[f"{key}.adapter"] = adapter_folder(section.adapter)
    found = {name: weights_digest(path) for name, path in places.items()}
    return {name: digest for name, digest in found.items() if digest is not None}


def load_teacher(
    section: TeacherModelSection, key: str, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> Policy:
    """The frozen model, with its adapter merged into it. key: the section's name, for messages. Raises PolicyError or
    ConfigError."""
    model = section.as_model()
    with in_words_of(key), explain_loading(model.path):
        return load_frozen(model, tokenizer, device)


def check_teacher(
    section: TeacherModelSection, key: str, student: ModelSection, tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str], max_tokens: int, remedy: str,
) -> None:
    """Refuse a teacher with other token ids than the student's, or without room for `max_tokens`.

    key: the section's name. tokenizer: the student's. texts: to be tokenised by both, such as prompts. remedy: what can
    be done without a teacher of the same vocabulary. Reads the teacher's tokenizer and config.json, no weights. Raises
    ConfigError."""
    model, where = section.as_model(), f"{key}.path"
    if model.adapter is not None and not (adapter_folder(model.adapter) / FILE).is_file():
        raise ConfigError(missing_adapter(model.adapter), where=f"{key}.adapter", expected=ADAPTER)
    with in_words_of(key):
        other, model_config = load_tokenizer(model), load_model_config(model)
    text_config = model_config.get_text_config()
    difference = vocabulary_difference(tokenizer, other, [*texts, PROBE])
    if difference is None and text_config.vocab_size < len(tokenizer):
        difference = f"it has {text_config.vocab_size} outputs for the student's {len(tokenizer)} tokens"
    if difference is not None:
        raise ConfigError(
            f"{model.path} has another vocabulary ({len(other)} tokens) than the student's, model.path={student.path} "
            f"({len(tokenizer)} tokens): {difference}. Log-probabilities are compared token by token, which needs the "
            "same ids", where=where, remedy=f"a teacher with the student's tokenizer; or {remedy}")
    _warn_of_other_ends(key, (student, tokenizer), (model, other))
    context: int | None = getattr(text_config, "max_position_embeddings", None)
    if context is not None and max_tokens > context:
        raise ConfigError(
            f"the context of {model.path} is {context} tokens, and the longest row has {max_tokens}", where=where,
            remedy="a teacher with a longer context, or shorter prompts and completions")


_Tokenized = tuple[ModelSection, PreTrainedTokenizerBase]


def _warn_of_other_ends(key: str, student: _Tokenized, teacher: _Tokenized) -> None:
    """Warn where the two share no token that ends an answer."""
    ends = [named_end_ids(load_generation_config(str(resolve_path(model.path)), model.revision), tokenizer)
            for model, tokenizer in (student, teacher)]
    if set(ends[0]) & set(ends[1]):
        return
    ours, theirs = (student[1].convert_ids_to_tokens(list(ids)) for ids in ends)
    warnings.warn(
        f"{key}.path: {teacher[0].path} ends its answers with {theirs or 'no token that it names'} and the student "
        f"with {ours}: to the teacher, each end of the student's is unlikely. Remedy: a teacher that was trained with "
        "the student's prompts", stacklevel=3)


def vocabulary_difference(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, texts: Sequence[str]
) -> str | None:
    """The first way in which the teacher's ids are not the student's; None where every token of the student has the
    same id in the teacher and the texts become the same ids. Tokens that only the teacher has do no harm."""
    theirs = teacher.get_vocab()
    for token, number in sorted(student.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(token) != number:
            there = f"id {theirs[token]}" if token in theirs else "not there"
            return f"the token {token!r} has id {number} in the student and is {there} in the teacher"
    for text in texts:
        ours, other = (one(text, add_special_tokens=False)["input_ids"] for one in (student, teacher))
        if ours != other:
            return f"the text {text[:60]!r} is {ours[:8]} in the student and {other[:8]} in the teacher"
    return None


@contextmanager
def in_words_of(section: str) -> Iterator[None]:
    """What loading a model raises names model.path, model.adapter and so on; here it names the keys of the teacher's
    section."""
    try:
        yield
    except UserError as error:
        raise error.renamed(lambda name: _key_of(section, name)) from error


def _key_of(section: str, name: str) -> str:
    """The teacher's key for one of model's; other settings, and keys that a teacher does not have, keep their name."""
    owner, _, rest = name.partition(".")
    return f"{section}.{rest}" if owner == "model" and rest in TeacherModelSection.model_fields else name
