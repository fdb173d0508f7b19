"""Policy versions as files: where they are written, in which dtype, and what is left of them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils import save_and_load
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl import checkpoint
from rl.config import PromptSection
from rl.errors import GeneratorError
from rl.generate.version_files import VersionFiles, adapter_bytes, open_with_room, place_with_room
from rl.policy.policy import Policy, all_weights
from rl.questions.run_prompt import RunPrompt
from tests.reference.fork import Fork
from tests.reference.tiny_run import tiny_policy
from tests.reference.whole_run import TOO_LONG_S, full_disk

MB = 10**6
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(adapter_scale=0.05)


def free_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, shm: int, tmp: int, run: int) -> Path:
    """Set the free space (bytes) of shared memory, of the folder for temporary files and of the run's folder, which is
    returned."""
    temporary, run_dir = tmp_path / "tmp", tmp_path / "run"
    temporary.mkdir()
    run_dir.mkdir()
    free = {Path("/dev/shm"): shm, temporary: tmp, run_dir: run}
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, free[folder]))
    return run_dir


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a system without /dev/shm")
@pytest.mark.parametrize(("shm", "tmp", "chosen"), [(600, 0, "/dev/shm"), (64, 600, "tmp"), (64, 599, "run/sampler")])
def test_versions_are_written_where_twice_their_size_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shm: int, tmp: int, chosen: str
) -> None:
    run_dir = free_space(monkeypatch, tmp_path, shm=shm * MB, tmp=tmp * MB, run=10**12)
    files = open_with_room(300 * MB, run_dir / "sampler")
    try:
        assert files._folder.parent == tmp_path / chosen
        assert [path.name for path in (tmp_path / chosen).iterdir()] or chosen == "/dev/shm"
    finally:
        files.close()
    assert not files._folder.exists()


def test_a_place_is_chosen_without_making_anything_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The run's folder is taken for somebody else's where it holds anything before the run has begun."""
    run_dir = free_space(monkeypatch, tmp_path, shm=0, tmp=0, run=10**12)
    assert place_with_room(300 * MB, run_dir / "sampler") == run_dir / "sampler"
    assert list(run_dir.iterdir()) == []


def test_without_room_anywhere_the_error_says_what_is_free_where(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir = free_space(monkeypatch, tmp_path, shm=64 * MB, tmp=100 * MB, run=200 * MB)
    with pytest.raises(GeneratorError, match=r"64 MB free.*100 MB free.*200 MB free.*expected 600 MB.*TMPDIR=DIR"):
        open_with_room(300 * MB, run_dir / "sampler")


@pytest.mark.parametrize("way", ["adapter", "merged"])
def test_a_full_disk_is_an_error_with_its_remedy_and_leaves_nothing(policy: Policy, tmp_path: Path, way: str) -> None:
    files = VersionFiles(tmp_path, remedy="another folder")
    dtype = policy.causal_lm.config.dtype
    message = rf"cannot write .* into {tmp_path}/otherhalf-versions-.*Remedy: another folder"
    with full_disk(20_000), pytest.raises(GeneratorError, match=message):
        getattr(files, way)(policy, 0)
    assert list(files._folder.iterdir()) == [] and policy.causal_lm.config.dtype == dtype
    assert getattr(files, way)(policy, 0).is_dir()  # the next one finds everything as it was
    files.close()


def test_a_folder_that_cannot_be_made_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GeneratorError, match=r"Not a directory.*Remedy: free some space there"):
        VersionFiles(tmp_path / "file")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_is_written_in_the_dtype_that_the_sampler_holds(tmp_path: Path, dtype: torch.dtype) -> None:
    policy = replace(tiny_policy(adapter_scale=0.05), dtype=dtype)
    path = VersionFiles(tmp_path).adapter(policy, 0)
    stored = load_file(path / "adapter_model.safetensors")
    expected = policy.trainable_parameters()
    assert len(stored) == len(expected) > 0
    for name, weight in expected.items():
        assert torch.equal(stored[name.replace(".default.", ".")], weight.to(dtype)) and weight.dtype == torch.float32
    assert sum(weight.nbytes for weight in stored.values()) == adapter_bytes(policy)
    assert isinstance(PeftModel.from_pretrained(policy.pristine_copy(), path), PeftModel)


@pytest.mark.parametrize("is_local", [True, False])
def test_of_killed_processes_alone_the_versions_on_this_machine_are_removed(tmp_path: Path, is_local: bool) -> None:
    """SIGKILL lets nobody clean up. Another program's folder stays, that of a process that still runs, and in a folder
    that machines share that of another machine."""
    elsewhere = tmp_path / "otherhalf-versions-another-machine"

    def hold() -> int:
        VersionFiles(tmp_path, is_local=is_local)
        time.sleep(TOO_LONG_S)
        return 0

    processes = [Fork(hold) for _ in range(2)]
    try:
        while len(held := sorted(tmp_path.glob("otherhalf-versions-*"))) < 2:
            time.sleep(0.01)
        elsewhere.mkdir()
        (tmp_path / "somebody-elses").mkdir()
        mine = VersionFiles(tmp_path, is_local=is_local)
        assert all(folder.exists() for folder in held) and elsewhere.exists() != is_local
        processes[0].kill()
        processes[0].wait(20)
        VersionFiles(tmp_path, is_local=is_local).close()
        assert len([folder for folder in held if folder.exists()]) == 1
        assert mine._folder.exists() and (tmp_path / "somebody-elses").exists()
        mine.close()
    finally:
        for process in processes:
            process.kill()
            process.wait(20)
    VersionFiles(tmp_path, is_local=is_local).close()
    left = {"somebody-elses"} if is_local else {"somebody-elses", elsewhere.name}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_version_is_a_checkpoint_in_the_policys_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    policy = replace(tiny_policy(), dtype=dtype)
    with torch.no_grad():
        for parameter in policy.trainable_parameters().values():
            parameter.add_(0.05)
    before = policy.causal_lm.config.dtype
    path = VersionFiles(tmp_path).merged(policy, 0)
    assert policy.causal_lm.config.dtype == before
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    assert loaded.dtype == dtype and AutoTokenizer.from_pretrained(path).get_vocab() == policy.tokenizer.get_vocab()
    expected = dict(all_weights(policy))
    assert expected.keys() == dict(loaded.named_parameters()).keys()
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_a_written_adapter_asks_no_hub(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*arguments: object, **settings: object) -> bool:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", ask)
    monkeypatch.setattr(policy.model.peft_config["default"], "base_model_name_or_path", "some-one/some-model")
    path = VersionFiles(tmp_path / "versions").adapter(policy, 0)
    assert (path / "adapter_model.safetensors").is_file()
    checkpoint.save_weights(tmp_path, policy, RunPrompt(tmp_path, PromptSection(), (), ()))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
