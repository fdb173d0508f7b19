"""One model, loaded once, that completes single questions."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from eval.benchmarks import Benchmark, Grader, LoadedBenchmark, Protocol
from eval.prompt import tell_differences, with_prompt
from eval.subject import generator_section, open_generator, subject_of
from eval.tasks import Asked, EvaluationError, Task, build_task
from rl.generate.protocol import Generator
from rl.records import Question


class Sampler:
    """The model that the options of eval/answer.py name; it is loaded with the first question. is_for_more: further
    questions may have a larger k than the first. Raises, there and in `sample`, what names the option that is wrong."""

    def __init__(self, options: argparse.Namespace, *, is_for_more: bool = False) -> None:
        self._is_for_more = is_for_more
        self._subject = subject_of(options)
        self._stack = contextlib.ExitStack()
        self._generator: Generator | None = None
        self._max_tokens = 0

    def sample(self, options: argparse.Namespace) -> list[tuple[str, bool]]:
        """(text, whether it was cut) of options.k completions of options.question."""
        if not options.question.strip():
            raise EvaluationError("the question is empty; expected its text, in quotes")
        task = self._task(options)
        if options.k > 1 and options.temperature == 0.0:
            print("note: at temperature 0 all completions are the same, and their agreement says nothing",
                  file=sys.stderr)
        (group,) = self._opened(options, task).generate(task.requests(task.prompts), task.parameters)
        return [(rollout.text, rollout.is_truncated) for rollout in group.rollouts]

    def close(self) -> None:
        self._stack.close()
        self._generator = None

    def _opened(self, options: argparse.Namespace, task: Task) -> Generator:
        """An engine has room for sequences of the length that it was opened with."""
        if self._generator is None or task.max_tokens > self._max_tokens:
            self.close()
            most = options.max_sequences if self._is_for_more else options.k
            section = generator_section(
                options.generator, min(options.max_sequences, most) if options.max_sequences > 0 else 0)
            scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._generator = self._stack.enter_context(
                open_generator(self._subject, section, max_tokens=task.max_tokens, scratch=scratch))
            self._max_tokens = task.max_tokens
        return self._generator

    def _task(self, options: argparse.Namespace) -> Task:
        # A task has a grader; there is no gold answer here, and it is never asked.
        benchmark = Benchmark("question", "a question", Protocol(options.k, 1.0, 1.0, 2048, "our own"),
                              grader=Grader("rewards.controls:random_reward"))
        loaded = LoadedBenchmark(
            benchmark, (Question("question", options.question, None, {}),), 1, 0, 0, "the command line", "", ())
        asked = Asked(ks=(options.k,), temperature=options.temperature, top_p=options.top_p,
                      max_tokens=options.max_tokens, prompt=options.prompt, seed=options.seed)
        subject = self._subject
        tell_differences(options, subject.run, ())
        return build_task(benchmark, loaded, with_prompt(asked, options, subject.run), subject.tokenizer,
                          subject.context, end_ids=subject.end_ids)
