"""Mixtures of experts, whose experts transformers keeps as one parameter a layer: what trains, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rl.config import GeneratorSection, LoraSection, ModelSection, SamplingSection
from rl.errors import GeneratorError
from rl.generate.build import check_generator
from rl.generate.version_files import VersionFiles
from rl.paths import resolve_path
from rl.policy.policy import Policy, PolicyError, load_policy

SIZES = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=16, vocab_size=96)
KINDS: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(resolve_path("models/tiny-arith"))


@pytest.fixture(params=list(KINDS))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    KINDS[request.param]().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, lora: LoraSection) -> Policy:
    return load_policy(ModelSection(path=str(checkpoint), dtype="float32"), lora, tokenizer, seed=0,
                       device=torch.device("cpu"), keep_reference=False)


@pytest.mark.filterwarnings("ignore:The following")  # PEFT's, of what it looks for in experts
def test_an_adapter_on_experts_is_refused_with_the_targets_that_can_be_adapted(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    message = r"mixture of experts.*\(model.layers.0.mlp.*Remedy: lora\.targets=\[k_proj,o_proj,q_proj,v_proj\]"
    with pytest.raises(PolicyError, match=message):
        load(checkpoint, tokenizer, LoraSection())


def test_an_adapter_on_the_attention_and_all_parameters_come_whole_into_a_checkpoint(
    checkpoint: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for lora in (LoraSection(rank=4, targets=ATTENTION), LoraSection(enabled=False)):
        policy = load(checkpoint, tokenizer, lora)
        policy.model.eval()
        with torch.no_grad():
            for weight in policy.trainable_parameters().values():
                weight.add_(0.05 * torch.randn_like(weight))
            path = VersionFiles(tmp_path).merged(policy, 0)
            token_ids = torch.tensor([[3, 4, 5, 6, 7]])
            expected = policy.causal_lm(token_ids).logits
            found = AutoModelForCausalLM.from_pretrained(path)(token_ids).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_merging_into_an_engine_in_the_process_is_refused(checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Weights come to it one by one, under the names that they have in the trainer."""
    config = GeneratorSection(backend="vllm", sync="merge")
    for lora, remedy in ((LoraSection(rank=4, targets=ATTENTION), "generator.sync=adapter, or generator.backend=vllm_"),
                         (LoraSection(enabled=False), "generator.backend=vllm_server")):
        with pytest.raises(GeneratorError, match=f"merge, but this model is a mixture of experts.*Remedy: {remedy}"):
            check_generator(config, SamplingSection(), load(checkpoint, tokenizer, lora), on_gpu=False)
