"""The policy: a base model with a LoRA adapter over it (or trained in full), its tokenizer, and its merged weights.

The base is never written to: a merged version is computed as base + BA in float32 from the pristine base each time,
into a copy (merging and unmerging in bfloat16 changes a sixth of the base's weights per cycle).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rewards.errors import UserError, named
from rl.config import LoraSection, ModelSection
from rl.paths import resolve_path
from rl.policy.adapter_base import FILE, is_other_base, recorded_quantization
from rl.policy.adapter_place import ADAPTER, adapter_folder, missing_adapter
from rl.policy.float32_head import has_float32_head, set_float32_head, wants_float32_head
from rl.policy.fused_lora import fuse_lora
from rl.policy.layout import share_prompts
from rl.policy.nf4 import check_quantization, loading_config, set_forward
from rl.policy.recomputation import recompute


class PolicyError(UserError):
    """A model or adapter that cannot be trained as asked; the message names the setting and the remedy."""


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """model: the trained module, a PeftModel or (full parameters) the transformers model itself.

    reference: a frozen copy, only where a KL penalty is asked of full-parameter training; with an adapter the reference
    is the same model with its adapter off. eos_token_ids: ids that end a completion. dtype: of the frozen base and of
    the computation; what is trained is float32. quantization: how the base's layers are held below that dtype, see
    model.quantization; such a base takes no merge."""

    model: PeftModel | PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: tuple[int, ...]
    dtype: torch.dtype
    reference: PreTrainedModel | None = None
    quantization: str | None = None

    @property
    def is_adapter(self) -> bool:
        return isinstance(self.model, PeftModel)

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, with the adapter's layers in place where there are any."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @property
    def has_float32_head(self) -> bool:
        """Whether model.head_dtype makes the output layer compute in another dtype than the model."""
        return has_float32_head(self.causal_lm)

    @property
    def base_bytes(self) -> int:
        base = (p for p in self.causal_lm.parameters() if not self.is_adapter or not p.requires_grad)
        return sum(p.numel() * p.element_size() for p in base)

    def pristine_copy(self) -> PreTrainedModel:
        """A plain transformers model with the base's weights, in the policy's dtype."""
        duplicate = copy.deepcopy(self.model)
        plain = duplicate.unload() if isinstance(duplicate, PeftModel) else duplicate
        return plain.to(self.dtype)

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def has_reference(self) -> bool:
        return self.is_adapter or self.reference is not None

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
    for name, module in _adapted(policy).items():
        yield f"{name}.weight", _merged(module)


def adapter_changes(policy: Policy) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(weight of the base, BA in float32) of every adapted module; none where there is no adapter."""
    for module in _adapted(policy).values():
        yield module.get_base_layer().weight, _change(module)


def _adapted(policy: Policy) -> dict[str, LoraLayer]:
    """The adapter's layers by their names in the plain model; none where there is no adapter."""
    return {name: module for name, module in policy.causal_lm.named_modules() if isinstance(module, LoraLayer)}


def _merged(module: LoraLayer) -> torch.Tensor:
    """W + BA in float32."""
    return module.get_base_layer().weight.float() + _change(module)


def _change(module: LoraLayer) -> torch.Tensor:
    """BA in float32."""
    change: torch.Tensor = module.get_delta_weight(module.active_adapters[0]).float()
    return change


def lora_rank(policy: Policy) -> int:
    """The largest rank of the adapter; 0 where there is none."""
    return max((module.r[module.active_adapters[0]] for module in _adapted(policy).values()), default=0)


def lora_targets(policy: Policy) -> tuple[str, ...]:
    """The last parts of the adapted modules' names, such as q_proj."""
    return tuple(sorted({name.rpartition(".")[2] for name in _adapted(policy)}))


def base_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the plain checkpoint, weight in the policy's dtype) of every weight of an adapter's base, as it is."""
    for name, parameter in policy.causal_lm.named_parameters():
        if not any(part.startswith("lora_") for part in name.split(".")):
            yield name.replace(".base_layer.", "."), parameter.detach()


def all_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the plain checkpoint, weight in the policy's dtype) of every weight, layer by layer; an adapter is
    merged into them, in float32 and from the pristine base."""
    adapted = _adapted(policy)
    for name, parameter in policy.causal_lm.named_parameters():
        owner, _, rest = name.partition(".base_layer.")
        if rest:
            with torch.no_grad():
                weight = _merged(adapted[owner]) if rest == "weight" else parameter
            yield f"{owner}.{rest}", weight.detach().to(policy.dtype)
        elif not any(part.startswith("lora_") for part in name.split(".")):
            yield name, parameter.detach().to(policy.dtype)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU that computes in it, float32 elsewhere, also where a GPU is there and the run is on the
    CPU."""
    if name == "auto":
        in_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if in_bfloat16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def dtype_name(dtype: torch.dtype) -> str:
    """As configurations and vLLM have it, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def load_policy(
    model: ModelSection, lora: LoraSection, tokenizer: PreTrainedTokenizerBase, *, seed: int, device: torch.device,
    keep_reference: bool,
) -> Policy:
    """Load the base, put the adapter over it (a new one: B = 0, A from `seed`), on `device`.

    Raises PolicyError where model.adapter was made for another base, names modules that this one lacks, or has another
    rank or scale than `lora` says."""
    check_quantization(model, lora)
    dtype = resolve_dtype(model.dtype, device)
    base, eos_ids = _load_base(model, tokenizer, dtype if lora.enabled else torch.float32, device)
    recompute(base, model.gradient_checkpointing)
    if not lora.enabled:
        _refuse_adapter_in_full(model)
        _share_prompts(base, model, dtype)
        reference = copy.deepcopy(base).requires_grad_(False).eval() if keep_reference else None
        return Policy(base.train(), tokenizer, eos_ids, dtype, reference)
    trained = _attach_adapter(base, model, lora, seed).train()
    _refuse_targets(base, model)
    fuse_lora(trained)
    _share_prompts(base, model, dtype)
    return Policy(trained, tokenizer, eos_ids, dtype, None, model.quantization)


def _share_prompts(base: PreTrainedModel, model: ModelSection, dtype: torch.dtype) -> None:
    if model.attention == "auto" and (reason := share_prompts(base, dtype)):
        warnings.warn(
            f"{type(base).__name__} reads no completions that share their prompt ({reason}): each is trained in a "
            "padded row of its own, after its prompt, which takes longer", stacklevel=2)


def plan_policy(
    model: ModelSection, lora: LoraSection, model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
) -> Policy:
    """`load_policy` without weights, which refuses by names and shapes what loading would; whether the weights of
    model.adapter fit is not looked at. device: on which it will train. Raises PolicyError."""
    check_quantization(model, lora)
    dtype = resolve_dtype(model.dtype, device)
    eos_ids = planned_end_ids(model, model_config, tokenizer)
    with explain_loading(model.path), torch.device("meta"):
        base = AutoModelForCausalLM.from_config(model_config, trust_remote_code=model.trust_remote_code, dtype=dtype)
        if wants_float32_head(model, dtype):
            set_float32_head(base)
        if not lora.enabled:
            _refuse_adapter_in_full(model)
            return Policy(base, tokenizer, eos_ids, dtype, None)
        if model.adapter is not None:
            refuse_other_scale(_stored_adapter(model.adapter)[1].parent, lora)
        policy = Policy(_new_adapter(base, model.path, lora), tokenizer, eos_ids, dtype, None, model.quantization)
    _refuse_targets(base, model)
    return policy


def load_frozen(model: ModelSection, tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Policy:
    """The checkpoint to sample from and not to train. In float32 W + BA takes the place of the base where model.adapter
    names an adapter; below it the adapter stays beside its base, because rounding would take away most of a small one.
    Raises PolicyError, or UserError for a quantisation that cannot be had."""
    if model.adapter is None:
        check_quantization(model, LoraSection())
        dtype = resolve_dtype(model.dtype, device)
        base, eos_ids = _load_base(model, tokenizer, dtype, device)
        if model.attention == "auto":
            share_prompts(base)  # a teacher is asked so; where it cannot, in padded rows
        return Policy(base.requires_grad_(False).eval(), tokenizer, eos_ids, dtype, None, model.quantization)
    lora = stored_lora(adapter_folder(model.adapter))
    policy = load_policy(model, lora, tokenizer, seed=0, device=device, keep_reference=False)
    if policy.dtype != torch.float32 or policy.quantization is not None:
        policy.model.requires_grad_(False).eval()
        return policy
    with torch.no_grad():
        for module in _adapted(policy).values():
            module.get_base_layer().weight.copy_(_merged(module))
    plain = policy.model.unload().requires_grad_(False).eval()
    return Policy(plain, tokenizer, policy.eos_token_ids, policy.dtype, None)


@contextmanager
def explain_loading(path: str) -> Iterator[None]:
    """What transformers and safetensors raise for missing or damaged weights, an architecture without a language
    model's head, and an attention implementation that is not installed, becomes a PolicyError."""
    try:
        yield
    # Our own errors are ValueErrors too, and say already what is the matter.
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError, ImportError) as error:
        raise PolicyError(
            f"{path} cannot be loaded ({str(error).strip().splitlines()[0]})", where=named("model.path"),
            remedy=f"a whole checkpoint of a causal language model, and {named('model.attention', 'auto')}") from error


def load_generation_config(path: str, revision: str | None) -> GenerationConfig | None:
    """The checkpoint's generation_config.json, which it need not have."""
    try:
        return GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:
        return None


def named_end_ids(generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids that end a completion: those of the generation configuration and the tokenizer's own; () where neither names
    one."""
    eos = generation_config.eos_token_id if generation_config is not None else None
    own = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return tuple(sorted({*([eos] if isinstance(eos, int) else eos or []), *own}))


def end_of_sequence_ids(
    generation_config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, path: str
) -> tuple[int, ...]:
    """`named_end_ids` of a model that is to end its completions. Raises PolicyError where there is none."""
    eos_ids = named_end_ids(generation_config, tokenizer)
    if not eos_ids:
        raise PolicyError(
            f"{path} names no end-of-sequence token in generation_config.json or its tokenizer; set "
            "sampling.stop_token_ids and add eos_token to the tokenizer", where=named("model.path"))
    return eos_ids


def planned_end_ids(
    model: ModelSection, model_config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """`end_of_sequence_ids` of the model before it is loaded. Raises PolicyError where there is none."""
    path = str(resolve_path(model.path))
    found = load_generation_config(path, model.revision) or GenerationConfig.from_model_config(model_config)
    return end_of_sequence_ids(found, tokenizer, path)


def _load_base(
    model: ModelSection, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype, device: torch.device
) -> tuple[PreTrainedModel, tuple[int, ...]]:
    """The transformers model, and the ids that end its completions."""
    path, quantised = str(resolve_path(model.path)), model.quantization is not None
    base = AutoModelForCausalLM.from_pretrained(
        path, revision=model.revision, trust_remote_code=model.trust_remote_code, dtype=dtype,
        attn_implementation=None if model.attention == "auto" else model.attention,
        # To an accelerator weight by weight: a machine with eight of them need not have room for eight models. What is
        # quantised would go to the first of them by itself.
        device_map=None if device.type == "cpu" and not quantised else {"": device},
        quantization_config=loading_config(dtype) if quantised else None,
    ).to(device)
    if quantised:
        set_forward(base)
    # In full training `dtype` is that of the weights, not of the computation.
    if wants_float32_head(model, resolve_dtype(model.dtype, device)):
        set_float32_head(base)
    return base, end_of_sequence_ids(base.generation_config, tokenizer, path)


def _refuse_adapter_in_full(model: ModelSection) -> None:
    if model.adapter is not None:
        raise PolicyError(
            "an adapter cannot be trained in full; set lora.enabled=true, or merge it first (python -m rl.export)",
            where=named("model.adapter"))


def _attach_adapter(base: PreTrainedModel, model: ModelSection, lora: LoraSection, seed: int) -> PeftModel:
    if model.adapter is not None:
        return _load_adapter(base, model.adapter, model, lora)
    # The adapter's first weights come from the run's seed alone, whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _new_adapter(base, model.path, lora)


def _new_adapter(base: PreTrainedModel, base_path: str, lora: LoraSection) -> PeftModel:
    try:
        return get_peft_model(base, LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets,
            task_type="CAUSAL_LM", bias="none"))
    # PEFT's own error for modules that do not exist, or that it cannot adapt.
    except ValueError as error:
        raise PolicyError(
            f"{lora.targets!r} cannot be adapted in {base_path} ({error})", where="lora.targets",
            remedy="lora.targets=all-linear, or names of its linear modules") from error


def stored_lora(folder: Path) -> LoraSection:
    """The settings of a stored adapter, without dropout: for reading it as it is."""
    stored = PeftConfig.from_pretrained(str(folder))
    return LoraSection(rank=stored.r, alpha=stored.lora_alpha) if isinstance(stored, LoraConfig) else LoraSection()


def _load_adapter(base: PreTrainedModel, adapter: str, model: ModelSection, lora: LoraSection) -> PeftModel:
    """The stored adapter over this base; refused where it is no plain LoRA, or where some weight of it has no place
    here: PEFT itself passes over what it cannot place, and the run would begin with a part of the adapter or none."""
    stored, weights = _stored_adapter(adapter)
    folder = weights.parent
    stored.lora_dropout = lora.dropout  # it belongs to the training, not to the weights

    def of_another_base(sign: str) -> PolicyError:
        return PolicyError(
            f"{folder} was made for another base ({stored.base_model_name_or_path}) than "
            f"{named('model.path', model.path)}: {sign}", where=named("model.adapter"),
            remedy=f"the {named('model.path')} that it was trained on, or another adapter")

    if is_other_base(folder, base):
        if (there := recorded_quantization(folder)) != model.quantization:
            raise PolicyError(
                f"{model.quantization or 'null'}, but the adapter in {folder} ({named('model.adapter')}) was trained "
                f"over its base with {there or 'null'}, whose weights are others", where=named("model.quantization"),
                remedy=named("model.quantization", there or "null"))
        raise of_another_base(f"the weights differ from those in its {FILE}")
    try:
        trained = PeftModel.from_pretrained(base, str(folder), is_trainable=True, config=stored)
    # PEFT's own errors for target modules that do not exist and for shapes that differ.
    except (ValueError, RuntimeError) as error:
        raise of_another_base(str(error).strip().splitlines()[-1].strip()) from error
    placed = {name.replace(".default.", ".") for name, p in trained.named_parameters() if p.requires_grad}
    if different := sorted(placed ^ load_file(weights).keys()):
        raise of_another_base(f"{len(different)} of its weights have no counterpart, the first is {different[0]}")
    refuse_other_scale(folder, lora)
    return trained


def refuse_other_scale(folder: Path, lora: LoraSection) -> None:
    """Raises PolicyError where the settings are not those of the adapter that is stored in the folder."""
    stored = stored_lora(folder)
    for key, there, here in (("rank", stored.rank, lora.rank), ("alpha", stored.alpha, lora.alpha)):
        if there != here:
            raise PolicyError(
                f"{here:g}, but the adapter in {folder} ({named('model.adapter')}) has {there:g}", where=f"lora.{key}",
                remedy=f"lora.{key}={there:g}")


def _stored_adapter(adapter: str) -> tuple[LoraConfig, Path]:
    """The configuration of a plain LoRA and the file of its weights. Raises PolicyError for anything else."""
    folder, where = adapter_folder(adapter), named("model.adapter")
    if not (folder / "adapter_config.json").is_file():
        raise PolicyError(missing_adapter(adapter), where=where, expected=ADAPTER)
    stored = PeftConfig.from_pretrained(str(folder))
    if not isinstance(stored, LoraConfig):
        raise PolicyError(f"{folder} is of type {stored.peft_type}", where=where, expected="LORA")
    extras = [name for name, is_on in (("use_dora", stored.use_dora), ("bias", stored.bias != "none"),
                                       ("modules_to_save", bool(stored.modules_to_save)),
                                       ("rank_pattern or alpha_pattern", bool(
                                           stored.rank_pattern or stored.alpha_pattern))) if is_on]
    if extras:
        raise PolicyError(
            f"{folder} uses {', '.join(extras)}, which is more than base + BA", where=where, expected="a plain LoRA",
            remedy=f"merge it into its base with PEFT and name the result in {named('model.path')}")
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise PolicyError(
            f"{folder} holds no adapter_model.safetensors", where=where, expected="a folder saved by PEFT")
    return stored, weights


def _refuse_targets(base: PreTrainedModel, model: ModelSection) -> None:
    _refuse_tied_targets(base)
    _refuse_fused_targets(base)
    _refuse_adapted_head(base, model)


def _refuse_tied_targets(base: PreTrainedModel) -> None:
    """An adapter on an output layer that shares its weight with the input embedding has no merged form in one
    weight."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = [layer for layer in (head, embedding) if isinstance(layer, LoraLayer)]
    plain = [layer.get_base_layer() if isinstance(layer, LoraLayer) else layer for layer in (head, embedding)]
    if adapted and plain[0].weight is plain[1].weight:
        raise PolicyError(
            "this model's output layer and input embedding are one weight, which an adapter on either would split",
            where="lora.targets", remedy="leave both out of lora.targets (all-linear does)")


def _refuse_fused_targets(base: PreTrainedModel) -> None:
    """transformers keeps the experts of a layer, and its router, as parameters of their own: no linear modules with one
    weight, by which an adapter is merged, and which vLLM adapts."""
    adapted = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    fused = [name for name, module in adapted.items() if isinstance(module, ParamWrapper)]
    if fused:
        attention = sorted({name.rpartition(".")[2] for name in adapted.keys() - set(fused) if "attn." in name})
        raise PolicyError(
            f"this model is a mixture of experts, whose experts and routers are no linear modules here ({fused[0]}): "
            "an adapter on them can be neither merged nor brought to vLLM", where="lora.targets",
            remedy=f"lora.targets=[{','.join(attention) or 'NAMES'}], of the attention; or lora.enabled=false")


def _refuse_adapted_head(base: PreTrainedModel, model: ModelSection) -> None:
    """An adapter on the output layer computes in the model's dtype."""
    if model.head_dtype is not None and isinstance(base.get_output_embeddings(), LoraLayer):
        raise PolicyError(
            f"{model.head_dtype}, but lora.targets puts an adapter on the output layer, which computes in model.dtype",
            where=named("model.head_dtype"),
            remedy=f"leave it out of lora.targets (all-linear does), or {named('model.head_dtype', 'null')}")


def has_fused_experts(policy: Policy) -> bool:
    """Whether weights have other names and shapes here than in the checkpoint, as those of experts have."""
    return any(weight.ndim == 3 and "experts" in name for name, weight in policy.causal_lm.named_parameters())


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
