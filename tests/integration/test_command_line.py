"""The command as a person types it: help, configuration, dry run, resuming, and from wherever it is started."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from rl import launch
from rl.config import RunConfig
from rl.configuration import command_line
from rl.configuration.command_line import Command
from rl.configuration.keys import all_keys
from rl.configuration.loading import load
from rl.errors import ConfigError
from rl.generate.vllm_engine import installed_version
from rl.paths import project_root
from rl.runs.folder import RunFolder
from rl.train import COMMAND
from tests.reference.whole_run import SMALL, own_environment, python, train, trained_steps

# Generous: the promise is 1 s and 10 s on an idle machine, and tests run on busy ones.
HELP_SECONDS, DRY_RUN_SECONDS = 3.0, 30.0


def parse(words: list[str]) -> Command[RunConfig]:
    return command_line.parse(words, COMMAND)


def process_seconds(*words: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Processor time of a command, which other programs on the machine change less than the clock's."""
    before = os.times()
    finished = python(*words)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, finished


def test_help_names_every_key_at_once() -> None:
    seconds, finished = process_seconds("-m", "rl.train", "--help")
    assert finished.returncode == 0 and finished.stderr == ""
    for key in all_keys():
        assert key.name in finished.stdout
    for word in ("--config", "--dry-run", "--print-config", "--resume"):
        assert word in finished.stdout
    assert seconds < HELP_SECONDS


@pytest.mark.parametrize("module", [
    "rl.train", "rl.warmup", "rl.reject", "rl.pipeline", "rl.export", "eval.run", "eval.grade", "eval.compare",
    "eval.answer", "eval.forecast"])
def test_every_command_is_a_module_that_runs(module: str) -> None:
    finished = python("-m", module, "--help")
    assert finished.returncode == 0 and module.rpartition(".")[2] in finished.stdout and finished.stderr == ""


def test_help_and_config_need_no_torch() -> None:
    finished = python(
        "-c",
        "import sys\nfrom rl.train import main\nassert main(['--help']) == main(['--print-config']) == 0\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules")
    assert finished.returncode == 0, finished.stderr


def test_the_printed_configuration_reads_back_as_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--config", "configs/tiny_grpo.yaml", "optim.lr=3e-6", "lora.targets=[q_proj, v_proj]",
        f"run_dir={tmp_path / 'run'}"]
    assert train(tmp_path / "run", *words, "--print-config") == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load(printed, []) == parse([*SMALL, *words]).config
    assert load(printed, []).optim.lr == 3e-6


def test_the_dry_run_of_the_quick_start_shows_all_and_makes_nothing(tmp_path: Path) -> None:
    seconds, finished = process_seconds("-m", "rl.train", "--dry-run", f"run_dir={tmp_path / 'run'}")
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    for part in (
        "--- configuration ---", "questions_per_step: 32", "--- prompt of the first question ---", "'19+28=?\\n'",
        "--- sizes ---", "32 questions x 8 = 256 completions", "--- memory ---", "total, about", "fits into the ",
        "--- rewards, called on made-up completions ---", "semantic_entropy", "held out: accuracy",
        "--- not checked ---", "that the weights load",
    ):
        assert part in finished.stdout
    assert list(tmp_path.iterdir()) == []
    assert seconds < DRY_RUN_SECONDS


def test_a_card_is_planned_for_without_the_model_questions_or_vllm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", "configs/grpo_math.yaml", "model=qwen2.5-1.5b", f"data={tmp_path / 'none.jsonl'}", "--dry-run"]
    assert train(tmp_path / "run", *words, "sampling.max_completion_tokens=1024", "--gpu-memory", "24") == 0
    shown = capsys.readouterr()
    assert shown.err == "" and "1,543,714,304 parameters in the base" in shown.out
    assert "total, about " in shown.out and "fits into the 24.0 GB of a GPU with 24 GB" in shown.out
    assert train(tmp_path / "run", *words, "lora.enabled=false", "--gpu-memory=24") == 2
    shown = capsys.readouterr()
    assert "total, about " in shown.out and "does not fit into the 24.0 GB" in shown.out
    assert "nearest settings that fit:\n  lora.enabled=true" in shown.out
    assert shown.err.startswith("error: this run needs about ") and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("words", "message"), [
    (["--gpu-memory", "24"], r"--gpu-memory: plans and trains nothing\. Remedy: --dry-run --gpu-memory GB"),
    (["--dry-run", "--gpu-memory", "-3"], "expected the memory of a card in GB, such as 24"),
    (["--dry-run", "--gpu-memory", "big"], "'big'; expected the memory of a card in GB, such as 24")])
def test_a_card_that_cannot_be_planned_for_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words)


def test_the_table_is_shown_where_a_run_does_not_fit_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "optim.micro_batch_tokens=100000000", "--dry-run") == 2
    shown = capsys.readouterr()
    assert "total, about " in shown.out and "nearest settings that fit:\n  optim.micro_batch_tokens=" in shown.out
    assert shown.err.startswith("error: this run needs about ") and "Everything was read" not in shown.out


@pytest.mark.parametrize("version", ["0.25.0", "0.33.0rc1"])
def test_the_dry_run_refuses_a_vllm_of_an_unknown_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    # All that pip leaves of a package and that says its version; found before a vLLM that is really there.
    (tmp_path / f"vllm-{version}.dist-info").mkdir()
    (tmp_path / f"vllm-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert train(tmp_path / "run", "generator=vllm", "--dry-run") == 2
    shown = capsys.readouterr()
    assert f"generator.backend: vllm {version} is installed; this version of otherhalf works with >=" in shown.err
    assert "Everything was read" not in shown.out


def test_the_dry_run_says_whether_vllm_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    is_there = installed_version() is not None
    assert train(tmp_path / "run", "generator=vllm", "--dry-run") == (0 if is_there else 2)
    shown = capsys.readouterr()
    assert (
        "Everything was read" in shown.out
        if is_there
        else "generator.backend: vllm is not installed. Remedy: " in shown.err)


def test_a_run_tells_nothing_on_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "steps=1") == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert "step 1/1" in shown.out and "held-out avg@2" in shown.out


def test_the_command_runs_from_another_folder_as_a_module_and_as_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shipped files are found in the project, the run's folder is made where the person is."""
    words = ("--config", "configs/tiny_grpo.yaml", "steps=1")
    script = str(project_root() / "rl" / "train.py")
    finished = python(script, *SMALL, *words, "run_dir=runs/script", folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert python("-m", "rl.train", *words, "--print-config", folder=tmp_path).returncode == 0
    monkeypatch.chdir(tmp_path)
    assert train(Path("runs") / "module", *words) == 0
    assert [trained_steps(tmp_path / "runs" / name) for name in ("script", "module")] == [[1], [1]]


ONE_PROCESS = ("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
SCRIPT = str(project_root() / "rl" / "train.py")


def test_accelerate_launch_runs_the_script_with_a_reward_from_the_working_directory(tmp_path: Path) -> None:
    """The launcher puts the script's folder on the path, and not the working directory."""
    (tmp_path / "my_rewards.py").write_text(
        "import config\n\n"
        "def brevity(completions, **columns):\n    return [config.SCALE * len(text) for text in completions]\n")
    (tmp_path / "config.py").write_text("SCALE = -0.1\n")
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *ONE_PROCESS, SCRIPT, *SMALL]
    finished = subprocess.run(
        [*command, "run_dir=launched", "steps=1", "rewards.0.use=my_rewards:brevity"], cwd=tmp_path,
        env=own_environment(), capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert trained_steps(tmp_path / "launched") == [1]


@pytest.mark.slow
def test_the_launcher_ends_with_the_commands_own_error_and_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    with patch.object(signal, "signal"):  # this process's own Ctrl-C stays
        assert launch.main([*ONE_PROCESS, SCRIPT, "stps=1"]) == 2
    shown = capfd.readouterr().err
    assert shown.splitlines()[-1].startswith("error: override stps: unknown key; did you mean steps?")
    assert "Traceback" not in shown
    assert launch._exit_code(-9, "process 3") == 137
    assert capfd.readouterr().err == "error: process 3 was ended by SIGKILL, as the system does where memory is full\n"


def test_without_arguments_the_quick_start_is_configured() -> None:
    assert parse([]).config == load(project_root() / "configs" / "quickstart.yaml", [])


def test_latest_is_the_newest_run_beside_the_configured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("old", "new"):
        assert train(Path("runs") / name, "steps=1", "evaluation.path=null") == 0
    # Files written within one tick of the clock would be equally new.
    os.utime(RunFolder(Path("runs/old")).metrics_file, (1, 1))
    for place in [RunFolder(Path("runs/old")).checkpoints, *RunFolder(Path("runs/old")).checkpoints.iterdir()]:
        os.utime(place, (1, 1))
    assert (
        parse(["--resume"]).resume
        == parse(["--resume", "latest"]).resume
        == parse(["--resume", "steps=2"]).resume
        == Path("runs/new"))
    assert parse(["--resume", "old"]).resume == parse(["--resume", "runs/old"]).resume == Path("runs/old")
    assert parse(["--resume", "run_dir=runs/old"]).resume == Path("runs/old")
    command = parse(["--resume", "old", "steps=2"])
    assert (command.config.steps, command.config.run_dir, command.config.evaluation.path) == (2, Path("runs/old"), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lrate=1"], "optim.lrate: unknown key; did you mean optim.lr?"),
        (["--dryrun"], "'--dryrun': expected an option or key=value (did you mean --dry-run?); see --help"),
        (["--steps=5"], "'--steps=5': expected an option or key=value (did you mean steps=5?); see --help"),
        (
            ["--optim.lr", "1e-4"],
            "'--optim.lr': expected an option or key=value (did you mean optim.lr=VALUE?); see --help",
        ),
        (["steps"], "'steps': expected an option or key=value (did you mean steps=VALUE?); see --help"),
        (["nonsense"], "'nonsense': expected an option or key=value; see --help"),
        (["configs/tiny_grpo.yaml"], "(did you mean --config configs/tiny_grpo.yaml?)"),
        (["--config"], "argument --config: expected one argument; see --help"),
        (["--config", "configs/tiny_grp.yaml"], "configs/tiny_grp.yaml: no such file; similar: configs/tiny_grpo.yaml"),
    ],
)
def test_a_word_that_is_not_understood_is_named_with_what_was_probably_meant(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(words)
    assert message in str(raised.value)


def test_no_file_shadows_a_module_that_is_imported_absolutely() -> None:
    """`accelerate launch rl/train.py` puts rl/ first on the path: rl/types.py would be everybody's `types`."""
    installed = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    for folder in ("rl", "eval"):
        names = {path.stem for path in (project_root() / folder).glob("*.py")} | {
            path.parent.name for path in (project_root() / folder).glob("*/__init__.py")}
        assert not (names - {"__init__"}) & installed, folder
        assert folder == "eval" or {"trainer", "generate"} <= names


def test_resuming_in_a_folder_without_a_run_does_not_go_on_with_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(Path("runs") / "other", "steps=1", "evaluation.path=null") == 0
    with pytest.raises(ConfigError, match="run_dir: --resume found no run in runs/none"):
        parse(["run_dir=runs/none", "--resume"])
