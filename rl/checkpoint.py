"""Checkpoints: everything that a run needs to go on bit for bit, written whole or not at all.

    checkpoints/step-000020/
        adapter/            PEFT's format (PeftModel.from_pretrained reads it); model/ where all parameters train
        optimizer.pt        AdamW's state (the learning rate is a function of the step and needs no state)
        average.pt          the moving average of the trained weights, where there is one
        rng.pt              torch's generator state of each rank
        state.json          step, data order, watchdog, position in metrics.jsonl, groups left over or sampled ahead
        config.yaml         the run's configuration
        manifest.json       size and SHA-256 of each file above; written last
    checkpoints/best        link to the checkpoint with the best held-out accuracy

A checkpoint is written under another name and renamed when complete, so that a full disk or a kill leaves the previous
one as it was. Nothing is read with pickle: torch.load runs with weights_only=True.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.optim import Optimizer
from transformers import PreTrainedModel

from rewards.errors import UserError
from rl.config import Occasion, RunConfig
from rl.configuration.loading import to_yaml
from rl.configuration.resuming import Difference, conflicts
from rl.policy.moving_average import MovingAverage
from rl.policy.policy import Policy
from rl.questions.run_prompt import RunPrompt, prompt_of_run, write_record
from rl.ranks import gather, meet
from rl.trainer_state import TrainerState

PREFIX, TEMPORARY, OUTDATED, BEST = "step-", ".writing-", ".outdated-", "best"


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message says which file and what to do."""


def checkpoint_name(step: int) -> str:
    return f"{PREFIX}{step:06d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints (renamed into place), oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.is_dir()] if folder.is_dir() else []
    return sorted(found, key=lambda path: (len(path.name), path.name))


def save_checkpoint(
    folder: Path, state: TrainerState, policy: Policy, optimizer: Optimizer,
    rng_states: Sequence[Mapping[str, torch.Tensor]], config: RunConfig, average: MovingAverage | None = None,
) -> Path:
    """Write a checkpoint and return its path. Raises CheckpointError (nothing half-written stays) when the disk
    refuses."""
    final, temporary = folder / checkpoint_name(state.step), folder / f"{TEMPORARY}{state.step:06d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_weights(temporary, policy, prompt_of_run(config.run_dir, config))
        torch.save(optimizer.state_dict(), temporary / "optimizer.pt")
        if average is not None:
            torch.save(average.weights, temporary / "average.pt")
        torch.save([dict(states) for states in rng_states], temporary / "rng.pt")
        (temporary / "state.json").write_text(json.dumps(state.to_json()))
        (temporary / "config.yaml").write_text(to_yaml(config))
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {
            str(path.relative_to(temporary)): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in files}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        _replace(final, temporary)
        _sync(folder)
    # safetensors and torch raise their own errors for a full disk.
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        kept = [path.name for path in list_checkpoints(folder)]
        raise CheckpointError(
            f"could not write checkpoint {final}: {error}. Earlier checkpoints are untouched: "
            f"{', '.join(kept) or 'none yet'}. Remedy: free disk space (or set checkpoint.keep lower), then go on with "
            "--resume.") from error
    return final


class Checkpoints:
    """A run's checkpoints, one of each state at most; everything here is collective over ranks, and the main one
    writes."""

    def __init__(
        self, config: RunConfig, folder: Path, accelerator: Accelerator, policy: Policy, optimizer: Optimizer,
        average: MovingAverage | None = None,
    ) -> None:
        self._config, self._folder, self._accelerator = config, folder, accelerator
        self._policy, self._optimizer, self._average = policy, optimizer, average
        self._of_present_state: Path | None = None
        self._rng_states: list[dict[str, torch.Tensor]] = []

    def note_rng(self) -> None:
        """Collective, where an update has ended: until the next one the main rank can write the state alone."""
        rng = rng_state(self._accelerator.device)
        self._rng_states = gather(rng, self._accelerator.num_processes, "end the update")

    def write_while_waiting(self, state: Callable[[], TrainerState]) -> Path | None:
        """`write`, where ranks cannot meet: by the main one alone, the state since `note_rng`; None on the others."""
        if self._accelerator.num_processes == 1:
            return self.write(state)
        if not self._accelerator.is_main_process:
            return None
        return self._of_present_state or save_checkpoint(
            self._folder, state(), self._policy, self._optimizer, self._rng_states, self._config, self._average)

    def changed(self) -> None:
        """The run is no longer in the state that was written last."""
        self._of_present_state = None

    def write(self, state: Callable[[], TrainerState], *, best: bool = False) -> Path:
        """Write a checkpoint of the present state and drop the oldest; nothing where it has been written already.
        state: called on the main rank. best: let `best` point to it."""
        if self._of_present_state is not None:
            return self._of_present_state
        rng = rng_state(self._accelerator.device)
        states = gather(rng, self._accelerator.num_processes, "come to the checkpoint")
        path = self._folder
        if self._accelerator.is_main_process:
            path = save_checkpoint(
                self._folder, state(), self._policy, self._optimizer, states, self._config, self._average)
            if best:
                mark_best(self._folder, path)
            prune(self._folder, self._config.checkpoint.keep)
        meet("write the checkpoint", self._accelerator.num_processes)
        self._of_present_state = path
        return path

    def load(self, path: Path, best_step: int | None) -> None:
        """Weights, optimiser and generator states of a verified checkpoint. best_step: of the best checkpoint."""
        rng_states = load_weights(path, self._policy, self._optimizer)
        if self._average is not None:
            self._average.load(torch.load(
                path / "average.pt", map_location=self._accelerator.device, weights_only=True))
        set_rng_state(rng_states[self._accelerator.process_index], self._accelerator.device)
        # A kill between writing a checkpoint and pointing `best` at it leaves the link behind.
        if best_step is not None and self._accelerator.is_main_process:
            best = self._folder / checkpoint_name(best_step)
            if best.is_dir():
                mark_best(self._folder, best)


def _replace(final: Path, temporary: Path) -> None:
    """Rename into place; an older checkpoint of that step is moved away first and removed last, so that one is always
    there (after a kill between the two, `recover` moves it back)."""
    outdated = final.with_name(OUTDATED + final.name)
    shutil.rmtree(outdated, ignore_errors=True)
    if final.exists():
        final.rename(outdated)
    temporary.rename(final)
    shutil.rmtree(outdated, ignore_errors=True)


def recover(folder: Path) -> None:
    """Undo what a kill in the middle of replacing a checkpoint left behind."""
    for outdated in folder.glob(f"{OUTDATED}*"):
        final = folder / outdated.name.removeprefix(OUTDATED)
        if final.exists():
            shutil.rmtree(outdated, ignore_errors=True)
        else:
            outdated.rename(final)


def mark_best(folder: Path, checkpoint: Path) -> None:
    """Let `best` point to this checkpoint, atomically."""
    link = folder / f"{TEMPORARY}{BEST}"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name)
    os.replace(link, folder / BEST)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best."""
    best = (folder / BEST).resolve() if (folder / BEST).is_symlink() else None
    for path in list_checkpoints(folder)[:-keep]:
        if path.resolve() != best:
            shutil.rmtree(path)
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)


def verify(path: Path) -> None:
    """Raise CheckpointError unless every file is there with its size and digest."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        files = {path / name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest.items()}
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, f"its manifest.json cannot be read ({error})") from error
    for file, (num_bytes, digest) in files.items():
        if not file.is_file():
            raise _damaged(path, f"{file.name} is missing")
        if (size := file.stat().st_size) != num_bytes:
            raise _damaged(path, f"{file.name} has {size} bytes where {num_bytes} were written")
        if _digest(file) != digest:
            raise _damaged(path, f"the contents of {file.name} have changed since it was written")


def _damaged(path: Path, what: str) -> CheckpointError:
    others = [other.name for other in list_checkpoints(path.parent) if other != path]
    remedy = (
        f"remove {path} to go on from {others[-1]}" if others else "start the run anew (this was its only checkpoint)")
    return CheckpointError(f"checkpoint {path} is damaged: {what}. Remedy: {remedy}.")


def read_state(path: Path) -> TrainerState:
    """The state of a verified checkpoint."""
    try:
        return TrainerState.from_json(json.loads((path / "state.json").read_text()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path / 'state.json'} was written by another version of otherhalf ({error}). Remedy: resume with "
            "the version that wrote it") from error


def check_same_run(
    path: Path, stored: RunConfig, config: RunConfig, state: TrainerState, num_ranks: int, data: Mapping[str, str]
) -> None:
    """Refuse to go on under another configuration, number of ranks, other questions or another teacher: the result
    would be neither run's. data: what the run has now of state.data; where the checkpoint knows no teacher's weights,
    they are not compared."""
    changed = conflicts(stored, config, Occasion.RUN)
    if config.optim.schedule == "constant":  # else another number of steps is another learning rate
        changed = [item for item in changed if item.key != "steps"]
    if state.num_ranks != num_ranks:
        changed.append(Difference("number of processes", state.num_ranks, num_ranks))
    if [item.key for item in changed] == ["steps"]:
        raise CheckpointError(
            f"steps: {stored.steps} then, {config.steps} now (checkpoint {path}): under {config.optim.schedule} each "
            "step's learning rate depends on how many there are, so that another number of them is another run from "
            f"its first step on. Remedy: steps={stored.steps}, or a new run from these weights "
            "(model.adapter=.../adapter); a run of which more may be wanted has optim.schedule=constant")
    if changed:
        listed = "; ".join(f"{key}: {old!r} then, {new!r} now" for key, old, new in changed)
        raise CheckpointError(
            f"checkpoint {path} belongs to another configuration: {listed}. Remedy: resume with the same settings, or "
            "start a new run (model.adapter=.../adapter starts one from these weights)")
    teacher = {name: digest for name, digest in data.items() if name.startswith("teacher.")}
    if other := [name for name, digest in teacher.items() if state.data.get(name, digest) != digest]:
        raise CheckpointError(
            f"{' and '.join(other)}: the weights differ from those that the run began with (checkpoint {path}). Remedy:"
            " put the files back, or start a new run (model.adapter=.../adapter starts one from these weights)")
    if other := [name for name, digest in data.items() if name not in teacher and state.data.get(name) != digest]:
        raise CheckpointError(
            f"the questions have changed since checkpoint {path}: {' and '.join(other)} gives other prompts or answers "
            "than then (edited rows, another template or tokenizer, another day in a chat template that prints one). "
            "Remedy: put the files back, prompt.date=YYYY-MM-DD for the day on which the run began, or start a new run "
            "(model.adapter=.../adapter starts one from these weights)")
    if state.step > config.steps:
        raise CheckpointError(
            f"checkpoint {path} is at step {state.step}, beyond steps={config.steps}. Remedy: steps={state.step} or "
            "more")


def load_weights(path: Path, policy: Policy, optimizer: Optimizer) -> list[dict[str, torch.Tensor]]:
    """Read weights and optimiser state into the given objects; returns each rank's RNG state."""
    if policy.is_adapter:
        _copy_adapter(load_file(path / "adapter" / "adapter_model.safetensors"), policy)
    else:
        stored = type(policy.causal_lm).from_pretrained(path / "model", dtype=torch.float32)
        policy.causal_lm.load_state_dict(stored.state_dict())
    device = next(policy.model.parameters()).device
    optimizer.load_state_dict(torch.load(path / "optimizer.pt", map_location=device, weights_only=True))
    states: list[dict[str, torch.Tensor]] = torch.load(path / "rng.pt", weights_only=True)
    return states


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The generators that dropout draws from: the CPU's, and the device's own where it has one."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@torch.no_grad()
def _copy_adapter(stored: dict[str, torch.Tensor], policy: Policy) -> None:
    # PEFT saves "….lora_A.weight" for the parameter "….lora_A.default.weight".
    parameters = {name.replace(".default.", "."): p for name, p in policy.trainable_parameters().items()}
    if parameters.keys() != stored.keys():
        different = sorted(parameters.keys() ^ stored.keys())
        raise CheckpointError(
            f"the adapter in the checkpoint has other modules than this policy, among them {different[0]}. Remedy: the "
            "same lora.targets and model.path as when it was saved")
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])


def save_weights(folder: Path, policy: Policy, prompt: RunPrompt) -> None:
    """What was trained, with the prompt that it was trained under, into `folder`: adapter/ in PEFT's format, or model/
    where all parameters train."""
    if isinstance(policy.model, PeftModel):
        # "auto" asks the hub for the base's config.json.
        policy.model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    else:
        assert isinstance(policy.model, PreTrainedModel)
        policy.model.save_pretrained(folder / "model")
        policy.tokenizer.save_pretrained(folder / "model")
    write_record(folder / ("adapter" if policy.is_adapter else "model"), prompt)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
