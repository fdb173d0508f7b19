"""`python -m rl.export --push`: weights with a model card on a hub, which is on this machine."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load

from rl.export import main
from rl.paths import project_root
from rl.runs.folder import RunFolder
from tests.reference.hub_server import Hub, hub
from tests.reference.whole_run import GRPO, pixels, python, summary_of, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "sums"
    with pixels():
        assert train(folder, *GRPO, "optim.lr=5e-3", "steps=2", "rewards.0.name=right") == 0
    return folder


def push(hub: Hub, *words: str, token: str = "hf_secret") -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its endpoint when it is imported."""
    return python("-m", "rl.export", *words, environment={
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"})


def front_matter(card: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return values


def test_a_merged_model_is_pushed_with_its_card_into_a_private_repository(run: Path, tmp_path: Path) -> None:
    with hub() as here:
        done = push(here, str(run), str(tmp_path / "out"), "--push", "someone/sums")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"pushed to {here.url}/someone/sums"
    assert here.private == {"someone/sums"} and "POST /api/validate-yaml" in here.asked
    files = here.repositories["someone/sums"]
    assert files == {str(path.relative_to(tmp_path / "out")): path.read_bytes()
                     for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {"README.md", "curve.png", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert str(project_root()).encode() not in b"".join(files.values())
    assert str(run.parent).encode() not in b"".join(files.values())
    assert load(files["model.safetensors"]) and files["curve.png"] == RunFolder(run).curve_file.read_bytes()


def test_the_card_says_what_the_run_says_and_nothing_of_this_machine(run: Path, tmp_path: Path) -> None:
    assert main([str(run), str(tmp_path / "out"), "--adapter-only"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(card) == {
        "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["otherhalf", "reinforcement-learning", "lora"]}
    assert "# license: choose one" in card.split("---\n")[1]
    assert ModelCard(card).data.to_dict()["library_name"] == "peft"
    assert "A LoRA adapter for tiny-arith, trained for 2 steps" in card and "(curve.png)" in card
    before, after = (summary_of(run)[when]["avg@2"] for when in ("held_out_before", "held_out_after"))
    cells = [f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in (before, after)]
    assert f"| held-out avg@2 | {cells[0]} | {cells[1]} |" in card
    assert "rewards: `rewards.accuracy:accuracy` (weight 1)" in card
    assert "data: train_with_answers.jsonl, gold answers read" in card
    settings = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card, re.S)[0])
    assert settings["optim"]["lr"] == 5e-3 and settings["rewards"][0]["use"] == "rewards.accuracy:accuracy"
    assert "run_dir" not in settings and "tracking" not in settings
    assert not re.search(r"(?<![\w.])/(?!/)\w+/", card.replace("rl/train.py", "")), card
    assert all(f"{package} {version}" in card for package, version in summary_of(run)["versions"].items())


def test_an_adapter_alone_is_the_runs_own(run: Path, tmp_path: Path) -> None:
    assert main([str(run), str(tmp_path / "out"), "--adapter-only"]) == 0
    trained = RunFolder(run).checkpoints / "best" / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (trained / name).read_bytes()
    assert (tmp_path / "out" / "run_prompt.json").is_file() and (tmp_path / "out" / "tokenizer.json").is_file()
    assert main([str(tmp_path / "out"), str(tmp_path / "merged")]) == 0  # an adapter's folder, without its run
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "The weights of tiny-arith, trained with otherhalf." in card and "## Evaluation" not in card


def test_what_the_hub_refuses_is_told_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    with hub() as here:
        here.repositories["someone/open"] = {}
        for words, token, message in (
            (["--push", "someone/sums"], "hf_wrong", "error: --push: someone/sums: "),
            (["--push", "no such name"], "hf_secret", "error: --push: no such name: "),
            (["--push", "someone/open"], "hf_secret", "error: --push: the repository someone/open is public. Remedy: "),
        ):
            refused = push(here, str(run), str(tmp_path / "out"), *words, token=token)
            assert refused.returncode == 2 and message in refused.stderr and "Traceback" not in refused.stderr
            assert not (tmp_path / "out").exists()
        here.full = True
        refused = push(here, str(run), str(tmp_path / "out"), "--push", "someone/sums")
    assert refused.returncode == 2 and f"`hf upload someone/sums {tmp_path / 'out'}` tries again" in refused.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_card_that_is_there_is_kept(run: Path, tmp_path: Path) -> None:
    with hub() as here:
        here.repositories["someone/open"] = {"README.md": b"---\nlicense: mit\n---\nmine\n"}
        done = push(here, str(run), str(tmp_path / "out"), "--adapter-only", "--push", "someone/open", "--public")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("someone/open, whose README.md is kept\n") and not here.private
    files = here.repositories["someone/open"]
    assert files["README.md"].endswith(b"mine\n") and "adapter_model.safetensors" in files
    # Others do not have the folder of the base, and need not know of it.
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "tiny-arith"
    assert "warning: the base is tiny-arith, a folder of this machine" in done.stderr
    assert str(run.parent).encode() not in b"".join(files.values())
