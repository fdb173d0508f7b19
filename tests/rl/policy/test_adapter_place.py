from __future__ import annotations

from pathlib import Path

import pytest

from rl.policy.adapter_place import adapter_folder, missing_adapter


def saved(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_of_a_run_it_is_the_best_checkpoints_else_the_newests(tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    saved(checkpoints / "step-000009" / "adapter")
    newest = saved(checkpoints / "step-1000000" / "adapter")
    assert adapter_folder(str(tmp_path / "run")) == newest
    (checkpoints / "best").symlink_to("step-000009")
    assert adapter_folder(str(tmp_path / "run")) == checkpoints / "best" / "adapter"
    assert adapter_folder(str(checkpoints / "step-000009")) == checkpoints / "step-000009" / "adapter"
    assert adapter_folder(str(newest)) == newest


def test_a_run_may_be_named_and_a_warm_up_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "runs" / "warm" / "adapter")
    monkeypatch.chdir(tmp_path)
    assert adapter_folder("warm") == Path("runs/warm/adapter") == adapter_folder("runs/warm")


def test_what_there_is_in_place_of_an_adapter_is_told(tmp_path: Path) -> None:
    (tmp_path / "full" / "checkpoints" / "best" / "model").mkdir(parents=True)
    (tmp_path / "full" / "checkpoints" / "best" / "model" / "config.json").write_text("{}")
    assert missing_adapter("nowhere") == "there is no folder nowhere"
    assert "holds a model in the place of an adapter" in missing_adapter(str(tmp_path / "full"))
    assert missing_adapter(str(tmp_path)) == f"{tmp_path} holds no adapter_config.json"
