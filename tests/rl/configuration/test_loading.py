"""rl/config.py and rl/configuration/loading.py: what a file and overrides become, and what is said when they are
wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.run import check_words
from rl.config import RewardSection, RunConfig
from rl.configuration.loading import load, to_yaml
from rl.configuration.resuming import differences
from rl.errors import ConfigError
from rl.paths import project_root, resolve_path
from rl.questions.prompting import load_template
from rl.rejection.config import RejectConfig
from rl.stages.config import PipelineConfig
from rl.stages.run import check_pipeline
from rl.supervised.config import WarmupConfig

ALL = sorted((project_root() / "configs").glob("*.yaml"))
PIPELINES = [path for path in ALL if "\nstages:" in path.read_text(encoding="utf-8")]
EVALUATIONS = [path for path in ALL if path.stem.endswith("_evaluation")]
CONFIGS = [path for path in ALL if path not in (*PIPELINES, *EVALUATIONS)]


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems_of(path: Path | None, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    problems = tuple(str(problem) for problem in caught.value.problems)
    assert str(caught.value) == "\n".join(problems)
    return problems


def model_of(path: Path) -> type[RunConfig] | type[WarmupConfig] | type[RejectConfig]:
    if path.stem.startswith("reject") or path.stem.endswith("_rejection"):
        return RejectConfig
    return WarmupConfig if path.stem.startswith("warmup") else RunConfig


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_names_a_template_and_says_what_it_needs(path: Path) -> None:
    config = load(path, [], model_of(path))
    assert path.stem in config.run_dir.parts
    assert load_template(config.prompt.template).user
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and ("NOT RUN" in text or " GiB" in text or " GB" in text)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_shipped_pipeline_has_stages_that_can_run_and_says_what_it_needs(path: Path) -> None:
    config = load(path, [], PipelineConfig)
    assert path.stem in config.run_dir.parts
    plan, prepared = check_pipeline(config, check_words)
    assert len(plan) == len(prepared) >= 2
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ") and ("NOT RUN" in text or " GB" in text)
    assert f"rl/pipeline.py --config configs/{path.name}" in text


def test_the_recipes_are_there() -> None:
    assert {"r1_zero", "r1_recipe", "empo_llama", "empo_qwen", "sft_rl_alternate"} <= {path.stem for path in PIPELINES}


def test_the_shipped_configs_are_the_ones_others_rely_on() -> None:
    expected = {
        "quickstart", "tiny_grpo", "tiny_random", "empo_math", "grpo_math", "reasoning_gym", "r1_rewards", "vllm_tiny",
        "smollm2_grpo", "smollm2_empo", "warmup_tiny", "warmup_math", "reject_tiny", "label_free", "tiny_label_free",
        *(f"qwen2.5_{size}_{method}" for size in ("1.5b", "7b") for method in ("empo", "grpo"))}
    assert expected <= {path.stem for path in CONFIGS}


def test_the_quick_start_reads_no_answers_and_the_three_tiny_runs_differ_in_nothing_but_data_and_reward() -> None:
    names = ("quickstart", "tiny_grpo", "tiny_random")
    thresholds = {"selection.high"}  # on semantic entropy, which is EMPO's
    quick, grpo, random = (load(project_root() / "configs" / f"{name}.yaml", []) for name in names)
    assert quick.data.columns.answer is None and random.data.columns.answer is None
    assert {key for key, _, _ in differences(quick, random)} == {
        "run_dir", "rewards.0.use", "watchdog.enabled", *thresholds}
    assert {key for key, _, _ in differences(quick, grpo)} == {
        "run_dir", "rewards.0.use", "data.path", "data.columns.answer", *thresholds}


def test_the_vllm_run_is_the_quick_start_with_another_sampler() -> None:
    quick, vllm = (load(project_root() / "configs" / f"{name}.yaml", []) for name in ("quickstart", "vllm_tiny"))
    assert {key for key, _, _ in differences(quick, vllm)} == {"run_dir", "generator.backend"}


OF_ENGINES = ["memory_share=0.5", "cache_gb=1", "eager=false", "sleep=offload"]
OF_SERVERS = ["served_model=base", "api_key_env=KEY", "exchange_dir=/shared", "max_staleness=1"]
SERVERS = "generator={backend: vllm_server, urls: [http://localhost:8000]}"


@pytest.mark.parametrize(("generator", "settings", "reader"), [
    ("generator=transformers", [*OF_SERVERS, "urls=[http://localhost:8000]"], "vllm_server"),
    ("generator=vllm", [*OF_SERVERS, "urls=[http://localhost:8000]"], "vllm_server"),
    ("generator=transformers", OF_ENGINES, "vllm"), (SERVERS, OF_ENGINES, "vllm")])
def test_a_setting_that_the_backend_does_not_read_is_refused(generator: str, settings: list[str], reader: str) -> None:
    for setting in settings:
        with pytest.raises(
            ConfigError, match=rf"{setting.split('=')[0]} is for backend {reader} .*Remedy: leave it out, or generator"
        ):
            load(None, [generator, f"generator.{setting}"])


@pytest.mark.parametrize(("generator", "settings"), [("generator=vllm", OF_ENGINES), (SERVERS, OF_SERVERS)])
def test_a_backend_takes_the_settings_that_it_reads(generator: str, settings: list[str]) -> None:
    found = load(
        None, [generator, *(f"generator.{setting}" for setting in settings), "loss.correction.mode=truncate"]
    ).generator
    assert found.model_fields_set >= {setting.split("=")[0] for setting in settings}


def test_an_empty_file_and_no_file_give_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "# nothing\n"), []) == load(None, []) == RunConfig()


def test_numbers_in_files_follow_yaml_1_2(tmp_path: Path) -> None:
    text = ("steps: 010\nevaluation: {every: 12}\noptim: {lr: 1e-6, eps: 1E-8, weight_decay: .1}\n"
            "tracking: {progress: off, project: 2024}\nlora: {alpha: 3}\n")
    config = load(write(tmp_path, text), [])
    assert (config.steps, config.optim.lr, config.optim.eps, config.optim.weight_decay) == (10, 1e-6, 1e-8, 0.1)
    assert (config.tracking.progress, config.tracking.project, config.lora.alpha) == ("off", "2024", 3.0)


def test_overrides_are_typed_by_the_models() -> None:
    config = load(
        None,
        [
            "optim.lr=1e-6",
            "data.columns.answer=null",
            "sampling.stop_token_ids=[1,2]",
            "rewards.0.weight=0.5",
            "tracking.project=010",
            "run_dir=runs/1",
            "lora.targets=[q_proj, v_proj]",
            "optim.betas=[0.9, 0.95]",
            "model.gradient_checkpointing=true",
            "data.path=a: b #1.jsonl",
            "tracking.progress=off"])
    assert config.optim.lr == 1e-6 and config.optim.betas == (0.9, 0.95)
    assert config.data.columns.answer is None and config.data.path == "a: b #1.jsonl"
    assert config.sampling.stop_token_ids == [1, 2]
    assert config.rewards == [RewardSection(weight=0.5)]
    assert (config.tracking.project, config.run_dir, config.tracking.progress) == ("010", Path("runs/1"), "off")
    assert config.lora.targets == ["q_proj", "v_proj"] and config.model.gradient_checkpointing == "full"


def test_a_list_of_rewards_can_be_set_as_a_whole_and_its_entries_changed_after(tmp_path: Path) -> None:
    path = write(tmp_path, "rewards:\n- use: a:b\n- {use: c:d, arguments: {x: 1}}\n")
    assert [reward.weight for reward in load(path, ["rewards.1.weight=2"]).rewards] == [1.0, 2.0]
    replaced = load(path, ["rewards=[{use: e:f, weight: 0.5}]", "rewards.0.name=g"])
    assert replaced.rewards == [RewardSection(use="e:f", weight=0.5, name="g")]
    assert load(path, ["rewards.1.arguments={form: log, power: 2}"]).rewards[1].arguments == {"form": "log", "power": 2}
    assert load(path, ["rewards.1.arguments={}"]).rewards[1].arguments == {}


def test_a_shorthand_sets_one_key_of_its_section_and_keeps_the_others(tmp_path: Path) -> None:
    path = write(tmp_path, "generator: transformers\ndata: {path: a.jsonl, limit: 7}\nmodel: some/folder\n")
    config = load(path, ["generator.max_sequences=4", "data=b.jsonl"])
    assert (config.generator.backend, config.generator.max_sequences) == ("transformers", 4)
    assert (config.data.path, config.data.limit, config.model.path) == ("b.jsonl", 7, "some/folder")


def test_later_overrides_win_and_the_file_is_not_changed_through_an_anchor(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {columns: &columns {question: q}}\nevaluation: {columns: *columns}\n")
    config = load(path, ["data.columns.question=x", "data.columns.question=y"])
    assert (config.data.columns.question, config.evaluation.columns.question) == ("y", "q")


def test_a_mapping_is_set_whole_or_by_its_names_and_the_file_is_not_changed_through_an_anchor(tmp_path: Path) -> None:
    path = write(tmp_path, "data: {task: &task {a: {b: 1, c: 2}}}\nevaluation: {task: *task}\n")
    config = load(
        path, ["data.task.a.b=7", "data.task.seed=3", "rewards.0.arguments={longest: 30}", "data.task.word=two"])
    assert config.data.task == {"a": {"b": 7, "c": 2}, "seed": 3, "word": "two"}
    assert config.evaluation.task == {"a": {"b": 1, "c": 2}}
    assert config.rewards[0].arguments == {"longest": 30}
    assert load(path, ["data.task={x: [1, 2]}"]).data.task == {"x": [1, 2]}
    assert problems_of(None, "data.task.x={") and problems_of(None, "data.task=3")


def test_all_problems_are_listed_at_once_a_line_each(tmp_path: Path) -> None:
    path = write(tmp_path, "steps: many\nsampling: {group_size: 1}\nselection: {low: 0.6, high: 0.4}\n")
    problems = problems_of(path, "optim.lr=fast", "lernrate=3")
    assert len(problems) == 5 and not any("\n" in problem for problem in problems)
    assert "override lernrate: unknown key" in problems[0]
    assert f"{path}: steps: saw 'many'; expected a whole number >= 1 (default 40)" in problems
    assert f"{path}: sampling.group_size: saw 1; expected a whole number >= 2 (default 8)" in problems
    assert f"{path}: selection: the thresholds cross: low 0.6 must be below high 0.4" in problems
    assert "override optim.lr: saw 'fast'; expected a number > 0 (default 0.0005)" in problems


@pytest.mark.parametrize(("override", "message"), [
    ("stepz=3", "stepz: unknown key; did you mean steps?"),
    ("lr=3", "lr: unknown key; did you mean optim.lr?"),
    ("optim.zzz=3", "optim.zzz: unknown key; optim has: lr, betas,"),
    ("learning_steps=3", "learning_steps: unknown key; did you mean optim.warmup_steps?"),
    ("sampling.groupsize=3", "sampling.groupsize: unknown key; did you mean sampling.group_size?"),
    ("data.colums.answer=null", "data.colums: unknown key; did you mean data.columns?"),
    ("rewards=[{ues: a:b}]", "rewards.0.ues: unknown key; did you mean rewards.0.use?"),
    ("rewards.1.weight=2", "rewards.1: expected the number of an entry, 0 to 0"),
    ("rewards.0=2", "rewards.0: name a key of the entry"),
    ("rewards=[]", "rewards: saw []; expected a list of sections with at least 1 entry"),
    ("rewards=[3]", "rewards.0: saw 3; expected a list of sections, or of texts that stand for their `use`"),
    ("rewards=my.py:f", "rewards: saw 'my.py:f'; expected a list of sections, or of texts that stand for their `use`"),
    ("optim.lr.x=3", "optim.lr has no keys of its own"),
    ("optim.lr=.inf", "optim.lr: saw Infinity; expected a number > 0"),
    ("optim.betas=[0.9, x]", "optim.betas.1: saw 'x'; expected a list of 2 entries"),
    ("optim=3", "optim: saw 3; expected a section"),
    ("steps=true", "steps: saw 'true'; expected a whole number"),
    ("steps=2.5", "steps: saw 2.5; expected a whole number"),
    ("loss.name=ppo", "loss.name: saw 'ppo'; expected one of: clip, cispo, gspo (default clip)"),
    ("loss.correction={low: 3}", "loss.correction: the bounds cross: low 3.0 must be below high 2.0"),
    ("lora.targets={a: 1}", "lora.targets: saw {\"a\": 1}; expected text or a list, each entry text"),
    ("selection.low=[", "selection.low: saw '[', which is not valid YAML"),
    ("steps", "'steps': expected key=value"),
])
def test_a_wrong_override_is_named_with_what_was_expected(override: str, message: str) -> None:
    (problem,) = problems_of(None, override)
    assert problem.startswith("override ") and message in problem


@pytest.mark.parametrize(("text", "message"), [
    ("steps: 3\nsampling: {group_size: 8\noptim: 3\n", ":3: column 6: not valid YAML"),
    ("steps: 3\nseed: 1\nsteps: 4\n", ":3: column 1: not valid YAML: the key 'steps' is given twice, first in line 1"),
    ("- steps\n", "expected keys and values"),
    ("just text\n", "expected keys and values"),
    ("1: 2\n", "expected keys and values"),
    ("steps: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ("Steps: 3\n", "Steps: unknown key; did you mean steps?"),
    ("optim: [1]\n", "optim: saw [1]; expected a section"),
])
def test_a_malformed_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    problems = problems_of(path)
    assert any(problem.startswith(str(path)) and message in problem for problem in problems), problems


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"run_dir: \xff\xfe\n")
    assert "UTF-8" in problems_of(tmp_path / "run.yaml")[0]


def test_a_missing_config_file_names_similar_ones() -> None:
    (problem,) = problems_of(Path("configs/quickstrat.yaml"))
    assert problem == "configs/quickstrat.yaml: no such file; similar: configs/quickstart.yaml"


awkward_text = st.text(alphabet="1e-6. offnulltruea:#'\"\\\n\téλ~<=0x[]{}", max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    project=awkward_text, lr=st.floats(1e-300, 1e300), targets=st.lists(awkward_text, max_size=2), argument=awkward_text
)
@example(project="1e-6", lr=1e-6, targets=["off", "0x1F"], argument="1e5")
@example(project="1:30", lr=1e22, targets=["2024-01-01", ".5"], argument="null")
def test_the_resolved_config_round_trips_exactly(
    tmp_path_factory: pytest.TempPathFactory, project: str, lr: float, targets: list[str], argument: str,
) -> None:
    config = RunConfig.model_validate({
        "optim": {"lr": lr}, "tracking": {"project": project}, "lora": {"targets": targets},
        "rewards": [{"use": "a:b", "arguments": {"text": argument, "list": [None, True, lr, argument]}}],
    })
    path = write(tmp_path_factory.mktemp("resolved"), to_yaml(config))
    assert load(path, []) == config
    # Programs that read YAML by version 1.1 see the same texts.
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["tracking"]["project"] == project


def test_differences_names_each_changed_key_with_both_values() -> None:
    old = load(None, [])
    new = load(None, ["optim.lr=1e-6", "sampling.stop_token_ids=[3]", "rewards=[{}, {use: a:b}]"])
    assert differences(old, old) == []
    found = {key: (before, after) for key, before, after in differences(old, new)}
    assert found["optim.lr"] == (5e-4, 1e-6)
    assert found["sampling.stop_token_ids"] == ([], [3])
    assert found["rewards.1.use"] == (None, "a:b")
    assert all(key.startswith(("optim.lr", "sampling.stop_token_ids", "rewards.1.")) for key in found)


def test_a_relative_path_is_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_path("configs/quickstart.yaml") == project_root() / "configs" / "quickstart.yaml"
    assert load(Path("configs/quickstart.yaml"), []).steps == 40
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text("steps: 3\n")
    assert load(Path("configs/quickstart.yaml"), []).steps == 3
    assert resolve_path("Qwen/Qwen2.5-1.5B") == Path("Qwen/Qwen2.5-1.5B")


def test_loading_a_config_imports_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, rl.config, rl.configuration.loading, rl.configuration.help, rl.records, rl.questions.prompting, "
        "rl.questions.files, rl.questions.order\nfound = [name for name in ('torch', 'transformers', 'datasets', "
        "'pyarrow') if name in sys.modules]\nsys.exit(str(found) if found else 0)")
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=project_root(), check=False)
    assert result.returncode == 0, result.stderr


def test_a_reward_by_name_alone_is_a_section_that_overrides_may_fill(tmp_path: Path) -> None:
    """Like a benchmark."""
    file = tmp_path / "short.yaml"
    file.write_text("rewards: [my.py:f]\nevaluation: {benchmarks: [math500]}\n")
    config = load(file, ["rewards.0.weight=0.5", "evaluation.benchmarks.0.every=7"])
    assert [(reward.use, reward.weight) for reward in config.rewards] == [("my.py:f", 0.5)]
    assert [(benchmark.name, benchmark.every) for benchmark in config.evaluation.benchmarks] == [("math500", 7)]
    assert load(None, ["rewards=[my.py:f, {use: my.py:g}]"]).rewards[1].use == "my.py:g"
