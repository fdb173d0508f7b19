"""Checkpoints hold everything, are written whole or not at all, and say what is wrong with them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import resource
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rl.checkpoint import (
    CheckpointError,
    check_same_run,
    checkpoint_name,
    list_checkpoints,
    load_weights,
    mark_best,
    prune,
    read_state,
    recover,
    save_checkpoint,
    verify,
)
from rl.config import RunConfig
from rl.configuration.loading import load
from rl.evaluation.benchmarks import BenchmarkHistory
from rl.policy.policy import Policy
from rl.proof.proof import ProofState
from rl.runs.summary import Best
from rl.trainer_state import Stop, TrainerState
from tests.reference.scored_groups import scored_group
from tests.reference.tiny_run import make_updater, sampled_groups, tiny_config, tiny_policy, trained, with_advantages
from tests.reference.trainer_states import earlier_state, trainer_state

torch.set_num_threads(1)


def state(step: int = 3) -> TrainerState:
    known = trainer_state(step)
    evaluations = replace(
        known.evaluations, goals_since=(0.1 + 0.2,), best=Best(2, 1 / 3, "checkpoints/best", "avg@2"))
    surplus = (scored_group("q", ["1", "2", None]),)
    return replace(known, evaluations=evaluations, collector=replace(known.collector, surplus=surplus), data={})


def optimiser(policy: Policy) -> torch.optim.Optimizer:
    return torch.optim.AdamW(policy.trainable_parameters().values(), lr=1e-3)


def take_step(policy: Policy, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A step along made-up gradients, so that AdamW has moments to store."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.trainable_parameters().values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(adapter_scale=0.05)


def save(folder: Path, policy: Policy, step: int = 3, config: RunConfig | None = None) -> Path:
    optimizer = optimiser(policy)
    return save_checkpoint(
        folder, state(step), policy, optimizer, [{"cpu": torch.get_rng_state()}], config or tiny_config())


@contextlib.contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond the bound, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("overrides", [(), ("lora.enabled=false",), ("model.dtype=bfloat16",)])
def test_weights_optimiser_and_rng_come_back_bit_for_bit(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = tiny_config(*overrides)
    policy = tiny_policy(config)
    optimizer = optimiser(policy)
    for seed in range(2):
        take_step(policy, optimizer, seed)
    rng = [{"cpu": torch.get_rng_state()}, {"cpu": torch.manual_seed(9).get_state()}]
    path = save_checkpoint(tmp_path, state(), policy, optimizer, rng, config)
    verify(path)
    assert path.name == checkpoint_name(3) == "step-000003"

    again = tiny_policy(config)
    optimizer_again = optimiser(again)
    states = load_weights(path, again, optimizer_again)
    assert all(
        torch.equal(one, two) for one, two in zip((s["cpu"] for s in states), (r["cpu"] for r in rng), strict=True))
    saved = trained(policy)
    assert all(torch.equal(weight, saved[name]) for name, weight in trained(again).items())
    for one, two in ((policy, optimizer), (again, optimizer_again)):
        take_step(one, two, 5)
    continued = trained(policy)
    assert all(torch.equal(weight, continued[name]) for name, weight in trained(again).items())
    assert not torch.equal(continued[next(iter(saved))], saved[next(iter(saved))])


def test_an_update_after_loading_equals_the_update_without_the_detour(tmp_path: Path) -> None:
    config = tiny_config()
    policy, again = tiny_policy(config), tiny_policy(config)
    updaters = [make_updater(config, each, Accelerator(cpu=True)) for each in (policy, again)]
    batch = with_advantages(sampled_groups(policy, 2))
    updaters[0].update(batch, step=0, policy_version=0)
    path = save_checkpoint(tmp_path, state(1), policy, updaters[0]._optimizer, [{"cpu": torch.get_rng_state()}], config)
    load_weights(path, again, updaters[1]._optimizer)
    reports = [updater.update(batch, step=1, policy_version=1) for updater in updaters]
    expected = trained(policy)
    assert reports[0] == reports[1]
    assert all(torch.equal(weight, expected[name]) for name, weight in trained(again).items())


def test_the_state_comes_back_exactly(tmp_path: Path, policy: Policy) -> None:
    path = save(tmp_path, policy)
    assert json.loads(json.dumps(asdict(read_state(path)))) == json.loads(json.dumps(asdict(state())))
    assert read_state(path) == state()
    assert load(path / "config.yaml", []) == tiny_config()


def test_the_state_that_an_earlier_version_wrote_is_read_and_written_under_the_same_keys() -> None:
    recorded = earlier_state()
    found = TrainerState.from_json(recorded)
    added_since = {"num_open": 0, "next_step": 0}
    recorded["memory"]["proof"] |= added_since
    assert json.loads(json.dumps(found.to_json())) == recorded
    assert found.collector.order.position == recorded["order"]["position"]
    assert found.collector.ahead is not None and found.collector.ahead.groups[0].rewards == tuple(
        recorded["ahead"]["groups"][0]["rewards"])
    assert found.watchdog.evaluations[-1].accuracy == recorded["watchdog"]["evaluations"][-1][1]
    assert found.evaluations.goals_since == tuple(recorded["memory"]["rewards_since_evaluation"])
    assert found.evaluations.benchmarks.at == {"tiny_arith": 3} and found.proof.num_updates == 3
    assert found.positions.metrics == recorded["positions"]["metrics"] and found.stop is None


def test_what_still_earlier_versions_did_not_write_is_as_at_the_start() -> None:
    recorded = earlier_state()
    for key in ("proof", "evaluation_due", "benchmarks"):
        del recorded["memory"][key]
    del recorded["watchdog"]["first"], recorded["ahead"], recorded["best"]["metric"]
    found = TrainerState.from_json({**recorded, "memory": {**recorded["memory"], "stopped": ["completed", None]}})
    assert found.proof == ProofState() and found.evaluations.benchmarks == BenchmarkHistory()
    assert not found.evaluations.is_due and found.watchdog.first is None and found.collector.ahead is None
    assert found.stop == Stop("completed", None) and found.evaluations.best is not None
    assert found.evaluations.best.metric == "accuracy"


def test_nothing_in_a_checkpoint_needs_pickle(tmp_path: Path, policy: Policy) -> None:
    path = save(tmp_path, policy)
    for name in ("optimizer.pt", "rng.pt"):
        torch.load(path / name, weights_only=True)
    assert {file.suffix for file in path.rglob("*") if file.is_file()} <= {
        ".pt", ".json", ".yaml", ".safetensors", ".md"}


def test_code_hidden_in_a_checkpoint_is_not_run(tmp_path: Path, policy: Policy) -> None:
    path = save(tmp_path, policy)
    torch.save(Payload(tmp_path / "ran"), path / "rng.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_weights(path, policy, optimiser(policy))
    assert not (tmp_path / "ran").exists()


class Payload:
    """Unpickled without care it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_weights_of_another_shape_of_adapter_are_refused(tmp_path: Path, policy: Policy) -> None:
    path = save(tmp_path, policy)
    other = tiny_policy(tiny_config("lora.targets=[q_proj]"))
    with pytest.raises(CheckpointError, match=r"other modules than this policy.*lora\.targets"):
        load_weights(path, other, optimiser(other))


def damaged_by_cutting(path: Path) -> str:
    file = path / "optimizer.pt"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    return r"optimizer\.pt has \d+ bytes where \d+ were written"


def damaged_by_one_byte(path: Path) -> str:
    file = path / "adapter" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return r"contents of adapter_model\.safetensors have changed"


def damaged_by_a_missing_file(path: Path) -> str:
    (path / "state.json").unlink()
    return r"state\.json is missing"


def damaged_by_a_missing_manifest(path: Path) -> str:
    (path / "manifest.json").unlink()
    return r"manifest\.json cannot be read"


def damaged_by_a_cut_manifest(path: Path) -> str:
    (path / "manifest.json").write_text((path / "manifest.json").read_text()[:30])
    return r"manifest\.json cannot be read"


def damaged_by_another_manifest(path: Path) -> str:
    (path / "manifest.json").write_text('{"state.json": 5}')
    return r"manifest\.json cannot be read"


@pytest.mark.parametrize(
    "damage",
    [
        damaged_by_cutting, damaged_by_one_byte, damaged_by_a_missing_file, damaged_by_a_missing_manifest,
        damaged_by_a_cut_manifest, damaged_by_another_manifest,
    ],
)
@pytest.mark.parametrize("with_older", [True, False])
def test_damage_is_found_and_the_message_says_how_to_go_on(
    tmp_path: Path, policy: Policy, damage: object, with_older: bool
) -> None:
    if with_older:
        save(tmp_path, policy, 2)
    path = save(tmp_path, policy, 3)
    verify(path)
    assert callable(damage)
    what = damage(path)
    remedy = f"Remedy: remove {path} to go on from step-000002" if with_older else "Remedy: start the run anew"
    with pytest.raises(CheckpointError, match=f"checkpoint .*step-000003 is damaged: .*{what}.*{remedy}"):
        verify(path)


@pytest.mark.parametrize("state", ['{"step": 3, "colour": "red"}', "[]", "3"])
def test_a_state_of_another_version_is_refused(tmp_path: Path, policy: Policy, state: str) -> None:
    path = save(tmp_path, policy)
    (path / "state.json").write_text(state)
    with pytest.raises(CheckpointError, match="another version of otherhalf"):
        read_state(path)


@pytest.mark.parametrize("num_bytes", [100, 50_000, 300_000])
@pytest.mark.parametrize("step", [4, 3])
def test_a_full_disk_leaves_the_previous_checkpoints_as_they_were(tmp_path: Path, num_bytes: int, step: int) -> None:
    """100 bytes stop at the first file, 50 000 within the adapter, 300 000 within the optimiser's state; step 3 is
    there already."""
    policy = tiny_policy()
    optimizer = optimiser(policy)
    take_step(policy, optimizer, 0)
    paths = [
        save_checkpoint(tmp_path, state(s), policy, optimizer, [{"cpu": torch.get_rng_state()}], tiny_config())
        for s in (2, 3)]
    mark_best(tmp_path, paths[0])
    sizes = {file.name: file.stat().st_size for file in paths[1].rglob("*")}
    assert 50_000 < sizes["adapter_model.safetensors"] < 300_000 < sizes["optimizer.pt"]
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with files_limited_to(num_bytes), pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, state(step), policy, optimizer, [{"cpu": torch.get_rng_state()}], tiny_config())
    message = str(caught.value)
    assert f"could not write checkpoint {tmp_path / checkpoint_name(step)}" in message
    assert "untouched: step-000002, step-000003" in message and "Remedy: free disk space" in message
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    for path in paths:
        verify(path)
    verify(save_checkpoint(tmp_path, state(step), policy, optimizer, [{"cpu": torch.get_rng_state()}], tiny_config()))


def test_the_limit_of_this_test_is_the_kernels(tmp_path: Path) -> None:
    with files_limited_to(10), pytest.raises(OSError) as caught:
        (tmp_path / "x").write_bytes(b"0" * 100)
    assert caught.value.errno == errno.EFBIG


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, policy: Policy) -> None:
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(
        CheckpointError, match=r"could not write checkpoint .*Earlier checkpoints are untouched: none yet"
    ):
        save(tmp_path / "checkpoints", policy)


def test_the_same_step_saved_again_replaces_the_first_copy(tmp_path: Path, policy: Policy) -> None:
    save(tmp_path, policy)
    optimizer = optimiser(policy)
    path = save_checkpoint(tmp_path, replace(state(), policy_version=77), policy, optimizer,
        [{"cpu": torch.get_rng_state()}], tiny_config())
    verify(path)
    assert read_state(path).policy_version == 77
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-000003"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_and_the_best_are_kept(tmp_path: Path, policy: Policy) -> None:
    paths = [save(tmp_path, policy, step) for step in (1, 2, 3, 4, 5)]
    mark_best(tmp_path, paths[1])
    prune(tmp_path, 2)
    assert names(tmp_path) == ["best", "step-000002", "step-000004", "step-000005"]
    assert (tmp_path / "best").resolve() == paths[1].resolve()
    mark_best(tmp_path, paths[4])
    prune(tmp_path, 1)
    assert names(tmp_path) == ["best", "step-000005"]
    verify(tmp_path / "best")


def test_leftovers_of_a_killed_save_are_no_checkpoints_and_are_removed(tmp_path: Path, policy: Policy) -> None:
    save(tmp_path, policy, 1)
    (tmp_path / ".writing-000002").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]
    prune(tmp_path, 2)
    assert names(tmp_path) == ["step-000001"]


def test_checkpoints_are_listed_by_step(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 5):
        (tmp_path / checkpoint_name(step)).mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000005", "step-999999", "step-1000000"]
    assert list_checkpoints(tmp_path / "nowhere") == []


def check(stored: RunConfig, now: RunConfig, *, num_ranks: int = 1, step: int = 3) -> None:
    check_same_run(Path("runs/x/checkpoints/step-000003"), stored, now, state(step), num_ranks, {})


def test_other_questions_than_at_the_start_are_refused_by_name() -> None:
    began = replace(state(3), data={"data.path": "aa", "evaluation.path": "bb"})
    path = Path("runs/x/checkpoints/step-000003")
    check_same_run(path, tiny_config(), tiny_config(), began, 1, began.data)
    with pytest.raises(CheckpointError, match=r"evaluation\.path gives other prompts .*Remedy"):
        check_same_run(path, tiny_config(), tiny_config(), began, 1, {"data.path": "aa", "evaluation.path": "changed"})


def test_another_teacher_than_at_the_start_is_refused_by_its_key() -> None:
    began = replace(state(3), data={"data.path": "aa", "teacher.path": "cc", "teacher.adapter": "dd"})
    path = Path("runs/x/checkpoints/step-000003")
    check_same_run(path, tiny_config(), tiny_config(), began, 1, began.data)
    check_same_run(path, tiny_config(), tiny_config(), replace(began, data={"data.path": "aa"}), 1, began.data)
    with pytest.raises(
        CheckpointError, match=r"^teacher\.adapter: the weights differ from those that the run began with .*Remedy"
    ):
        check_same_run(path, tiny_config(), tiny_config(), began, 1, {**began.data, "teacher.adapter": "changed"})
    servers = ["teacher.path=x", "teacher.backend=vllm_server", "teacher.urls=[http://a:1]"]
    check(tiny_config(*servers), tiny_config(*servers[:2], "teacher.urls=[http://b:1]"))
    with pytest.raises(CheckpointError, match=r"teacher\.served_model: 'a' then, 'b' now"):
        check(tiny_config(*servers, "teacher.served_model=a"), tiny_config(*servers, "teacher.served_model=b"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("optim.lr=1e-6", r"optim\.lr: 0\.0005 then, 1e-06 now"), ("seed=5", "seed: 0 then, 5 now"),
        ("lora.rank=8", r"lora\.rank: 4 then"), ("rewards.0.weight=2", r"rewards\.0\.weight"),
        ("sampling.group_size=8", r"sampling\.group_size"), ("data.limit=3", r"data\.limit"),
        ("optim.epochs=2", r"optim\.epochs"), ("evaluation.samples=3", r"evaluation\.samples"),
    ],
)
def test_another_configuration_is_refused_by_its_key(override: str, key: str) -> None:
    with pytest.raises(CheckpointError, match=f"belongs to another configuration: .*{key}.*Remedy"):
        check(tiny_config(), tiny_config(override))


@pytest.mark.parametrize("override", [
    "steps=100", "run_dir=elsewhere", "tracking.progress=off", "checkpoint.every=3", "watchdog.enabled=false",
    "optim.micro_batch_tokens=77", "generator.max_sequences=8"])
def test_keys_that_do_not_change_what_is_computed_are_free(override: str) -> None:
    check(tiny_config(), tiny_config(override))


def test_more_steps_are_refused_where_the_learning_rate_depends_on_them() -> None:
    with pytest.raises(CheckpointError, match=r"steps: 4 then, 9 now .*under cosine .* Remedy: steps=4, or a new run"):
        check(tiny_config("optim.schedule=cosine"), tiny_config("optim.schedule=cosine", "steps=9"))


def test_another_number_of_processes_is_refused() -> None:
    with pytest.raises(CheckpointError, match="number of processes: 1 then, 2 now"):
        check(tiny_config(), tiny_config(), num_ranks=2)


def test_a_checkpoint_beyond_the_last_step_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"at step 9, beyond steps=4\. Remedy: steps=9"):
        check(tiny_config(), tiny_config(), step=9)


def test_a_kill_while_a_step_is_saved_again_loses_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".outdated-step-000003").mkdir()
    (tmp_path / ".outdated-step-000003" / "state.json").write_text("old")
    (tmp_path / ".outdated-step-000002").mkdir()
    (tmp_path / "step-000002").mkdir()
    recover(tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000002", "step-000003"]
    assert (tmp_path / "step-000003" / "state.json").read_text() == "old"
    assert not list(tmp_path.glob(".outdated-*"))
