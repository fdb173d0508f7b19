"""The configuration of rejection sampling: the sections that it shares with a training run, and its own.

Model, data, prompt, sampler and rewards are the very sections of rl/config.py, so that what is sampled here is what a
training run would sample, and judged as it would judge. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import model_validator

from rl.config import (
    DataSection,
    GeneratorSection,
    ModelSection,
    Occasion,
    PromptSection,
    RewardSection,
    Section,
    setting,
    shorthand,
)
from rl.supervised.config import WarmupColumnsSection, WarmupTrackingSection


class RejectSamplingSection(Section):
    samples: int = setting(8, "completions per question (n)", unit="completions", ge=1)
    temperature: float = setting(1.0, "sampling temperature; 0 is greedy, for one completion per question", ge=0)
    top_p: float = setting(1.0, "nucleus sampling", gt=0, le=1)
    top_k: int = setting(0, "sample from the k likeliest tokens, 0 from all", ge=0)
    max_completion_tokens: int = setting(
        48, "completions are cut at this length, and cut ones are never kept", unit="tokens", ge=1)
    stop_strings: list[str] = setting(
        list, "texts that end a completion, beside the template's own; what stands before is kept")
    stop_token_ids: list[int] = setting(list, "ids that end a completion, beside the model's own end-of-sequence ids")
    questions_per_chunk: int = setting(
        64,
        "questions sampled and scored together and then written: what a killed run loses at most. An engine decodes "
        "many at a time and wants more",
        unit="questions",
        ge=1)

    @model_validator(mode="after")
    def _greedy_completions_are_equal(self) -> RejectSamplingSection:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"temperature 0 makes all {self.samples} samples of a question the same one. Remedy: "
                "sampling.samples=1, or a temperature above 0")
        return self


class KeepSection(Section):
    reward_at_least: float = setting(
        1.0, "a completion is kept only if its total reward (the weighted sum) is at least this")
    low: float | None = setting(
        None, "... and its group's normalised semantic entropy is above this; null: no bound", ge=0, le=1)
    high: float | None = setting(None, "... and below this; null: no bound", ge=0, le=1)
    per_question: int | None = setting(
        4, "at most so many completions of one question; null: all that pass", unit="completions", ge=1)
    order: Literal["shortest", "random"] = setting(
        "random",
        "which of a question's completions come first. random: drawn by the seed; shortest: by tokens, which prefers "
        "answers that were guessed to those that were worked out")
    near_duplicates: float | None = setting(
        0.9,
        "a completion is dropped if it is at least so like one that is kept of its question (shared 3-word sequences, "
        "1: the same words); null: none is",
        gt=0,
        le=1)

    @model_validator(mode="after")
    def _bounds_do_not_cross(self) -> KeepSection:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"the bounds cross: low {self.low} must be below high {self.high}")
        return self


class MixSection(Section):
    path: str = setting("", "file of solutions as a warm-up reads them (JSONL, parquet or dataset id)", min_length=1)
    ratio: float = setting(1.0, "rows of it for each kept completion, drawn by the seed, none twice", gt=0)
    columns: WarmupColumnsSection = setting(WarmupColumnsSection, "which of its columns is what")


class RejectConfig(Section):
    """Everything that decides a run of rejection sampling. The file `config.resolved.yaml` in its folder holds all of
    it."""

    seed: int = setting(0, "decides the samples, the random order and the rows that are mixed in", ge=0)
    run_dir: Path = setting(Path("runs/reject"), "folder of the results", may_differ=Occasion.ALWAYS)
    model: Annotated[ModelSection, shorthand("path")] = setting(
        ModelSection, "the policy that is sampled from, with model.adapter")
    data: Annotated[DataSection, shorthand("path")] = setting(
        DataSection, "the questions; with data.shuffle they are sampled in random order, and written in the file's")
    prompt: Annotated[PromptSection, shorthand("template")] = setting(
        PromptSection, "how a question becomes a prompt; the warm-up that follows needs the same")
    generator: Annotated[GeneratorSection, shorthand("backend")] = setting(
        GeneratorSection,
        "the sampler; its weights do not change: servers are brought the policy once, by generator.sync")
    sampling: RejectSamplingSection = setting(RejectSamplingSection, "what is sampled")
    rewards: list[Annotated[RewardSection, shorthand("use")]] = setting(
        lambda: [RewardSection(use="rewards.accuracy:accuracy")],
        "what judges completions, added up with their weights",
        min_length=1)
    keep: KeepSection = setting(KeepSection, "which completions are kept", may_differ=Occasion.CHOICE)
    mix: list[Annotated[MixSection, shorthand("path")]] = setting(
        list, "other solutions that are put beside the kept ones", may_differ=Occasion.CHOICE)
    tracking: WarmupTrackingSection = setting(WarmupTrackingSection, "the display", may_differ=Occasion.ALWAYS)

    @model_validator(mode="after")
    def _entropy_needs_a_group(self) -> RejectConfig:
        if self.sampling.samples == 1 and (self.keep.low is not None or self.keep.high is not None):
            raise ValueError(
                "keep.low and keep.high are bounds on the semantic entropy of a question's completions, and "
                "sampling.samples=1 makes one. Remedy: sampling.samples=8, or keep.low=null keep.high=null")
        return self
