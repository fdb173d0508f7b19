"""Pre-train the tiny base model of the quick start: `python models/make_tiny_arith.py models/tiny-arith.yaml`.

Turns a seed and a few numbers (see models/tiny-arith.yaml) into an ordinary Llama checkpoint with a character-level
tokenizer, which any program that reads Hugging Face checkpoints can load. The documents (models/arith.py) are of two
kinds, worked solutions and hasty guesses, so that the result resembles a base model: the ability is there, the habit is
not. Most of the pre-training sees worked solutions; the last part sees mostly guesses, which sets the habit.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import torch
import yaml
from arith import BOXED, draw_training_sum, hasty_guess, worked_solution
from pydantic import BaseModel, ConfigDict
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = ["\n", *(chr(code) for code in range(32, 127))]


class Recipe(BaseModel):
    """What the YAML file may set; everything that decides the result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path
    # A checkpoint of this script that is trained further; its shape and tokenizer are kept. None: random weights.
    start_from: Path | None = None
    seed: int = 0
    steps: int = 2600
    documents_per_step: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    # Share of worked solutions in the first part of pre-training and in the last, and where the last part begins.
    worked_share_first: float = 0.98
    worked_share_last: float = 0.4
    last_part_from: float = 0.75
    # How a document gives its answer: ANSWER stands for the number.
    answer_line: str = BOXED
    num_layers: int = 4
    width: int = 128
    num_heads: int = 4
    intermediate_size: int = 352
    context_length: int = 256


def build_tokenizer(context_length: int) -> PreTrainedTokenizerFast:
    """One token a character: newline and printable ASCII; anything else is <unk>."""
    vocabulary = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN,
        model_max_length=context_length, clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    if recipe.start_from is not None:
        return LlamaForCausalLM.from_pretrained(recipe.start_from, dtype=torch.float32).train()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=recipe.width, intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers, num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads, max_position_embeddings=recipe.context_length,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def draw_document(random: Random, worked_share: float, answer_line: str) -> str:
    problem = draw_training_sum(random)
    is_worked = random.random() < worked_share
    solution = worked_solution(problem, answer_line) if is_worked else hasty_guess(problem, random, answer_line)
    return f"{problem.question}\n{solution}{EOS}"


def pretrain(recipe: Recipe, draw: Callable[[Random, float], str] | None = None) -> None:
    """draw: (random, share of worked solutions) -> a document that ends in EOS; None: sums."""
    draw = draw or partial(draw_document, answer_line=recipe.answer_line)
    tokenizer = build_tokenizer(recipe.context_length)
    model = build_model(recipe, tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens in the vocabulary")
    random = Random(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01, betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(recipe.steps):
        progress = step / recipe.steps
        warmup = min(1.0, (step + 1) / recipe.warmup_steps)
        for parameters in optimizer.param_groups:
            parameters["lr"] = recipe.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * progress))
        share = recipe.worked_share_first if progress < recipe.last_part_from else recipe.worked_share_last
        documents = [draw(random, share) for _ in range(recipe.documents_per_step)]
        batch = tokenizer(
            documents, padding=True, padding_side="right", return_tensors="pt", return_token_type_ids=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        # Right padding under a causal mask cannot reach a real token, so no attention mask is needed.
        loss = model(input_ids=batch["input_ids"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == recipe.steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {time.monotonic() - started:6.1f} s", flush=True)
    model.eval()
    model.save_pretrained(recipe.out)
    tokenizer.save_pretrained(recipe.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file with the fields of Recipe")
    arguments = parser.parse_args()
    pretrain(Recipe.model_validate(yaml.safe_load(arguments.recipe.read_text())))


if __name__ == "__main__":
    main()
