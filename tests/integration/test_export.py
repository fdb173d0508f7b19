"""`python -m rl.export`: a trained policy as a plain checkpoint that computes what the policy computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl.export import main
from rl.paths import project_root
from rl.runs.folder import RunFolder
from tests.reference.fork import Fork
from tests.reference.whole_run import GRPO, full_disk, in_process, train

BASE = project_root() / "models" / "tiny-arith"


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "run"
    assert train(folder, *GRPO, "optim.lr=5e-3", "steps=2") == 0
    return folder


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "run"
    assert train(folder, *GRPO, "lora.enabled=false", "optim.lr=1e-3", "steps=2", "evaluation.path=null") == 0
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    tokens = AutoTokenizer.from_pretrained(BASE)(["12+7-3=?\n", "5-4+11=?\n"], return_tensors="pt", padding=True)[
        "input_ids"]
    result: torch.Tensor = model.eval()(input_ids=tokens).logits
    return result


def base_model() -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    return model


def test_the_exported_model_computes_what_base_and_adapter_compute(adapter_run: Path, tmp_path: Path) -> None:
    finished = Fork(lambda: main([str(adapter_run), str(tmp_path / "out")])).finished()
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(f"wrote {tmp_path / 'out'}: ")
    assert finished.stderr == ""
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(base_model(), str(RunFolder(adapter_run).checkpoints / "best" / "adapter"))
    assert (logits(with_adapter) - logits(base_model())).abs().max() > 1e-2
    torch.testing.assert_close(logits(exported), logits(with_adapter), atol=1e-5, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("12+7=?\n")["input_ids"] == AutoTokenizer.from_pretrained(BASE)("12+7=?\n")["input_ids"]


def test_the_exported_model_trains_as_a_base(adapter_run: Path, tmp_path: Path) -> None:
    assert main([str(adapter_run), str(tmp_path / "out")]) == 0
    assert train(tmp_path / "run", f"model.path={tmp_path / 'out'}", "steps=1") == 0


def test_the_named_checkpoint_is_exported(adapter_run: Path, tmp_path: Path) -> None:
    assert main([str(adapter_run), str(tmp_path / "start"), "--checkpoint", "step-000000"]) == 0
    exported, base = load_file(tmp_path / "start" / "model.safetensors"), load_file(BASE / "model.safetensors")
    assert exported.keys() == base.keys()
    assert all(torch.equal(exported[name].float(), base[name].float()) for name in base)


def test_an_adapter_folder_is_exported_without_its_run(adapter_run: Path, tmp_path: Path) -> None:
    adapter = RunFolder(adapter_run).checkpoints / "best" / "adapter"
    assert main([str(adapter), str(tmp_path / "a")]) == main([str(adapter_run), str(tmp_path / "b")]) == 0
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_run_of_all_parameters_is_exported_with_its_trained_weights(full_run: Path, tmp_path: Path) -> None:
    assert main([str(full_run), str(tmp_path / "out")]) == 0
    trained = load_file(RunFolder(full_run).checkpoints / "step-000002" / "model" / "model.safetensors")
    exported, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(BASE / "model.safetensors")
    assert all(torch.equal(exported[name], trained[name]) for name in trained)
    assert any(not torch.equal(exported[name].float(), base[name].float()) for name in base)


def test_the_stored_dtype_can_be_chosen(adapter_run: Path, tmp_path: Path) -> None:
    assert main([str(adapter_run), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("mine")
    assert main([str(adapter_run), str(tmp_path)]) == 2
    assert "not an empty folder; name a new one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(("run", "more", "message"), [
    ("nothing-there", [], "no run 'nothing-there'"),
    ("RUN", ["--checkpoint", "step-000009"], "has no 'step-000009'; there: step-000002, "),
])
def test_what_is_not_there_is_named_and_nothing_is_written(
    adapter_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, more: list[str], message: str
) -> None:
    assert main([str(adapter_run) if run == "RUN" else run, str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "steps=1", "evaluation.path=null") == 0
    weights = RunFolder(tmp_path / "run").checkpoints / "step-000001" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main([str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert "is damaged: adapter_model.safetensors has " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_behind(adapter_run: Path, tmp_path: Path) -> None:
    with full_disk(100_000):
        finished = in_process(main, str(adapter_run), str(tmp_path / "out"))
    assert finished.returncode == 2
    assert f"error: cannot write {tmp_path / 'out'}: " in finished.stderr and "Remedy" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert list(tmp_path.iterdir()) == []
