"""`python -m rl.warmup` on the tiny model: its result is the policy that rl/train.py starts from, it goes on after a
kill, and bad input leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rl.config import LoraSection, ModelSection
from rl.configuration.loading import load
from rl.export import main as export
from rl.paths import project_root, resolve_path
from rl.policy.policy import Policy, PolicyError, load_policy
from rl.runs.folder import RunFolder
from rl.supervised import run as warmup
from rl.supervised.config import WarmupConfig
from rl.supervised.inputs import WarmupInputs, read_warmup_inputs
from rl.warmup import main
from tests.reference.fork import Fork, after_line, forked_ranks, signal_itself
from tests.reference.tiny_run import literal_logprobs
from tests.reference.warmup import warm_up
from tests.reference.whole_run import GRPO, in_process, metrics_of, python, summary_of, train, trained_steps

BASE = project_root() / "models" / "tiny-arith"
HELD_OUT = "evaluation.path=models/tiny-arith/questions/held_out.jsonl"


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora") / "warmup"
    assert warm_up(folder, HELD_OUT, "merge=true") == 0
    return folder


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "warmup"
    packed = ("packing=true", "data.max_tokens=128", "optim.batch_rows=4")
    assert warm_up(folder, HELD_OUT, "lora.enabled=false", "optim.lr=3e-4", *packed) == 0
    return folder


def policy_of(model: Path, adapter: Path | None = None, lora: LoraSection | None = None) -> Policy:
    return load_policy(
        ModelSection(path=str(model), adapter=None if adapter is None else str(adapter), dtype="float32"),
        lora or LoraSection(rank=4),
        AutoTokenizer.from_pretrained(BASE),
        seed=0,
        device=torch.device("cpu"),
        keep_reference=False)


def logprobs(policy: Policy) -> torch.Tensor:
    """Of the first solutions' tokens: [T]."""
    rows = read_warmup_inputs(load(None, ["data.limit=8", "evaluation.path=null"], WarmupConfig)).rows
    return torch.cat([literal_logprobs(policy, row.prompt.token_ids, row.completion_ids) for row in rows])


def test_adapter_and_merged_checkpoint_are_one_policy_and_not_the_base(lora_run: Path) -> None:
    assert sorted(entry.name for entry in lora_run.iterdir()) == [
        "adapter", "config.resolved.yaml", "curve.png", "metrics.jsonl", "model", "summary.json"]
    adapted = logprobs(policy_of(BASE, lora_run / "adapter"))
    torch.testing.assert_close(logprobs(policy_of(lora_run / "model")), adapted, atol=1e-5, rtol=1e-5)
    assert (adapted - logprobs(policy_of(BASE))).abs().max() > 1e-2


KINDS = ("adapter", "merged", "full parameters")


def result_of(kind: str, request: pytest.FixtureRequest) -> tuple[Path, Path, Path | None]:
    """The warm-up's folder, and the checkpoint and the adapter that a training run starts from."""
    folder: Path = request.getfixturevalue("full_run" if kind == "full parameters" else "lora_run")
    return (folder, BASE, folder / "adapter") if kind == "adapter" else (folder, folder / "model", None)


@pytest.mark.parametrize("kind", KINDS)
def test_the_results_log_probabilities_are_those_of_the_warmed_up_policy(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The warm-up's last held-out loss, computed from the weights that it trained, is minus their mean. On a merged
    checkpoint a new adapter is stacked, which changes nothing before it is trained."""
    folder, model, adapter = result_of(kind, request)
    rows = read_warmup_inputs(load(RunFolder(folder).config_file, [], WarmupConfig)).held_out_rows
    policy = policy_of(model, adapter, LoraSection(enabled=False) if kind == "full parameters" else None)
    assert policy.is_adapter == (kind != "full parameters")
    mean = torch.cat([literal_logprobs(policy, row.prompt.token_ids, row.completion_ids) for row in rows]).mean().item()
    assert -mean == pytest.approx(metrics_of(folder)[-1]["held_out/loss"], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_after_warm_up_and_training_the_export_is_the_trained_policy(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, model, adapter = result_of(kind, request)
    words = ["lora.enabled=false"] if kind == "full parameters" else ["lora.rank=4"]
    start = [f"model={model}", *([] if adapter is None else [f"model.adapter={adapter}"])]
    assert train(tmp_path / "run", *GRPO, *words, *start, "steps=2", "optim.lr=2e-3", "evaluation.path=null") == 0
    assert export([str(tmp_path / "run"), str(tmp_path / "out"), "--checkpoint", "step-000002"]) == 0
    last = RunFolder(tmp_path / "run").checkpoints / "step-000002"
    trained = logprobs(policy_of(last / "model") if kind == "full parameters" else policy_of(model, last / "adapter"))
    torch.testing.assert_close(logprobs(policy_of(tmp_path / "out")), trained, atol=1e-5, rtol=1e-5)
    assert (trained - logprobs(policy_of(model, adapter))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_run_begins_where_the_warm_up_ended_and_trains(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    warmup: Path = request.getfixturevalue("full_run" if kind == "full parameters" else "lora_run")
    words = {
        "adapter": ["lora.rank=4", f"model.adapter={warmup / 'adapter'}"],
        "merged": ["lora.rank=4", f"model={warmup / 'model'}"],
        "full parameters": ["lora.enabled=false", f"model={warmup / 'model'}"],
    }[kind]
    assert train(tmp_path / "run", *GRPO, *words, "steps=2", "sampling.max_completion_tokens=48") == 0
    assert trained_steps(tmp_path / "run") == [1, 2]
    # The same questions, random numbers and weights: the same accuracy to the last digit.
    before, after_warmup = summary_of(tmp_path / "run")["held_out_before"], summary_of(warmup)["held_out_after"]
    assert before["avg@2"]["value"] == after_warmup["avg@2"]["value"]
    assert metrics_of(tmp_path / "run")[1]["optim/grad_norm"] > 0  # type: ignore[operator]
    if kind == "adapter":
        trained = load_file(
            RunFolder(tmp_path / "run").checkpoints / "step-000002" / "adapter" / "adapter_model.safetensors")
        assert trained.keys() == load_file(warmup / "adapter" / "adapter_model.safetensors").keys()


def test_a_warm_up_learns_and_records_it_as_a_run_does(lora_run: Path, full_run: Path) -> None:
    for folder in (lora_run, full_run):
        metrics = metrics_of(folder)
        assert [(line["step"], line["kind"]) for line in metrics] == [
            (0, "eval"),
            (1, "train"),
            (2, "train"),
            (2, "eval"),
            (3, "train"),
            (4, "train"),
            (4, "eval"),
            (5, "train"),
            (6, "train"),
            (6, "eval")]
        losses: list[Any] = [line["held_out/loss"] for line in metrics if line["kind"] == "eval"]
        assert losses[-1] < 0.8 * losses[0]
        assert summary_of(folder)["steps"] == 6 and summary_of(folder)["stop_reason"] == "completed"
        assert load(RunFolder(folder).config_file, [], WarmupConfig).run_dir == folder


def test_an_earlier_warm_up_goes_on_as_an_adapter(lora_run: Path, tmp_path: Path) -> None:
    assert warm_up(tmp_path / "more", "evaluation.path=null", f"model.adapter={lora_run / 'adapter'}", "steps=1") == 0
    first, last = (
        metrics_of(folder)[where]["held_out/loss"] for folder, where in ((tmp_path / "more", 0), (lora_run, -1)))
    assert first == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_warm_up_that_was_ended_leaves_no_result_and_goes_on_to_the_uninterrupted_one(
    number: signal.Signals, lora_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "warmup"
    with after_line({"kind": "train", "step": 3}, signal_itself(number)):
        ended = Fork(lambda: warm_up(folder, HELD_OUT, "merge=true")).finished()
    assert ended.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    assert not (folder / "adapter").exists() and not RunFolder(folder).summary_file.exists()
    assert warm_up(folder, HELD_OUT, "merge=true", "--resume") == 0
    assert metrics_of(folder) == metrics_of(lora_run)
    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (folder, lora_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert warm_up(folder, HELD_OUT, "merge=true", "--resume") == 2  # complete


def test_two_processes_train_as_one(lora_run: Path, tmp_path: Path) -> None:
    for finished in forked_ranks(lambda: warm_up(tmp_path / "warmup", HELD_OUT)):
        assert finished.returncode == 0, finished.stderr
        assert "error" not in finished.stderr
    for mine, theirs in zip(metrics_of(tmp_path / "warmup"), metrics_of(lora_run), strict=True):
        assert mine.keys() == theirs.keys() and mine["kind"] == theirs["kind"]
        # TRL's entropy and accuracy are means over micro-batches, weighted otherwise over ranks.
        compared = mine.keys() - {"kind", "policy/token_entropy", "loss/token_accuracy"}
        assert {name: mine[name] for name in compared} == pytest.approx(
            {name: theirs[name] for name in compared}, rel=1e-5)
    assert (tmp_path / "warmup" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_process_that_fails_alone_ends_those_that_wait_for_it(tmp_path: Path) -> None:
    load_policy = warmup.load_warmup_policy

    def fail_in_second(config: WarmupConfig, inputs: WarmupInputs, device: torch.device) -> Policy:
        if os.environ["RANK"] == "1":
            raise PolicyError("its memory is full")
        return load_policy(config, inputs, device)

    with patch.object(warmup, "load_warmup_policy", fail_in_second):
        first, second = forked_ranks(lambda: warm_up(tmp_path / "warmup"))
    assert (first.returncode, second.returncode) == (2, 2), first.stderr + second.stderr
    assert "its memory is full" in second.stderr
    assert "waited for process 1 to prepare the run's folder, and process 1 has ended (its memory" in first.stderr


def test_other_settings_and_other_data_are_no_resumption(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "warmup"
    with after_line({"kind": "train", "step": 5}, signal_itself(signal.SIGTERM)):
        assert warm_up(folder, HELD_OUT, "steps=2000", "evaluation.every=0") == 0
    before = RunFolder(folder).config_file.read_text()
    assert (
        warm_up(folder, HELD_OUT, "steps=2000", "evaluation.every=0", "optim.lr=1e-4", "data.limit=32", "--resume") == 2
    )
    said = capsys.readouterr().err
    assert (
        "optim.lr: 0.0001, but the run in" in said and "data.limit: 32" in said and "data.path: the rows differ" in said
    )
    assert RunFolder(folder).config_file.read_text() == before


@pytest.fixture(scope="module")
def other_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints: the tiny model's shape with other weights, another shape, and an output layer with weights of its
    own."""
    folders = {}
    for name, width in (("same shape", None), ("other shape", 64), ("untied", None)):
        config = LlamaConfig.from_pretrained(BASE)
        config.tie_word_embeddings = name != "untied"
        config.hidden_size = width or config.hidden_size
        config.head_dim = config.hidden_size // config.num_attention_heads
        torch.manual_seed(1)
        folders[name] = tmp_path_factory.mktemp("base") / name.replace(" ", "_")
        LlamaForCausalLM(config).save_pretrained(folders[name])
        AutoTokenizer.from_pretrained(BASE).save_pretrained(folders[name])
    return folders


@pytest.mark.parametrize("shape", ["same shape", "other shape"])
def test_an_adapter_on_the_wrong_base_is_refused_by_training_and_warm_up(
    shape: str, other_bases: dict[str, Path], lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model={other_bases[shape]}", f"model.adapter={lora_run / 'adapter'}", "lora.rank=4"]
    assert train(tmp_path / "run", *GRPO, *words) == 2
    assert warm_up(tmp_path / "warmup", *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 2 and all("was made for another base" in line for line in said)
    assert list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_the_file_is_one_line_and_an_earlier_run_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = resolve_path("models/tiny-arith/questions/train_with_answers.jsonl")
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "1+1=?", "solution": "2" * 300}) + "\n")
    earlier = tmp_path / "warmup"
    assert warm_up(earlier, "evaluation.path=null", "steps=1") == 0
    files = {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()}
    capsys.readouterr()
    for words, said in (
        ([f"data={questions}"], f"error: {questions}:1: no 'solution' field; the row has: id, question, answer."),
        ([f"data={long}"], f"error: {long}:1: 6 tokens of prompt and 301 of solution make 307, above 256"),
        (["data.max_tokens=300"], "error: data.max_tokens: 300 tokens, above the model's context of 256"),
        (["optim.learning_rates=1"], "error: override optim.learning_rates: unknown key; optim has: lr, betas"),
        (["data.held_out_rows=64"], "error: data.held_out_rows: 64 of 64 rows leave none to train on"),
        (
            [HELD_OUT, "evaluation.max_completion_tokens=250"],
            "error: evaluation.max_completion_tokens: 250 tokens after the longest",
        ),
        (
            ["warmup_tiny.yaml"],
            "error: 'warmup_tiny.yaml': expected an option or key=value (did you mean --config warmup_tiny.yaml?)",
        ),
    ):
        assert warm_up(earlier, "evaluation.path=null", *words) == 2
        said_of_it = capsys.readouterr().err.strip().splitlines()
        assert len(said_of_it) == 1 and said_of_it[0].startswith(said)
    assert {path: path.read_bytes() for path in earlier.rglob("*") if path.is_file()} == files
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["long.jsonl", "warmup"]


def test_an_adapter_on_the_output_layer_which_trl_would_not_train_is_refused(
    other_bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the dry run too, without weights."""
    for more in ([], ["--dry-run"]):
        assert warm_up(tmp_path / "warmup", f"model={other_bases['untied']}", "lora.targets=[lm_head]", *more) == 2
        assert (
            "error: lora.targets: TRL's trainer reads the output layer's weight without its adapter"
            in capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_missing_or_other_trl_is_one_line_before_anything_is_read(tmp_path: Path) -> None:
    """The metadata of installed packages decide: a folder before them says another version; a finder that passes over
    trl's hides it."""
    metadata = tmp_path / "trl-1.9.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 1.9.2\n")
    for begin, said in (
        (
            f"sys.path.insert(0, {str(tmp_path)!r})",
            "trl 1.9.2 is installed; a warm-up was tested with trl>=1.16,<1.17.",
        ),
        (
            (
                "import importlib.metadata as m; find = m.MetadataPathFinder.find_distributions; "
                "m.MetadataPathFinder.find_distributions = lambda c=m.DistributionFinder.Context(): [] if c.name == "
                "'trl' else find(c)"
            ),
            "trl is not installed, and a warm-up trains with its SFTTrainer; expected trl>=1.16,<1.17.",
        ),
    ):
        finished = python("-c", f"import sys; {begin}\nfrom rl.warmup import main\nsys.exit(main(sys.argv[1:]))",
                          "data=missing.jsonl", f"run_dir={tmp_path / 'warmup'}")
        assert (finished.returncode, finished.stderr) == (2, f"error: {said} Remedy: pip install -e '.[trl]'\n")
    assert not (tmp_path / "warmup").exists()


def test_a_dry_run_shows_the_first_row_and_help_every_key(tmp_path: Path) -> None:
    finished = in_process(main, "--dry-run", f"run_dir={tmp_path / 'warmup'}")
    assert finished.returncode == 0, finished.stderr
    assert "what is learnt after it      '19+18=37\\n\\\\boxed{37}<eos>', 20 tokens" in finished.stdout
    assert not (tmp_path / "warmup").exists()
    page = python("rl/warmup.py", "--help").stdout
    assert "optim.batch_rows" in page and "data.columns.solution" in page and "sampling.group_size" not in page
