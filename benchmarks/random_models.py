"""Shapes of real models -> checkpoint folders with random weights, for measuring speed where no real weights can be
had.

A random model draws from nearly the whole vocabulary and ends by chance: `stop_token_ids` gives every token the same
small chance of being a stop token, so that lengths are geometric with a chosen mean, cut at the limit. The shapes are
the planner's (rl/planning/shapes.py).
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from rl.planning.shapes import KNOWN, Shape, shape_config
from rl.records import Group, Prompt, Question, Rollout, ScoredGroup, TrainingGroup

# the names that Qwen2's tokenizer class expects: it adds the first where it is missing
PAD, EOS = "<|endoftext|>", "<|im_end|>"


SHAPES = {
    "qwen2.5-1.5b": KNOWN["qwen2.5-1.5b"],
    "qwen2.5-7b": KNOWN["qwen2.5-7b"],
    "tiny": Shape(128, 256, 2, 4, 2, 512, tied=True),  # heads of 32: vLLM's CPU kernels know no smaller ones
}


def model_config(shape: Shape) -> PretrainedConfig:
    return shape_config(shape, context=4096)


def write_checkpoint(shape: Shape, out: Path, *, dtype: torch.dtype) -> Path:
    """The folder, with weights drawn from seed 0 (written once) and a tokenizer."""
    if (out / "tokenizer.json").is_file():
        return out
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(model_config(shape), dtype=dtype)
    model.save_pretrained(out)
    build_tokenizer(shape.vocabulary).save_pretrained(out)
    return out


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A token for each byte, without merges, and words that no text is read as: of every other id. Byte-level, as
    Qwen2's own: transformers reads any tokenizer beside a Qwen2 model as one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fillers = (f"Ġw{number}" for number in range(len(alphabet) + 2, vocabulary))
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate([PAD, EOS, *alphabet, *fillers])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, model_max_length=4096)


def write_questions(out: Path, *, count: int, prompt_tokens: int) -> Path:
    """`count` different questions of `prompt_tokens` random letters, a token each."""
    random = Random(0)
    with out.open("w") as stream:
        for number in range(count):
            letters = "".join(random.choices(string.ascii_lowercase, k=prompt_tokens))
            stream.write(json.dumps({"id": f"q{number}", "question": letters, "answer": "0"}) + "\n")
    return out


def stop_token_ids(shape: Shape, *, mean_tokens: int, max_tokens: int) -> list[int]:
    """Random ids, as many as give completions of `mean_tokens` on average when they are cut at `max_tokens`.

    Raises ValueError where the mean is not between 1 and the limit."""
    count = max(1, round(_stop_share(mean_tokens, max_tokens) * shape.vocabulary))
    return sorted(Random(1).sample(range(2, shape.vocabulary), count))


def drawn_lengths(count: int, *, mean_tokens: int, max_tokens: int) -> list[int]:
    """`count` lengths from the same distribution, for made-up completions."""
    random, share = Random(2), _stop_share(mean_tokens, max_tokens)
    return [min(max_tokens, 1 + int(math.log(1 - random.random()) / math.log(1 - share))) for _ in range(count)]


def _stop_share(mean_tokens: int, max_tokens: int) -> float:
    """p with (1 - (1 - p)^max) / p = mean, the mean of a geometric distribution that is cut at max; by bisection."""
    if not 1 < mean_tokens < max_tokens:
        raise ValueError(f"mean_tokens: {mean_tokens}; expected more than 1 and less than max_tokens, {max_tokens}")
    low, high = 1e-7, 1.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (1 - (1 - middle) ** max_tokens) / middle > mean_tokens else (low, middle)
    return low


def made_up_groups(
    questions: int, group_size: int, prompt_tokens: int, lengths: Sequence[int], vocabulary: int
) -> list[TrainingGroup]:
    """Random tokens; advantages of 1 and -1 in turn. lengths: of all completions, group after group."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (count,), generator=generator).tolist())

    groups = []
    for question in range(questions):
        prompt = Prompt(Question(f"q{question}", "", None, {}), "", ids(prompt_tokens))
        rollouts = tuple(
            Rollout(ids(length), (-5.0,) * length, "", "stop", policy_version=0, seed=0)
            for length in lengths[question * group_size :][:group_size])
        scored = ScoredGroup(
            Group(prompt, rollouts), (0.0,) * group_size, {}, (None,) * group_size, tuple(range(group_size)), 0.0, {})
        groups.append(TrainingGroup(scored, tuple(1.0 if index % 2 else -1.0 for index in range(group_size))))
    return groups


def num_different_tokens(groups: Sequence[TrainingGroup]) -> int:
    """Each prompt and each completion once."""
    return sum(len(item.group.prompt.token_ids) + sum(len(r.token_ids) for r in item.group.rollouts) for item in groups)
