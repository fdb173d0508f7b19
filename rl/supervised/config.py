"""A supervised warm-up's configuration: the sections that it shares with a training run, and its own.

Model, adapter and prompt are the very sections of rl/config.py, so that the training run that follows reads the same
keys. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rl.config import (
    AdamSection,
    HeldOutSection,
    LoraSection,
    ModelSection,
    Occasion,
    PromptSection,
    Section,
    TeacherModelSection,
    setting,
    shorthand,
)


class WarmupColumnsSection(Section):
    question: str = setting("question", "column with the question")
    solution: str = setting("solution", "column with the solution: reasoning and answer, as the policy shall write it")
    messages: str = setting(
        "messages",
        "column with a conversation (a list of role and content), read where a row has no question: its last message is"
        " the solution, the user's message before it the question")


class WarmupDataSection(Section):
    path: str = setting("models/tiny-arith/questions/warmup.jsonl", "JSONL or parquet file, or Hugging Face dataset id")
    split: str = setting("train", "split of a Hugging Face dataset")
    subset: str | None = setting(None, "configuration name of a Hugging Face dataset")
    revision: str | None = setting(None, "revision of a Hugging Face dataset")
    columns: WarmupColumnsSection = setting(
        WarmupColumnsSection, "which column is what; all others are the prompt template's variables")
    limit: int | None = setting(None, "use only the first so many", unit="rows", ge=1)
    max_tokens: int | None = setting(
        None,
        "most tokens of prompt and solution together, and the length of a packed row; null: the model's context",
        unit="tokens",
        ge=2)
    too_long: Literal["error", "drop"] = setting(
        "error",
        "what becomes of longer rows. error: the first one is named and nothing runs; drop: they are left out and "
        "counted")
    held_out_rows: int = setting(
        0, "so many rows, drawn by the seed, do not train; their loss is held_out/loss", unit="rows", ge=0)


class WarmupOptimSection(AdamSection):
    batch_rows: int = setting(32, "rows per update, over all ranks; with packing, packed rows", unit="rows", ge=1)
    micro_batch_rows: int = setting(
        32,
        "rows in one forward pass; changes memory and speed, not the gradient",
        unit="rows",
        ge=1,
        may_differ=Occasion.DONE)


class WarmupEvaluationSection(HeldOutSection):
    temperature: float | None = setting(None, "sampling temperature; null: 1", gt=0)
    max_completion_tokens: int = setting(48, "held-out completions are cut at this length", unit="tokens", ge=1)
    max_sequences: int = setting(
        256, "sequences decoded at the same time", unit="sequences", ge=1, may_differ=Occasion.WARMUP | Occasion.DONE)


class WarmupCheckpointSection(Section):
    every: int = setting(200, "steps between checkpoints, from which --resume goes on; 0: none", unit="steps", ge=0)
    keep: int = setting(2, "how many of the newest are kept until the end", unit="checkpoints", ge=1)


class WarmupTrackingSection(Section):
    progress: Literal["auto", "live", "lines", "off"] = setting(
        "auto", "display on the terminal; auto: live on a terminal, lines elsewhere")


class DistillationSection(Section):
    """Learning from a teacher's whole distributions (rl/supervised/distillation.py)."""

    teacher: Annotated[TeacherModelSection, shorthand("path")] = setting(
        dict, "the frozen model, with the policy's vocabulary")
    divergence: Literal["forward_kl", "reverse_kl"] = setting(
        "forward_kl",
        "forward_kl: KL(teacher || policy), covers what the teacher does; reverse_kl: KL(policy || teacher), avoids "
        "what it does not do")
    temperature: float = setting(
        1.0, "T by which both models' logits are divided; the divergence counts T^2 times", gt=0)
    weight: float = setting(1.0, "of the divergence; the tokens' cross-entropy has 1 - weight", gt=0, le=1)


class WarmupConfig(Section):
    """Everything that decides a warm-up. The file `config.resolved.yaml` in its folder holds all of it."""

    seed: int = setting(0, "decides the order of rows, sampling and the initial adapter", ge=0)
    steps: int | None = setting(None, "updates; null: as many as `epochs` takes", unit="steps", ge=1)
    epochs: int = setting(1, "passes over the rows, where steps is null", unit="passes", ge=1)
    run_dir: Path = setting(Path("runs/warmup"), "folder of the results", may_differ=Occasion.ALWAYS)
    model: Annotated[ModelSection, shorthand("path")] = setting(ModelSection, "the base model")
    lora: LoraSection = setting(LoraSection, "the trained adapter; with lora.enabled=false all parameters train")
    merge: bool = setting(
        False,
        "also write model/, the adapter merged into its base: what a run starts from whose KL penalty's reference shall"
        " be the warmed-up policy. Full parameters are always written as model/",
        may_differ=Occasion.WARMUP)
    data: Annotated[WarmupDataSection, shorthand("path")] = setting(WarmupDataSection, "questions with solutions")
    prompt: Annotated[PromptSection, shorthand("template")] = setting(
        PromptSection, "how a question becomes a prompt; the training run that follows needs the same")
    distillation: DistillationSection | None = setting(
        None,
        "learn a teacher's next-token distributions at the tokens of solutions, best of its own; null: the tokens "
        "alone")
    packing: bool = setting(
        False, "put several solutions into one row of data.max_tokens, attention kept apart: no padding is computed")
    optim: WarmupOptimSection = setting(WarmupOptimSection, "the optimiser")
    evaluation: Annotated[WarmupEvaluationSection, shorthand("path")] = setting(
        WarmupEvaluationSection, "held-out accuracy (sampled) and held-out loss before, during and after")
    checkpoint: WarmupCheckpointSection = setting(
        WarmupCheckpointSection, "what is saved while it runs", may_differ=Occasion.WARMUP)
    tracking: WarmupTrackingSection = setting(WarmupTrackingSection, "the display", may_differ=Occasion.ALWAYS)
