"""A run's configuration: frozen pydantic models, one per section of the YAML file.

Every field has a unit, a range, a meaning (which `--help` prints) and a reader; unknown keys are refused. Loading,
overrides and error messages are in rl/configuration/loading.py, the printed help in rl/configuration/help.py, what may
differ where something goes on in rl/configuration/resuming.py. Imports no torch.
"""

from __future__ import annotations

import datetime
import functools
from enum import Flag, auto
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)


class Occasion(Flag):
    """When a setting may have another value than before. On all other occasions the result would be neither the old
    configuration's nor the new one's."""

    NEVER = 0
    RUN = auto()  # a training run goes on from a checkpoint, and its past stays as it would have been
    WARMUP = auto()  # a warm-up goes on from a checkpoint
    SAMPLING = auto()  # rejection sampling goes on with what it has sampled
    CHOICE = auto()  # rejection sampling chooses again among its samples
    DONE = auto()  # a pipeline passes over a stage that is done, whose result would be the same
    ALWAYS = RUN | WARMUP | SAMPLING | CHOICE | DONE  # for what is only shown, or says where results go
    MEMORY = RUN | DONE  # for what decides memory and speed
    SERVERS = RUN | SAMPLING | DONE  # for where servers are, and how long to wait for them


def setting(default: Any, meaning: str, *, unit: str = "", may_differ: Occasion = Occasion.NEVER, **bounds: Any) -> Any:
    """A field with its meaning and unit; `bounds` are pydantic's (ge, gt, le, lt, min_length).

    may_differ: when it, or all keys of a section, may have another value."""
    make = {"default_factory": default} if callable(default) else {"default": default}
    extra: dict[str, JsonValue] = {"unit": unit, "may_differ": may_differ.value}
    return Field(description=meaning, json_schema_extra=extra, **make, **bounds)


class Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """pydantic would read `steps: true` as 1; text that names the value makes it fail with the key's own
        message."""
        assert info.field_name is not None
        is_switch = cls.model_fields[info.field_name].annotation is bool
        return str(value).lower() if isinstance(value, bool) and not is_switch else value


def shorthand(key: str) -> BeforeValidator:
    """`generator: transformers` means `generator: {backend: transformers}`."""
    return BeforeValidator(functools.partial(_spell_out, key))


def _spell_out(key: str, value: Any) -> Any:
    return {key: value} if isinstance(value, str) else value


class ModelSection(Section):
    path: str = setting("models/tiny-arith", "folder of a Hugging Face checkpoint, or a hub id")
    revision: str | None = setting(None, "hub revision (branch, tag or commit)")
    adapter: str | None = setting(None, "folder of a PEFT adapter to start from; null starts from a fresh one")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "dtype of the frozen base; auto: bfloat16 on a GPU, float32 on the CPU. Trained weights are float32")
    head_dtype: Literal["float32"] | None = setting(
        None,
        "dtype of the output layer's product, in trainer and sampler. null: the model's; float32: logits are "
        "not rounded to bfloat16, and trainer and sampler agree better (vLLM from 0.26; docs/precision.md)")
    quantization: Literal["nf4"] | None = setting(
        None,
        "how the frozen base's linear layers are held. null: in dtype; nf4: in 4 bits a weight (QLoRA, bitsandbytes), "
        "dequantised to dtype for each product: for an adapter, never merged (docs/precision.md)")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = setting(
        "auto", "attention of the trained model; auto: completions share their question's prompt, computed once, where "
        "the architecture allows it; any other: transformers' own, each completion in a padded row after its prompt")
    gradient_checkpointing: Literal["off", "selective", "full"] = setting(
        "off",
        "what the backward pass computes again in place of keeping it. selective: what is cheap, norms and gated "
        "products; full: every layer, a third slower. true means full, false off",
        may_differ=Occasion.MEMORY)
    trust_remote_code: bool = setting(False, "run Python code that comes with the checkpoint")

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _was_a_switch(cls, value: object) -> object:
        return {"true": "full", "false": "off"}.get(str(value).lower(), value)


class TeacherModelSection(Section):
    """Which model teaches: frozen, with the student's vocabulary."""

    path: str = setting("", "folder of the teacher's Hugging Face checkpoint, or a hub id")
    revision: str | None = setting(None, "hub revision (branch, tag or commit)")
    adapter: str | None = setting(
        None, "folder of a PEFT adapter, merged into the teacher when it is loaded; null: none")
    dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "dtype of the teacher; auto: bfloat16 on a GPU, float32 on the CPU")
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = setting(
        "auto", "attention of the teacher, as in model.attention")
    trust_remote_code: bool = setting(False, "run Python code that comes with the teacher's checkpoint")

    @field_validator("path")
    @classmethod
    def _names_a_model(cls, path: str) -> str:
        if not path.strip():
            raise ValueError("no teacher is named; expected a folder with a Hugging Face checkpoint, or a hub id")
        return path

    def as_model(self) -> ModelSection:
        """The section of a trained model with these keys, as what loads models takes it."""
        return ModelSection(
            path=self.path, revision=self.revision, adapter=self.adapter, dtype=self.dtype, attention=self.attention,
            trust_remote_code=self.trust_remote_code)


class TeacherSection(TeacherModelSection):
    """The teacher of on-policy distillation (rl/teacher/advantages.py)."""

    weight: float = setting(
        1.0,
        "factor of the per-token advantage ln pi_teacher - ln pi_student, which is added to the rewards' advantage",
        gt=0)
    cap: float | None = setting(
        None, "bound on what the teacher adds to one token's advantage, after the factor; null: none", gt=0)
    backend: Literal["local", "vllm_server"] = setting(
        "local",
        "who is asked. local: the frozen model in each training process, on its device; vllm_server: running `vllm "
        "serve` processes of the teacher (path then names the tokenizer to compare)")
    urls: list[str] = setting(
        list, "vllm_server: addresses of the servers, such as http://localhost:8000", may_differ=Occasion.SERVERS)
    served_model: str | None = setting(
        None, "vllm_server: name under which they serve the teacher; null: what the first lists first")
    api_key_env: str | None = setting(
        None,
        "vllm_server: name of the environment variable that holds the API key; null: no key",
        may_differ=Occasion.SERVERS)
    max_requests: int = setting(
        64,
        "vllm_server: requests of each training process under way on one server at the same time",
        unit="requests",
        ge=1,
        may_differ=Occasion.SERVERS)
    start_timeout_s: float = setting(
        900.0, "vllm_server: how long the start waits for the servers", unit="s", gt=0, may_differ=Occasion.SERVERS)
    request_timeout_s: float = setting(
        600.0,
        "vllm_server: a request without a reply for so long is sent again",
        unit="s",
        gt=0,
        may_differ=Occasion.SERVERS)

    @model_validator(mode="after")
    def _settings_fit_the_backend(self) -> TeacherSection:
        if self.backend == "vllm_server" and not self.urls:
            raise ValueError(
                "backend vllm_server needs urls; expected the servers' addresses, such as "
                "teacher.urls=[http://localhost:8000]")
        if self.backend == "vllm_server" and self.adapter is not None:
            raise ValueError(
                "adapter is for backend local. Remedy: start the server with --lora-modules NAME=FOLDER, and "
                "teacher.served_model=NAME; or serve the merged model (python -m rl.export)")
        is_set = {
            "urls": bool(self.urls), "served_model": self.served_model is not None,
            "api_key_env": self.api_key_env is not None}
        if self.backend == "local" and (keys := [key for key, value in is_set.items() if value]):
            raise ValueError(f"{keys[0]} is for backend vllm_server and is not read by local. Remedy: leave it out, or "
                             "teacher.backend=vllm_server")
        return self


class LoraSection(Section):
    enabled: bool = setting(True, "train a LoRA adapter; false trains all parameters")
    rank: int = setting(16, "rank of the update", ge=1, le=1024)
    alpha: float = setting(32.0, "scale of the update is alpha / rank", gt=0)
    dropout: float = setting(
        0.0, "dropout on the adapter's input while training; above 0 PEFT's own forward computes, slower", ge=0, lt=1)
    targets: str | list[str] = setting("all-linear", "names of the adapted modules, or all-linear")


class ColumnsSection(Section):
    question: str = setting("question", "column with the question")
    answer: str | None = setting(
        "answer", "column with the gold answer; null reads none, and keeps columns that usually hold one from rewards")
    id: str = setting("id", "column with the row's id; rows without one are named by their line")


class DataSection(Section):
    path: str = setting(
        "models/tiny-arith/questions/train.jsonl",
        "JSONL or parquet file, Hugging Face dataset id, or reasoning_gym:TASK")
    task: dict[str, JsonValue] = setting(
        dict, "parameters of the reasoning-gym task, with seed (0) and size (limit, or 500); see docs/rewards.md")
    split: str = setting("train", "split of a Hugging Face dataset")
    subset: str | None = setting(None, "configuration name of a Hugging Face dataset")
    revision: str | None = setting(None, "revision of a Hugging Face dataset")
    columns: ColumnsSection = setting(ColumnsSection, "which column is what; all others are passed to rewards by name")
    limit: int | None = setting(None, "use only the first so many", unit="questions", ge=1)
    max_prompt_tokens: int = setting(512, "longer prompts are dropped and counted", unit="tokens", ge=1)
    shuffle: bool = setting(True, "new random order in each epoch, from the run's seed")


class AnchorsSection(Section):
    """A few labelled questions beside those that train without labels."""

    path: str = setting("", "labelled questions: JSONL or parquet file, Hugging Face dataset id, or reasoning_gym:TASK")
    split: str = setting("train", "split of a Hugging Face dataset")
    subset: str | None = setting(None, "configuration name of a Hugging Face dataset")
    revision: str | None = setting(None, "revision of a Hugging Face dataset")
    columns: ColumnsSection = setting(ColumnsSection, "which column is what; all others are passed to the reward")
    limit: int | None = setting(None, "use only the first so many", unit="questions", ge=1)
    mixed_in: int = setting(
        4, "how many of sampling.questions_per_step are anchors, in an order of their own", unit="questions", ge=1)
    reward: str = setting("rewards.accuracy:accuracy", "their only reward, which may read their answers")
    weight: float = setting(
        1.0, "factor on their advantages; below 1 where their rewards differ more than the others' and nothing divides "
        "by the deviation (dr_grpo)", gt=0)

    @field_validator("path")
    @classmethod
    def _names_a_file(cls, path: str) -> str:
        if not path.strip():
            raise ValueError("no questions are named; expected a file or dataset of questions with answers")
        return path

    def as_data(self) -> DataSection:
        """The section of training questions with these keys, as what reads questions takes it."""
        return DataSection(path=self.path, split=self.split, subset=self.subset, revision=self.revision,
                           columns=self.columns, limit=self.limit)


class PromptSection(Section):
    template: str = setting("question_line", "name of a template in prompts/, or a path to one")
    chat_template: Literal["auto", "always", "never"] = setting(
        "auto", "render through the tokenizer's chat template; auto: where the tokenizer has one")
    chat_template_kwargs: dict[str, JsonValue] = setting(
        dict, "keyword arguments of the chat template, such as enable_thinking: false, or date_string: 26 Jul 2024")
    date: datetime.date | None = setting(
        None,
        "the day, as 2026-11-28, that a chat template which prints one is given; null: the day on which the run begins,"
        " which its folder keeps",
        # Questions that render otherwise than before are found by their digests.
        may_differ=Occasion.RUN | Occasion.WARMUP | Occasion.SAMPLING)

    def on(self, day: datetime.date | None) -> PromptSection:
        """Itself where it names a day, else the same with this one."""
        return self if self.date is not None else self.model_copy(update={"date": day})


class GeneratorSection(Section):
    backend: Literal["transformers", "vllm", "vllm_server"] = setting(
        "transformers",
        "which sampler. transformers: embedded; vllm: an engine in each training process, on its device; vllm_server: "
        "running `vllm serve` processes")
    sync: Literal["auto", "shared", "adapter", "merge"] = setting(
        "auto",
        "how the sampler gets new weights. shared (transformers): samples from the trained module itself, no second "
        "copy; adapter (vLLM): only the LoRA adapter travels; merge: base + BA computed in float32 into the sampler's "
        "copy, in bfloat16 with the loss of what rounds away. auto: merge for transformers where the copy is small and "
        "float32, else shared; for vLLM adapter in bfloat16 and, of a trainer on a GPU, to servers, else merge")
    max_sequences: int = setting(
        256, "sequences decoded at the same time (per engine)", unit="sequences", ge=1, may_differ=Occasion.MEMORY)
    max_mismatch: float | None = setting(
        None,
        "stop when the mean |trainer's - sampler's log-probability| exceeds this; null: 1e-3 in float32, 0.1 in "
        "bfloat16",
        unit="nats",
        gt=0,
        may_differ=Occasion.RUN)
    proof_every: int = setting(
        10,
        "steps between proofs that the sampler has the policy (the first one follows the first update); 0: none",
        unit="steps",
        ge=0,
        may_differ=Occasion.RUN)
    proof_completions: int = setting(
        8, "completions whose log-probabilities each proof compares", unit="completions", ge=1, may_differ=Occasion.RUN)
    max_staleness: Literal[0, 1] = setting(
        0,
        "vllm_server: 1 samples step k+1 while step k trains, corrected by importance sampling; 0 is exactly on-policy",
        unit="steps")
    memory_share: float | None = setting(
        None,
        "vllm: share of the GPU's memory for the engine, weights included; null: what the memory estimate leaves",
        gt=0,
        lt=1,
        may_differ=Occasion.MEMORY)
    cache_gb: float | None = setting(
        None,
        "vllm: size of the key/value cache; null: on a GPU what memory_share leaves, on a CPU what max_sequences need",
        unit="GB",
        gt=0,
        may_differ=Occasion.MEMORY)
    eager: bool | None = setting(
        None, "vllm: no compilation, no CUDA graphs; null: true on a CPU, where compiling takes minutes")
    sleep: Literal["off", "offload", "discard"] = setting(
        "off",
        "vllm on a GPU: free the engine's memory while training. offload: weights go to host memory; discard: weights "
        "are dropped and pushed again",
        may_differ=Occasion.MEMORY)
    urls: list[str] = setting(
        list, "vllm_server: addresses of the servers, such as http://localhost:8000", may_differ=Occasion.SERVERS)
    served_model: str | None = setting(
        None,
        "vllm_server: name under which they serve the base model; null: the one that they list first",
        may_differ=Occasion.RUN | Occasion.SAMPLING)
    api_key_env: str | None = setting(
        None,
        "vllm_server: name of the environment variable that holds the API key; null: no key",
        may_differ=Occasion.SERVERS)
    exchange_dir: str | None = setting(
        None,
        "vllm_server: folder in which new versions are written for the servers, which must see it under the same path; "
        "null: the run's folder",
        may_differ=Occasion.SERVERS)
    start_timeout_s: float = setting(
        900.0, "vllm_server: how long the start waits for the servers", unit="s", gt=0, may_differ=Occasion.SERVERS)
    request_timeout_s: float = setting(
        600.0,
        "vllm_server: a request without a reply for so long is sent again",
        unit="s",
        gt=0,
        may_differ=Occasion.SERVERS)

    @model_validator(mode="after")
    def _settings_fit_the_backend(self) -> GeneratorSection:
        syncs = ("auto", "shared", "merge") if self.backend == "transformers" else ("auto", "adapter", "merge")
        if self.sync not in syncs:
            raise ValueError(
                f"sync {self.sync} does not go with backend {self.backend}; expected one of: {', '.join(syncs)}")
        if self.backend == "vllm_server" and not self.urls:
            raise ValueError(
                "backend vllm_server needs urls; expected the servers' addresses, such as "
                "generator.urls=[http://localhost:8000]")
        is_set = {
            "vllm": {
                "memory_share": self.memory_share is not None, "cache_gb": self.cache_gb is not None,
                "eager": self.eager is not None, "sleep": self.sleep != "off"},
            "vllm_server": {
                "urls": bool(self.urls), "served_model": self.served_model is not None,
                "api_key_env": self.api_key_env is not None, "exchange_dir": self.exchange_dir is not None,
                "max_staleness": self.max_staleness > 0}}
        for backend, key in (
            (backend, key) for backend, keys in is_set.items() for key, value in keys.items() if value
        ):
            if self.backend != backend:
                raise ValueError(
                    f"{key} is for backend {backend} and is not read by {self.backend}. Remedy: leave it out, or "
                    f"generator.backend={backend}")
        return self


class SamplingSection(Section):
    questions_per_step: int = setting(32, "questions sampled in each step, over all ranks", unit="questions", ge=1)
    group_size: int = setting(8, "completions per question (G)", unit="completions", ge=2)
    temperature: float = setting(1.0, "sampling temperature; enters the trainer's log-probabilities too", gt=0)
    top_p: float = setting(1.0, "nucleus sampling; below 1 the gradient is biased and the run warns", gt=0, le=1)
    top_k: int = setting(
        0, "sample from the k likeliest tokens, 0 from all; above 0 the gradient is biased and the run warns", ge=0)
    max_completion_tokens: int = setting(48, "completions are cut at this length", unit="tokens", ge=1)
    stop_strings: list[str] = setting(
        list, "texts that end a completion, beside the template's own; rewards see what stands before")
    stop_token_ids: list[int] = setting(list, "ids that end a completion, beside the model's own end-of-sequence ids")


class VotesSection(Section):
    """Votes of a moving average of what trains, for rewards.majority:voted and share_of_votes."""

    samples: int = setting(8, "completions that the average samples of each question", unit="completions", ge=1)
    decay: float = setting(
        0.99, "share of itself that the average keeps in each step; 1 is the policy of the start, 0 the present one",
        ge=0, le=1)


class RewardSection(Section):
    use: str = setting("rewards.semantic_entropy:semantic_entropy", "package.module:name or file.py:name")
    weight: float = setting(1.0, "factor in the sum of rewards")
    name: str | None = setting(None, "name in metrics and rollouts; null: the function's name")
    style: Literal["group", "trl"] = setting(
        "group", "group: called once per group; trl: a TRL reward function, called on a flat batch")
    arguments: dict[str, JsonValue] = setting(dict, "keyword arguments passed to the function on each call")


class SelectionSection(Section):
    low: float | None = setting(
        None, "a group trains only if its normalised semantic entropy is above this; null: no bound", ge=0, le=1)
    high: float | None = setting(None, "... and below this; null: no bound", ge=0, le=1)
    unanswered: Literal["apart", "together"] = setting(
        "apart", "completions without an answer in that entropy. apart: each is a cluster, so that a group that hardly "
        "answers counts as undecided; together: they are one cluster")
    mode: Literal["drop", "refill", "zero"] = setting(
        "drop",
        "what becomes of refused groups, those with equal rewards among them. drop: the batch is smaller; refill: "
        "further questions are sampled; zero: they count in the loss denominator with advantage 0")
    max_refills: int = setting(3, "rounds of further sampling per step under refill", unit="rounds", ge=0)
    min_votes: int | None = setting(
        None,
        "a group whose largest cluster of answers is smaller has no consensus: whatever the bounds say, each of its "
        "completions trains with advantage -penalty (RESTRAIN); null: no such rule",
        unit="completions",
        ge=2)
    penalty: float = setting(
        1.0, "a completion's advantage in a group without consensus is minus this, under min_votes; neither "
        "advantage.cap nor advantage.flips changes it", gt=0)

    @model_validator(mode="after")
    def _thresholds_do_not_cross(self) -> SelectionSection:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"the thresholds cross: low {self.low} must be below high {self.high}")
        return self


class FlipsSection(Section):
    """Weights by what a question's majority answer did at earlier visits (rl/scoring/flips.py)."""

    enabled: bool = setting(
        False, "scale a group's advantages by how steady its question's majority answer has been (TTRL-Guard)")
    window: int = setting(5, "how many visits of a question count", unit="visits", ge=1)
    unstable: float = setting(
        0.5, "what a question whose majority changed at each visit loses of its weight 1", ge=0, le=1)
    contradiction: float = setting(
        0.3,
        "what a group loses whose majority keeps changing and is large nevertheless; half of it is lost for a while by "
        "a question that agreed from the first visit on",
        ge=0,
        le=1)
    max_flip_rate: float = setting(0.3, "above this share of visits a majority keeps changing", ge=0, le=1)
    min_agreement: float = setting(0.6, "above this share of the group a majority is large", ge=0, le=1)


class AdvantageSection(Section):
    name: Literal["grpo", "dr_grpo", "rloo", "reinforce++"] = setting(
        "grpo", "how rewards [G] become advantages [G]; see rl/advantages.py")
    std: Literal["sample", "population"] = setting(
        "sample", "which standard deviation grpo and reinforce++ divide by (sample: G - 1, as TRL)")
    eps: float = setting(1e-4, "added to the standard deviation", ge=0)
    cap: float | None = setting(None, "bound on |A_i|; null: none", gt=0)
    normalise: Literal["sum", "each"] = setting(
        "sum",
        "what grpo normalises within a group. sum: the weighted sum of the rewards; each: every reward by itself, "
        "before they add up with their weights, and the result over the batch (GDPO)")

    flips: FlipsSection = setting(FlipsSection, "weights by flips of a question's majority answer between visits")

    @model_validator(mode="after")
    def _each_is_for_grpo(self) -> AdvantageSection:
        if self.normalise == "each" and self.name != "grpo":
            raise ValueError(
                f"normalise each is for grpo, which divides by a group's standard deviation, and name is {self.name}. "
                "Remedy: advantage.name=grpo, or advantage.normalise=sum")
        return self


class CorrectionSection(Section):
    mode: Literal["none", "truncate", "mask_token", "mask_sequence"] = setting(
        "none",
        "correct for the sampler's numerics with s_t = pi_old / pi_sampler. truncate: min(s_t, cap); mask_token: drop "
        "tokens with s_t outside [low, high]; mask_sequence: drop sequences whose geometric mean of s_t is outside")
    cap: float = setting(2.0, "bound of truncate", gt=0)
    low: float = setting(0.5, "lower bound of the masks", ge=0)
    high: float = setting(2.0, "upper bound of the masks", gt=0)

    @model_validator(mode="after")
    def _bounds_do_not_cross(self) -> CorrectionSection:
        if self.low >= self.high:
            raise ValueError(f"the bounds cross: low {self.low} must be below high {self.high}")
        return self


class CovarianceSection(Section):
    mode: Literal["none", "clip", "kl"] = setting(
        "none",
        "what is done about the tokens whose log-probability and advantage are largest together, which use up the "
        "policy's entropy. clip: some of those between low and high get no policy gradient (Clip-Cov); kl: the largest "
        "are held near the policy of the batch's start (KL-Cov), which needs several updates a batch")
    share: float = setting(
        0.002, "how many: this share of the tokens of the batch's groups that train, at least one", gt=0, le=1)
    low: float = setting(
        1.0, "clip: only tokens whose (A - mean A)(ln pi - mean ln pi) is above this; means over the batch")
    high: float = setting(5.0, "clip: ... and below this")
    weight: float = setting(1.0, "kl: weight of |ln pi - ln pi_old|", gt=0)

    @model_validator(mode="after")
    def _bounds_do_not_cross(self) -> CovarianceSection:
        if self.low >= self.high:
            raise ValueError(f"the bounds cross: low {self.low} must be below high {self.high}")
        return self


class LossSection(Section):
    name: Literal["clip", "cispo", "gspo"] = setting("clip", "per-token objective; see rl/losses.py")
    aggregation: Literal["token", "sequence", "constant"] = setting(
        "token",
        "token: sum / all loss tokens (DAPO); sequence: mean of per-sequence means (GRPO); constant: sum / "
        "(sequences * max_completion_tokens) (Dr. GRPO)")
    clip_low: float = setting(0.2, "the ratio is clipped below at 1 - clip_low", ge=0, le=1)
    clip_high: float = setting(0.2, "the ratio is clipped above at 1 + clip_high", ge=0)
    kl_weight: float = setting(
        0.0, "weight of the k3 KL penalty against the model with its adapter off; 0 runs no reference forward", ge=0)
    entropy_bonus: float = setting(0.0, "weight of the mean token entropy, which is maximised", ge=0)
    top_entropy_share: float = setting(
        1.0, "only this share of the batch's tokens, those of highest entropy, gets a gradient", gt=0, le=1)
    covariance: Annotated[CovarianceSection, shorthand("mode")] = setting(
        CovarianceSection, "the tokens that use up the policy's entropy (arXiv:2505.22617)")
    mask_truncated: bool = setting(
        False,
        "completions cut at the limit are left out of the loss and its denominators; they count in their group's "
        "rewards")
    correction: CorrectionSection = setting(CorrectionSection, "correction for the sampler's numerics")


class AdamSection(Section):
    """AdamW and its learning rate: of a training run, and of a supervised warm-up."""

    lr: float = setting(5e-4, "peak learning rate of AdamW", gt=0)
    betas: tuple[float, float] = setting((0.9, 0.999), "AdamW's decay rates")
    eps: float = setting(1e-8, "AdamW's epsilon", gt=0)
    weight_decay: float = setting(0.0, "AdamW's decoupled weight decay", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "constant",
        "learning rate after the learning-rate warm-up, towards 0 behind the last step for linear and cosine")
    warmup_steps: int = setting(
        0, "steps of linear learning-rate warm-up: step i of n has i / n of the rate", unit="steps", ge=0)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this global norm", gt=0)


class OptimSection(AdamSection):
    epochs: int = setting(1, "passes over each sampled batch", ge=1)
    minibatches: int = setting(1, "optimiser updates per pass: the batch is split into so many", ge=1)
    micro_batch_tokens: int = setting(
        8192,
        "most tokens (padding included) in one forward pass; changes memory and speed, not the gradient",
        unit="tokens",
        ge=1,
        may_differ=Occasion.MEMORY)


class BenchmarkSection(Section):
    name: str = setting(
        "", "a benchmark's name, reasoning_gym:TASK or a JSONL file; python -m eval.run --list shows them")
    every: int = setting(
        50, "steps between evaluations, beside those before and after; 0: only these", unit="steps", ge=0)
    samples: int | None = setting(
        None, "completions per question; null: the benchmark's protocol", unit="completions", ge=1)
    limit: int | None = setting(None, "use only the first so many questions", unit="questions", ge=1)
    temperature: float | None = setting(
        None, "sampling temperature, 0 is greedy; null: the benchmark's protocol", ge=0, le=2)
    top_p: float | None = setting(None, "nucleus sampling; null: the benchmark's protocol", gt=0, le=1)
    max_tokens: int | None = setting(
        None, "completions are cut at this length; null: sampling.max_completion_tokens", unit="tokens", ge=1)
    grader: str | None = setting(None, "a reward with values in [0, 1]; null: the benchmark's own")


class HeldOutSection(Section):
    """Held-out questions and how they are sampled: of a training run, and of a warm-up."""

    path: str | None = setting(
        None, "held-out questions with answers (JSONL, parquet, dataset id, reasoning_gym:TASK); null: none")
    task: dict[str, JsonValue] = setting(
        dict,
        "parameters of the reasoning-gym task, with seed (1000000000) and size; questions that occur in training are "
        "left out")
    split: str = setting("test", "split of a Hugging Face dataset")
    subset: str | None = setting(None, "configuration name of a Hugging Face dataset")
    revision: str | None = setting(None, "revision of a Hugging Face dataset")
    columns: ColumnsSection = setting(ColumnsSection, "which column is what")
    num_questions: int | None = setting(256, "use only the first so many; null: all", unit="questions", ge=1)
    samples: int = setting(8, "completions per question: avg@samples", unit="completions", ge=1)
    every: int = setting(10, "steps between evaluations; 0: only before and after", unit="steps", ge=0)
    samples_during: int = setting(
        2, "completions per question in the evaluations between the first and the last", unit="completions", ge=1)
    temperature: float | None = setting(None, "sampling temperature; null: the training's", gt=0)
    reward: str | None = setting(
        None,
        "the grader, a reward with values in [0, 1]; null: rewards.accuracy:accuracy, for a reasoning-gym task "
        "rewards.reasoning_gym:solved")


class EvaluationSection(HeldOutSection):
    benchmarks: list[Annotated[BenchmarkSection, shorthand("name")]] = setting(
        list,
        "benchmarks evaluated as the run goes, under the run's prompt; completions are kept in evaluations/ of its "
        "folder")
    data_dir: str | None = setting(None, "folder with the benchmarks as JSONL files; null: the hub")


class WatchdogSection(Section):
    enabled: bool = setting(True, "stop a collapsing run and keep the best checkpoint")
    patience: int = setting(
        3,
        "stop when held-out accuracy fell in so many evaluations in a row while the reward rose",
        unit="evaluations",
        ge=1)
    max_drop: float = setting(
        0.15, "stop when held-out accuracy is so far below the run's best", unit="accuracy", gt=0, le=1)
    max_vain_evaluations: int = setting(
        5,
        "stop when the reward rose in so many evaluations in a row and their mean held-out accuracy is above that "
        "before training by less than a tenth of the reward's rise",
        unit="evaluations",
        ge=2)
    max_answer_share: float = setting(
        0.5,
        "stop when one answer is the majority answer of more than this share of a batch's different questions",
        gt=0,
        le=1)
    max_unparsable_share: float = setting(
        0.9, "stop when more than this share of a batch's completions has no answer", gt=0, le=1)
    window: int = setting(3, "steps in a row over which a share must exceed its bound", unit="steps", ge=1)


class CheckpointSection(Section):
    every: int = setting(10, "steps between checkpoints; the last step always saves", unit="steps", ge=1)
    keep: int = setting(2, "how many of the newest are kept, beside the best", unit="checkpoints", ge=1)
    best_by: str = setting(
        "held_out",
        "what the best checkpoint is chosen by: held_out, or a benchmark's number such as math500/avg@4, math500/maj@4")


class TrackingSection(Section):
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = setting(
        list, "services to report to, beside the files in the run folder")
    project: str = setting("otherhalf", "project name for the services; the run's folder names the run")
    completions_every: int = setting(
        10, "steps between tables of 16 completions at the services; 0: none, and no text leaves the machine",
        unit="steps", ge=0)
    progress: Literal["auto", "live", "lines", "off"] = setting(
        "auto", "display on the terminal; auto: live on a terminal, lines elsewhere")
    rollouts_every: int = setting(1, "steps between records in rollouts.jsonl; 0: none", unit="steps", ge=0)
    token_logprobs: bool = setting(
        False, "record each sampled token with its log-probability in rollouts.jsonl, which becomes several times as "
        "large; python -m view shades them")


class RunConfig(Section):
    """Everything that decides a run. The file `config.resolved.yaml` in the run folder holds all of it."""

    seed: int = setting(0, "decides data order, sampling and initial adapter", ge=0)
    steps: int = setting(40, "training steps: one batch of questions each", unit="steps", ge=1)
    run_dir: Path = setting(Path("runs/quickstart"), "folder of the run's results", may_differ=Occasion.ALWAYS)
    model: Annotated[ModelSection, shorthand("path")] = setting(ModelSection, "the base model")
    lora: LoraSection = setting(LoraSection, "the trained adapter")
    data: Annotated[DataSection, shorthand("path")] = setting(DataSection, "the training questions")
    anchors: Annotated[AnchorsSection | None, shorthand("path")] = setting(
        None, "labelled questions mixed in, with a reward of their own and no entropy bounds; null: none")
    prompt: Annotated[PromptSection, shorthand("template")] = setting(PromptSection, "how a question becomes a prompt")
    generator: Annotated[GeneratorSection, shorthand("backend")] = setting(GeneratorSection, "the sampler")
    sampling: SamplingSection = setting(SamplingSection, "what is sampled")
    votes: VotesSection | None = setting(
        None, "labels by the majority of a moving average of the trained weights (Co-rewarding-II); null: none")
    teacher: Annotated[TeacherSection | None, shorthand("path")] = setting(
        None, "on-policy distillation: a teacher gives its log-probability of each sampled token; null: none")
    rewards: list[Annotated[RewardSection, shorthand("use")]] = setting(
        lambda: [RewardSection()],
        "reward functions, added up with their weights; [] with a teacher is pure distillation")
    selection: SelectionSection = setting(SelectionSection, "which groups train (entropy thresholding)")
    advantage: Annotated[AdvantageSection, shorthand("name")] = setting(AdvantageSection, "rewards to advantages")
    loss: Annotated[LossSection, shorthand("name")] = setting(LossSection, "the objective")
    optim: OptimSection = setting(OptimSection, "the optimiser")
    evaluation: Annotated[EvaluationSection, shorthand("path")] = setting(
        EvaluationSection, "held-out accuracy before, during and after")
    watchdog: WatchdogSection = setting(WatchdogSection, "collapse detection", may_differ=Occasion.RUN)
    checkpoint: CheckpointSection = setting(CheckpointSection, "what is saved when", may_differ=Occasion.RUN)
    tracking: TrackingSection = setting(TrackingSection, "where metrics go", may_differ=Occasion.ALWAYS)

    @field_validator("sampling")
    @classmethod
    def _anchors_leave_room(cls, sampling: SamplingSection, info: ValidationInfo) -> SamplingSection:
        anchors = info.data.get("anchors")
        if anchors is not None and anchors.mixed_in >= sampling.questions_per_step:
            raise ValueError(
                f"questions_per_step is {sampling.questions_per_step}, and anchors.mixed_in={anchors.mixed_in} of them "
                "are anchors, which leaves none without a label. Remedy: fewer anchors a step, or, where all questions "
                "are labelled, data.path in the place of anchors.path")
        return sampling

    @field_validator("votes")
    @classmethod
    def _the_average_can_be_sampled(cls, votes: VotesSection | None, info: ValidationInfo) -> VotesSection | None:
        generator = info.data.get("generator")
        if votes is not None and generator is not None and generator.max_staleness > 0:
            raise ValueError(
                f"generator.max_staleness is {generator.max_staleness}: the next step is sampled while this one "
                "trains, and the average is brought to the sampler in the place of the policy that trains. Remedy: "
                "generator.max_staleness=0, or votes=null with a reward that counts the group's own votes")
        return votes

    @field_validator("optim")
    @classmethod
    def _covariance_acts(cls, optim: OptimSection, info: ValidationInfo) -> OptimSection:
        loss, generator = info.data.get("loss"), info.data.get("generator")
        if loss is None or generator is None or loss.covariance.mode != "kl":
            return optim
        if optim.epochs * optim.minibatches == 1 and generator.max_staleness == 0:
            raise ValueError(
                "loss.covariance.mode is kl, which holds tokens near the policy of the batch's start, and with one "
                "update a batch none has moved from there. Remedy: optim.minibatches=4, or loss.covariance.mode=clip")
        return optim

    @field_validator("rewards")
    @classmethod
    def _something_is_to_be_learnt(cls, rewards: list[RewardSection], info: ValidationInfo) -> list[RewardSection]:
        if not rewards and info.data.get("teacher", ...) is None:
            raise ValueError(
                "saw []; expected a list of sections with at least 1 entry, or a teacher (teacher.path) to learn from "
                "without rewards")
        return rewards

    @field_validator("advantage")
    @classmethod
    def _each_has_rewards(cls, advantage: AdvantageSection, info: ValidationInfo) -> AdvantageSection:
        if info.data.get("rewards") == [] and advantage.normalise == "each":
            raise ValueError("normalise each is about rewards, and rewards is []. Remedy: advantage.normalise=sum")
        return advantage

    @field_validator("selection")
    @classmethod
    def _thresholds_have_clusters(cls, selection: SelectionSection, info: ValidationInfo) -> SelectionSection:
        if info.data.get("rewards") == [] and (selection.low is not None or selection.high is not None):
            raise ValueError(
                "low and high are bounds on the entropy over the answers that rewards cluster, and rewards is []. "
                "Remedy: selection.low=null selection.high=null")
        if info.data.get("rewards") == [] and selection.min_votes is not None:
            raise ValueError("min_votes counts the answers that rewards cluster, and rewards is []. Remedy: "
                             "selection.min_votes=null")
        sampling = info.data.get("sampling")
        if selection.min_votes is not None and sampling is not None and selection.min_votes > sampling.group_size:
            raise ValueError(
                f"min_votes is {selection.min_votes}, above sampling.group_size={sampling.group_size}: no group could "
                "have so many votes for one answer, and all would be penalised")
        return selection
