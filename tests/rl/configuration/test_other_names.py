"""rl/configuration/other_names.py: what keys of TRL and verl are answered with, and docs/coming_from.md. That all
fields of TRL have an answer: tests/rl/test_trl_parity.py."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rl.config import RunConfig, Section
from rl.configuration.command_line import parse
from rl.configuration.keys import all_keys
from rl.configuration.loading import load
from rl.configuration.other_names import TRL, VERL, known_elsewhere
from rl.errors import ConfigError
from rl.paths import project_root
from rl.supervised.config import WarmupConfig
from rl.train import COMMAND

# Settings that are refused without others.
GOES_WITH = {
    "generator.backend=vllm_server": "generator.urls=[http://localhost:8000]", "generator.sleep=offload":
    "generator.backend=vllm", "loss.covariance.mode=kl": "optim.minibatches=4"}


def problems_of(*overrides: str, path: Path | None = None, model: type[Section] = RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, model)
    return str(caught.value)


def test_every_key_that_an_answer_names_exists_and_may_have_the_value_that_it_gives() -> None:
    keys = {key.name for key in all_keys(RunConfig) if not key.is_section}
    for name in (*TRL, *VERL):
        assert keys.issuperset(name.ours), name
        assert name.ours or name.note, name
        for settings in name.values.values():
            load(None, [*settings.split(), *(GOES_WITH[one] for one in settings.split() if one in GOES_WITH)])
            assert {setting.partition("=")[0] for setting in settings.split()} & set(name.ours), name
    assert all(len({name.theirs for name in names}) == len(names) for names in (TRL, VERL))


@pytest.mark.parametrize(("override", "message"), [
    ("beta=0.04", "override beta: unknown key; TRL's beta is loss.kl_weight here. Remedy: loss.kl_weight=0.04"),
    ("num_generations=16", "sampling.group_size (completions) here. Remedy: sampling.group_size=16"),
    ("per_device_train_batch_size=8", "is sampling.questions_per_step (questions) here: it counts completions of one"),
    ("loss_type=dapo", "TRL's loss_type dapo is loss.aggregation=token here"),
    ("loss_type='dr_grpo'", "is loss.aggregation=constant advantage.name=dr_grpo here"),
    ("loss_type=sapo", "here; expected grpo: loss.aggregation=sequence, dapo: loss.aggregation=token, bnpo"),
    ("use_vllm=True", "is generator.backend=vllm here"),
    ("report_to=wandb", "is tracking.trackers=[wandb] here"),
    ("gradient_accumulation_steps=4", "has no counterpart here: what shares a forward pass is cut by"),
    ("temperature=0.9", "TRL's temperature is sampling.temperature here. Remedy: sampling.temperature=0.9"),
    ("lora.r=8", "override lora.r: unknown key; TRL's r is lora.rank here. Remedy: lora.rank=8"),
    ("optim.learning_rate=1e-6", "TRL's learning_rate is optim.lr here. Remedy: optim.lr=1e-6"),
    ("actor_rollout_ref.rollout.n=8", "verl's actor_rollout_ref.rollout.n is sampling.group_size (completions) here."),
    ("rollout.n=8", "verl's actor_rollout_ref.rollout.n is sampling.group_size"),
    ("data.prompt_key=problem", "override data.prompt_key: unknown key; verl's data.prompt_key is data.columns."),
    ("clip_ratio_high=0.28", "is loss.clip_high here. Remedy: loss.clip_high=0.28"),
    ("+trainer.save_freq=5", "verl's trainer.save_freq is checkpoint.every (steps) here. Remedy: checkpoint.every=5"),
    ("algorithm.kl_ctrl.kl_coef=0.001", "is loss.kl_weight here: a penalty in the loss; there is none in the reward"),
    ("critic.optim.lr=1e-5", "verl's critic has no counterpart here: there is no value network"),
])
def test_a_key_of_another_framework_is_answered_with_ours(override: str, message: str) -> None:
    assert message in problems_of(override)


def test_a_file_of_another_framework_is_answered_key_by_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("beta: 0.04\nactor_rollout_ref: {rollout: {n: 8, mode: async}, actor: {clip_ratio: 0.2}}\n"
                    "data: {train_files: [a.parquet]}\nwhatever: {n: 1}\n")
    problems = problems_of(path=path).splitlines()
    assert set(problems[:-1]) == {
        f"{path}: beta: unknown key; TRL's beta is loss.kl_weight here. Remedy: loss.kl_weight=0.04",
        f"{path}: actor_rollout_ref.rollout.n: unknown key; verl's actor_rollout_ref.rollout.n is sampling.group_size "
        "(completions) here. Remedy: sampling.group_size=8",
        f"{path}: actor_rollout_ref.actor.clip_ratio: unknown key; verl's actor_rollout_ref.actor.clip_ratio is "
        "loss.clip_low and loss.clip_high here",
        f"{path}: data.train_files: unknown key; verl's data.train_files is data.path here: one file or dataset"}
    assert problems[-1].startswith(f"{path}: whatever: unknown key; did you mean evaluation.every")


def test_an_option_of_another_framework_is_answered_with_our_key() -> None:
    for words in (["--beta", "0.04"], ["--beta=0.04"]):
        with pytest.raises(ConfigError, match=r"did you mean loss\.kl_weight=VALUE\?"):
            parse(words, COMMAND)


def test_a_configuration_that_lacks_our_key_is_not_told_of_it() -> None:
    assert "TRL's learning_rate is optim.lr here" in problems_of("learning_rate=1e-5", model=WarmupConfig)
    for key in ("beta", "num_generations", "max_steps", "min_p", "critic.optim.lr"):
        assert known_elsewhere(key, WarmupConfig) is None


def test_the_pages_tables_are_those_that_answer() -> None:
    docs = project_root() / "docs"
    found = importlib.util.spec_from_file_location("coming_from", docs / "coming_from.py")
    assert found is not None and found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    page = (docs / "coming_from.md").read_text(encoding="utf-8")
    assert made.corresponding() in page, "python docs/coming_from.py prints the tables"
    assert made.without_counterpart() in page, "python docs/coming_from.py prints the tables"
    for line in problems_of("beta=0.04", "actor_rollout_ref.rollout.n=8").splitlines():
        assert line in page
