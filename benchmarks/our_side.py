"""A configuration -> our trainer, built as `rl.run` builds it, but stepped by the benchmark. The other side is in
trl_side.py."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from accelerate import Accelerator

from rl.config import RunConfig
from rl.generate.build import open_generator
from rl.questions.inputs import Inputs, read_inputs
from rl.questions.order import QuestionOrder
from rl.records import Prompt
from rl.run import Setup, build_trainer, generator_plan, load_run_policy
from rl.runs.folder import prepare
from rl.trainer import Parts, Trainer


@dataclass(frozen=True, slots=True)
class OurSide:
    trainer: Trainer
    parts: Parts
    inputs: Inputs


@contextlib.contextmanager
def open_trainer(config: RunConfig, *, cpu: bool = True) -> Iterator[OurSide]:
    """The trainer of a new run, on the CPU unless `cpu` is false, with its files in config.run_dir; `trainer.step()` is
    one training step."""
    inputs = read_inputs(config)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(prepare(config.run_dir, resume=False))
        accelerator = Accelerator(mixed_precision="no", cpu=cpu)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        policy = load_run_policy(config, inputs, accelerator)
        setup = Setup(config, inputs, accelerator, policy, folder)
        generator = open_generator(config.generator, policy, generator_plan(setup))
        trainer, parts = build_trainer(setup, generator, stack)
        # A run catches signals to save itself; a benchmark has nothing to save and stops at once.
        for number, handler in handlers.items():
            signal.signal(number, handler)
        yield OurSide(trainer, parts, inputs)


def prompts_in_training_order(config: RunConfig, inputs: Inputs, steps: int) -> list[Prompt]:
    """The prompts that our trainer draws in its first `steps` steps, in order, so that the other side can be given the
    same."""
    order = QuestionOrder(len(inputs.prompts), seed=config.seed, shuffle=config.data.shuffle)
    return [inputs.prompts[i] for _ in range(steps) for i in order.next(config.sampling.questions_per_step)]
