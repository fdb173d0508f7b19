"""`otherhalf.evaluate`, `otherhalf.answer` and `otherhalf.Policy`: keywords -> the options of eval's commands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from eval.answer import Agreement, agree
from eval.answer import parse as parse_answer
from rewards.errors import named, plain_warnings
from rl.errors import ConfigError

if TYPE_CHECKING:
    from eval.sampler import Sampler


LOADED = ("model", "adapter", "revision", "dtype", "head_dtype", "quantization", "trust_remote_code", "generator",
          "max_sequences")
"""Options that are taken when the model is loaded, and that no question can change."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """folder: of result.json, completions.jsonl and plots/. benchmarks: as in result.json, by name: avg@k, pass@k and
    maj@k with 95% intervals."""

    folder: Path
    benchmarks: Mapping[str, Any]


def evaluate(
    model: str | Path | None = None, adapter: str | Path | None = None, *,
    benchmarks: str | Path | Sequence[str | Path], **options: Any,
) -> Evaluation:
    """`python -m eval.run`. benchmarks: names (see `otherhalf eval --list`), reasoning_gym:TASK or JSONL files.
    options: of the command, with _ for -: k=[1, 8], max_tokens=256, out="evaluations/base", restart=True.

    Raises UserError that names the command's option."""
    from eval.run import evaluate as run_evaluation
    from eval.run import parse

    names = [benchmarks] if isinstance(benchmarks, str | Path) else benchmarks
    words = _words({"model": model, "adapter": adapter, "benchmarks": names, **options})
    with plain_warnings():
        result, folder = run_evaluation(parse(words))
    return Evaluation(folder, result["benchmarks"])


def answer(
    question: str, model: str | Path | None = None, adapter: str | Path | None = None, *, k: int = 16, **options: Any
) -> Agreement:
    """`python -m eval.answer`: what most of k samples (16) agree on. options: of the command, with _ for -."""
    with Policy(model, adapter, **{"max_sequences": max(1, min(k, 256)), **options}) as policy:
        return policy.answer(question, k)


class Policy:
    """A model, perhaps with an adapter (a folder, or a run's folder or name), to sample answers from. Its weights are
    loaded at the first question, and given back by `close`, or where a `with` block ends.

    options: of `python -m eval.answer` for every question, with _ for -: dtype, prompt, generator, ... What the model
    is loaded with (LOADED) stands here alone: `sample` and `answer` raise ConfigError for it."""

    def __init__(self, model: str | Path | None = None, adapter: str | Path | None = None, **options: Any) -> None:
        self._options = {"model": model, "adapter": adapter, **options}
        self._sampler: Sampler | None = None

    def sample(self, question: str, k: int = 1, **options: Any) -> list[str]:
        """k completions. options: temperature (1), top_p, max_tokens, seed (0), and the others of `eval.answer`."""
        return self._sample(question, {"k": k, **options})

    def answer(self, question: str, k: int = 16, **options: Any) -> Agreement:
        """What most of k completions agree on."""
        last_number = bool(options.get("last_number", self._options.get("last_number")))
        return agree(self._sample(question, {"k": k, **options}), last_number)

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sample(self, question: str, options: Mapping[str, Any]) -> list[str]:
        from eval.sampler import Sampler

        if loaded := next((name for name in options if name in LOADED), None):
            raise ConfigError("is the policy's, and not one question's", where=named(loaded),
                              remedy=f"otherhalf.Policy(..., {loaded}={options[loaded]!r})")
        given = parse_answer([*_words({**self._options, **options}), "--", question])
        with plain_warnings():
            if self._sampler is None:
                self._sampler = Sampler(given, is_for_more=True)
            return [text for text, _ in self._sampler.sample(given)]


def _words(options: Mapping[str, Any]) -> list[str]:
    """What a command line would say: `max_tokens=32` is `--max-tokens 32`, True a bare option, None and False none."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}")
        if isinstance(value, Mapping) or name == "stop_strings":
            words.append(json.dumps([value] if isinstance(value, str) else value))
        elif isinstance(value, list | tuple):
            words.append(",".join(map(str, value)))
        elif value is not True:
            words.append(str(value))
    return words
