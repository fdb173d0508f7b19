"""`python -m eval.run --generator vllm` against the embedded sampler, on a real vLLM: base and merged adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eval.run import main
from eval.store import read_completions
from rl.config import GeneratorSection, ModelSection
from rl.generate.frozen import open_frozen_generator
from rl.paths import project_root
from rl.proof.diagnosis import trainer_logprobs
from rl.proof.distances import Judgement, distances
from rl.questions.inputs import load_model_config
from tests.reference.tiny_run import change_adapter, inputs, prompts, tiny_config, tiny_policy
from tests.reference.whole_run import in_process

BASE = str(project_root() / "models" / "tiny-arith")


def evaluate(out: Path, *words: str) -> list[list[str]]:
    """Texts by question and sample."""
    finished = in_process(
        main, "--out", str(out), "--benchmarks", "tiny_arith", "--limit", "24", "--no-plots", *words)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return [[sample.text for sample in question.samples] for question in read_completions(out)]


@pytest.mark.parametrize("subject", ["base", "adapter"])
def test_greedy_completions_are_those_of_the_embedded_sampler(tmp_path: Path, adapter: Path, subject: str) -> None:
    words = ("--model", BASE) if subject == "base" else ("--model", BASE, "--adapter", str(adapter))
    mine, theirs = (
        evaluate(tmp_path / name, *words, "-k", "1", "--generator", name) for name in ("vllm", "transformers"))
    assert mine == theirs
    assert not (tmp_path / "vllm" / "merged").exists()


def test_base_and_adapter_differ_and_a_sampled_evaluation_repeats_itself(tmp_path: Path, adapter: Path) -> None:
    words = ("-k", "4", "--generator", "vllm")
    first, second = (evaluate(tmp_path / name, "--model", BASE, *words) for name in ("first", "second"))
    assert first == second
    assert evaluate(tmp_path / "adapter", "--adapter", str(adapter), *words) != first
    entry = json.loads((tmp_path / "first" / "result.json").read_text())["benchmarks"]["tiny_arith"]
    assert 0.2 < entry["avg@4"]["value"] < 0.6 < entry["pass@4"]["value"]


def test_in_bfloat16_an_adapter_is_evaluated_beside_its_base(tmp_path: Path) -> None:
    policy = tiny_policy(tiny_config("model.dtype=bfloat16"))
    change_adapter(policy, 3e-3)
    policy.model.save_pretrained(str(tmp_path / "adapter"))
    pairs = [(prompt.token_ids, tuple(range(5, 45))) for prompt in prompts(8)]

    def logprobs(adapter: str | None) -> torch.Tensor:
        model = ModelSection(path=BASE, dtype="bfloat16", adapter=adapter)
        generator = open_frozen_generator(
            model, GeneratorSection(backend="vllm"), inputs().tokenizer, load_model_config(model), max_tokens=200,
            scratch=tmp_path)
        try:
            return torch.tensor([generator.logprobs([pair])[0] for pair in pairs]).flatten()
        finally:
            generator.close()

    trainer_T, base_T = trainer_logprobs(policy, pairs, temperature=1.0, max_tokens=8192)
    assert distances(logprobs(str(tmp_path / "adapter")), trainer_T, base_T).verdict(Judgement(0.2)) == "policy"
    assert distances(logprobs(None), trainer_T, base_T).verdict(Judgement(0.2)) in ("base", "other")
    assert not (tmp_path / "merged").exists()
