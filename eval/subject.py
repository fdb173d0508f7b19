"""What is evaluated, and by which generator: model, adapter, back end -> an identity for settings.json, and a
generator."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from eval.tasks import EvaluationError
from rl.config import GeneratorSection, ModelSection
from rl.export import find_source
from rl.generate.frozen import open_frozen_generator
from rl.generate.protocol import Generator
from rl.paths import resolve_path
from rl.policy.ends import model_end_ids
from rl.policy.file_digest import weights_digest
from rl.policy.model_identity import model_identity
from rl.policy.policy import default_device
from rl.questions.inputs import load_model_config, load_tokenizer
from rl.questions.run_prompt import RunPrompt, prompt_of_weights

Backend = Literal["auto", "transformers", "vllm"]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, perhaps with an adapter, whose tokenizer and configuration are loaded and whose weights are not.

    run: how the run asked it that trained it, where it lies in a run's folder."""

    model: ModelSection
    tokenizer: PreTrainedTokenizerBase
    model_config: PretrainedConfig
    run: RunPrompt | None = None

    @property
    def context(self) -> int | None:
        """Most tokens of a sequence, None where the checkpoint does not say."""
        length = getattr(self.model_config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def end_ids(self) -> tuple[int, ...]:
        """At which the model ends a completion by itself."""
        return model_end_ids(self.model, self.tokenizer)

    def identity(self) -> dict[str, Any]:
        """What tells this subject from another one, also from other weights in the same folder."""
        return model_identity(self.model, self.model_config)


def find_subject(model: str | None, adapter: str | None, *, revision: str | None = None, dtype: str = "auto",
                 head_dtype: str | None = None, quantization: str | None = None,
                 trust_remote_code: bool = False) -> Subject:
    """adapter: a PEFT adapter's folder, or a run's folder or name, whose best checkpoint is taken. model: may be left
    out where the adapter names its base. head_dtype, quantization: "null" for the model's own, None for those of the
    run which trained the weights. Raises ConfigError, RunFolderError, CheckpointError, EvaluationError."""
    folder: str | None = None
    if adapter is not None:
        source = find_source(adapter)
        if source.adapter is None:
            raise EvaluationError(
                f"{adapter} is a run that trained all parameters", where="--adapter",
                remedy=f"--model {source.base.path}")
        folder = str(source.adapter)
        if revision is not None and source.base.revision not in (None, revision):
            raise EvaluationError(
                f"saw {revision}; {adapter} was trained on revision {source.base.revision} of its base",
                where="--revision", remedy=f"--revision {source.base.revision}, or leave it out")
        revision = revision or source.base.revision
        if model is None:
            model = source.base.path
        elif not _same_model(model, base := _recorded_base(source.adapter)):
            # Another architecture would fail when the weights are loaded; one of the same shapes would take the adapter
            # in silence.
            raise EvaluationError(
                f"{adapter} was trained on {base}, and --model is {model}", where="--adapter",
                remedy=f"--model {base}, or an adapter of this model (where it is the same model under another path, "
                "set base_model_name_or_path in the adapter's adapter_config.json)")
    if model is None:
        raise EvaluationError(
            "missing", where="--model", expected="a folder with a Hugging Face checkpoint, or a hub id")
    weights = resolve_path(folder or model)
    run = prompt_of_weights(weights) if weights.exists() else None
    if run is not None:
        head_dtype, quantization = head_dtype or run.head_dtype, quantization or run.quantization
    section = ModelSection.model_validate({
        "path": model, "revision": revision, "adapter": folder, "dtype": dtype,
        "head_dtype": None if head_dtype == "null" else head_dtype,
        "quantization": None if quantization == "null" else quantization, "trust_remote_code": trust_remote_code})
    return Subject(section, load_tokenizer(section), load_model_config(section), run)


def subject_of(options: argparse.Namespace) -> Subject:
    """find_subject of the options of eval.options.add_model."""
    return find_subject(options.model, options.adapter, revision=options.revision, dtype=options.dtype,
                        head_dtype=options.head_dtype, quantization=options.quantization,
                        trust_remote_code=options.trust_remote_code)


def generator_section(backend: Backend, max_sequences: int) -> GeneratorSection:
    """auto: vLLM where there is a GPU and vLLM is installed, else transformers."""
    if max_sequences < 1:
        raise EvaluationError(where="--max-sequences", seen=str(max_sequences), expected="a whole number >= 1")
    if backend == "auto":
        has_engine = default_device().type == "cuda" and importlib.util.find_spec("vllm") is not None
        backend = "vllm" if has_engine else "transformers"
    return GeneratorSection.model_validate({"backend": backend, "max_sequences": max_sequences})


@contextlib.contextmanager
def open_generator(
    subject: Subject, section: GeneratorSection, *, max_tokens: int, scratch: Path
) -> Iterator[Generator]:
    """The generator, closed at the end. max_tokens: of the longest prompt with the longest completion."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    generator = open_frozen_generator(
        subject.model, section, subject.tokenizer, subject.model_config, max_tokens=max_tokens, scratch=scratch)
    try:
        yield generator
    finally:
        generator.close()


def _recorded_base(adapter: Path) -> str:
    config: Mapping[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return str(config.get("base_model_name_or_path") or "")


def _same_model(given: str, recorded: str) -> bool:
    """Whether two paths or hub ids are equal, name one folder, or folders with equal weights."""
    if not recorded or given == recorded:
        return True
    here, there = resolve_path(given), resolve_path(recorded)
    if not here.exists() or not there.exists():
        # Hub ids, or a base that has moved since: the last parts of the names are all there is to compare.
        return Path(given).name == Path(recorded).name
    return here.resolve() == there.resolve() or weights_digest(here) == weights_digest(there)
