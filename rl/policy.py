"""The policy: a base model with a LoRA adapter over it (or trained in full), its tokenizer, and its merged weights.

The base is never written to: a merged version is computed as base + BA in float32 from the pristine base each time, into a
copy (merging and unmerging in bfloat16 changes a sixth of the base's weights per cycle).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rl.config import LoraSection, ModelSection
from rl.config_loading import resolve_path


class PolicyError(ValueError):
    """A model or adapter that cannot be trained as asked; the message names the setting and the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """model: the trained module, a PeftModel or (full parameters) the transformers model itself.

    reference: a frozen copy, only where a KL penalty is asked of full-parameter training; with an adapter the reference
    is the same model with its adapter off. eos_token_ids: ids that end a completion. dtype: of the frozen base and of
    the computation; what is trained is float32."""

    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    reference: PreTrainedModel | None = None

    @property
    def is_adapter(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, with the adapter's layers in place where there are any."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def base_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.causal_lm.parameters() if not self.is_adapter or not p.requires_grad)

    def pristine_copy(self) -> PreTrainedModel:
        """A plain transformers model with the base's weights, in the policy's dtype."""
        duplicate = copy.deepcopy(self.model)
        plain = duplicate.unload() if isinstance(duplicate, PeftModel) else duplicate
        return plain.to(self.dtype)

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def reference_model(self) -> tuple[PreTrainedModel, AbstractContextManager[object]]:
        """The KL penalty's reference, and the context in which to run it."""
        if isinstance(self.model, PeftModel):
            return self.causal_lm, self.model.disable_adapter()
        assert self.reference is not None
        return self.reference, nullcontext()


def merged_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the plain checkpoint, float32 weight) of every weight that training changes.

    For an adapter: W + BA, from the pristine base, in float32. For full parameters: all of them."""
    if not policy.is_adapter:
        yield from policy.model.named_parameters()
        return
    for name, module in policy.causal_lm.named_modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer().weight
            yield f"{name}.weight", base.float() + module.get_delta_weight(module.active_adapters[0]).float()


def resolve_dtype(name: str) -> torch.dtype:
    """auto: bfloat16 where there is a GPU that computes in it, float32 elsewhere."""
    if name == "auto":
        name = "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_policy(
    model: ModelSection, lora: LoraSection, tokenizer: PreTrainedTokenizerBase, *, seed: int, device: torch.device, keep_reference: bool
) -> Policy:
    """Load the base, put the adapter over it (a new one: B = 0, A from `seed`), on `device`.

    Raises PolicyError where model.adapter was made for another base or names modules that this one lacks."""
    dtype = resolve_dtype(model.dtype)
    path = str(resolve_path(model.path))
    base = AutoModelForCausalLM.from_pretrained(
        path, revision=model.revision, trust_remote_code=model.trust_remote_code,
        dtype=dtype if lora.enabled else torch.float32,
        attn_implementation=None if model.attention == "auto" else model.attention,
    ).to(device)
    eos = base.generation_config.eos_token_id if base.generation_config is not None else None
    eos_ids = {*([eos] if isinstance(eos, int) else eos or []), *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])}
    if not eos_ids:
        raise PolicyError(f"model.path: {path} names no end-of-sequence token in generation_config.json or its tokenizer; "
                         "set sampling.stop_token_ids and add eos_token to the tokenizer")
    if model.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    reference = copy.deepcopy(base).requires_grad_(False).eval() if keep_reference and not lora.enabled else None
    if not lora.enabled:
        if model.adapter is not None:
            raise PolicyError("model.adapter: an adapter cannot be trained in full; set lora.enabled=true, or merge it first "
                              "(python -m rl.export)")
        return Policy(base.train(), tokenizer, tuple(sorted(eos_ids)), dtype, reference)
    trained = _attach_adapter(base, model, lora, seed).train()
    return Policy(trained, tokenizer, tuple(sorted(eos_ids)), dtype, None)


def _attach_adapter(base: PreTrainedModel, model: ModelSection, lora: LoraSection, seed: int) -> PeftModel:
    if model.adapter is not None:
        folder = resolve_path(model.adapter)
        if not (Path(folder) / "adapter_config.json").is_file():
            raise PolicyError(f"model.adapter: {folder} holds no adapter_config.json; expected a folder saved by PEFT, such as "
                             "runs/NAME/checkpoints/best/adapter")
        stored = PeftConfig.from_pretrained(str(folder))
        if stored.peft_type != "LORA":
            raise PolicyError(f"model.adapter: {folder} is of type {stored.peft_type}; expected LORA")
        return PeftModel.from_pretrained(base, str(folder), is_trainable=True)
    # The adapter's first weights come from the run's seed alone, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(base, LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets,
            task_type="CAUSAL_LM", bias="none"))
