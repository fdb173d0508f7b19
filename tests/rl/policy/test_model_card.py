"""rl/policy/model_card.py: what a card says, and what it keeps to itself."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import yaml

from rl.config import RunConfig
from rl.configuration.loading import load
from rl.policy.model_card import Card, public_name, render_card
from rl.runs.intervals import Interval
from rl.runs.summary import Best, Summary

CONFIG = load(None, [
    "model=Qwen/Qwen2.5-1.5B", "data=openai/gsm8k", "run_dir=/home/someone/runs/x", "data.columns.answer=answer",
    "rewards=[{use: /home/someone/mine.py:brevity, weight: 0.5}, {use: rewards.accuracy:accuracy}]",
    "generator={backend: vllm_server, urls: [http://node7:8000], exchange_dir: /scratch/x, api_key_env: KEY_OF_NODE}",
    "teacher={path: /models/large, backend: vllm_server, urls: [http://node8:8000]}", "selection.low=0.2",
    "evaluation.path=/home/someone/held_out.jsonl", "evaluation.data_dir=/home/someone/benchmarks", "steps=200",
    "data.task={max_terms: 4}"])
SUMMARY = Summary(
    steps=200, stop_reason="completed", message=None, held_out_before={"avg@8": Interval(0.4, 0.35, 0.45)},
    held_out_after={"avg@8": Interval(0.6, 0.55, 0.65)}, best=Best(150, 0.62, "checkpoints/best", "avg@2"), wall_s=1.0,
    peak_rss_gb=1.0, num_sampled_tokens=1, seed=0, versions={"torch": "2.11.0"},
    benchmarks_after={"math500 avg@4": Interval(0.5, 0.45, 0.55)})
CARD = Card("sums", "Qwen/Qwen2.5-1.5B", True, "step-000150", CONFIG, SUMMARY, True)


def settings_of(card: str) -> str:
    found: str = re.findall(r"```yaml\n(.*?)```", card, re.S)[0]
    return found


def test_front_matter_names_base_and_data_of_the_hub() -> None:
    front = yaml.safe_load(render_card(CARD).split("---\n")[1])
    assert front == {
        "library_name": "peft", "pipeline_tag": "text-generation", "datasets": ["openai/gsm8k"],
        "tags": ["otherhalf", "reinforcement-learning", "lora"], "base_model": "Qwen/Qwen2.5-1.5B",
        "base_model_relation": "adapter"}
    merged = yaml.safe_load(render_card(replace(CARD, is_adapter=False)).split("---\n")[1])
    assert merged["library_name"] == "transformers" and merged["base_model_relation"] == "finetune"


def test_the_table_has_each_evaluation_with_its_interval_and_the_weights_own_number() -> None:
    card = render_card(CARD)
    assert "| | before training | after step 200 |" in card
    assert "| held-out avg@8 | 0.400 [0.350, 0.450] | 0.600 [0.550, 0.650] |" in card
    assert "| math500 avg@4 |  | 0.500 [0.450, 0.550] |" in card
    assert "Of the weights here, those of step 150, avg@2 was 0.620." in card
    assert "Of the weights here" not in render_card(replace(CARD, checkpoint="step-000200"))


def test_nothing_of_this_machine_is_on_the_card() -> None:
    card = render_card(CARD)
    for private in ("someone", "node7", "node8", "/scratch", "KEY_OF_NODE", "/models", "benchmarks:"):
        assert private not in card, private
    assert "`mine.py:brevity` (weight 0.5)" in card and "on-policy distillation from large" in card


def test_the_settings_on_the_card_are_those_of_the_run(tmp_path: Path) -> None:
    plain = load(None, ["loss=cispo", "rewards=[{use: rewards.accuracy:accuracy}]", "optim.lr=1e-6",
                        "votes={samples: 4}", "anchors={path: a.jsonl}", "data.task={max_terms: 4}"])
    (tmp_path / "run.yaml").write_text(settings_of(render_card(replace(CARD, config=plain))))
    assert load(tmp_path / "run.yaml", []) == plain


def test_weights_without_a_run_get_a_card_too() -> None:
    card = render_card(Card("x", "models/tiny-arith", False))
    assert "The weights of tiny-arith, trained with otherhalf." in card
    assert "## Training" not in card and "torch" in card
    assert RunConfig().model.path == "models/tiny-arith" and "base_model" not in card


def test_names_of_paths() -> None:
    assert public_name("Qwen/Qwen2.5-1.5B") == "Qwen/Qwen2.5-1.5B" and public_name("models/tiny-arith") == "tiny-arith"
    assert public_name("/home/me/mine.py:f") == "mine.py:f" and public_name("rewards.accuracy:accuracy") == (
        "rewards.accuracy:accuracy")
