"""Stop strings that hold control tokens: where they end a completion, and what rewards see of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rl.config import GeneratorSection
from rl.generate.build import build_generator
from rl.generate.protocol import Request, SamplingParameters, request_seed
from rl.generate.stop_strings import text_before
from tests.reference.tiny_run import inputs, prompts, tiny_policy

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("stop_strings", "expected"),
    [
        ((), "1+1=23"), (("never",), "1+1=23"), (("3",), "1+1=2"), (("<unk>",), "1+1="), (("=<unk>",), "1+1"),
        (("<unk>2<pad>",), "1+1="), (("3", "<pad>"), "1+1=2"),
        (("=2",), "1+1=23")],  # a control token stands between
)
def test_rewards_see_what_stands_before_and_no_control_tokens(stop_strings: tuple[str, ...], expected: str) -> None:
    tokenizer = inputs().tokenizer
    ids = tokenizer("1+1=<unk>2<pad>3<eos>", add_special_tokens=False)["input_ids"]
    assert text_before(tokenizer, ids, stop_strings) == expected


def test_a_stop_string_that_holds_control_tokens_ends_a_completion() -> None:
    policy = tiny_policy()
    generator = build_generator(GeneratorSection(max_sequences=64), policy)
    hot = SamplingParameters(5.0, 1.0, 0, 24)  # at which control tokens are drawn too
    wanted = [Request(p, tuple(request_seed(0, "t", 0, p.question.id, i) for i in range(8))) for p in prompts(4)]
    whole = [r for g in generator.generate(wanted, hot) for r in g.rollouts]
    cut = [r for g in generator.generate(wanted, dataclasses.replace(hot, stop_strings=("<unk>", "<pad>"))) for r in
           g.rollouts]
    controls = {policy.tokenizer.convert_tokens_to_ids(token) for token in ("<unk>", "<pad>")}
    stopped = 0
    for before, after in zip(whole, cut, strict=True):
        first = next((i for i, token in enumerate(before.token_ids) if token in controls), None)
        assert after.token_ids == (before.token_ids if first is None else before.token_ids[: first + 1])
        if first is not None:
            stopped += 1
            assert after.finish_reason == "stop"
            assert after.text == policy.tokenizer.decode(before.token_ids[:first])
    assert stopped > 4
