"""`python -m rl.export RUN OUT`: merge a run's adapter into its base and write a plain checkpoint with a model card.

RUN is a run's folder or name (its best checkpoint is taken, or the one that --checkpoint names) or a folder that PEFT
saved. The merge is computed in float32 from the pristine base and stored in the base's own dtype. A run that trained
all parameters is copied out the same way. --adapter-only writes the adapter as it is. README.md says how the weights
came about (its licence is yours to fill in), and --push puts all of it on the hub, in a private repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rl.config import ModelSection, RunConfig
from rl.configuration.command_line import is_of
from rl.configuration.loading import load
from rl.configuration.resuming import moved
from rl.errors import ConfigError, report_errors
from rl.policy.hub import check_repository, push
from rl.policy.merging import Source, write_adapter, write_plain
from rl.policy.model_card import is_hub_id, public_name, write_card
from rl.runs.folder import RunFolder, find_run

if TYPE_CHECKING:
    from rl.questions.run_prompt import RunPrompt


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rl.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder or name, or a PEFT adapter's folder")
    parser.add_argument("out", type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument(
        "--checkpoint", default=None, help="name of a checkpoint of the run (default: best, else the newest)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default=None, help="stored dtype (default: the base checkpoint's)")
    parser.add_argument("--adapter-only", action="store_true", help="the LoRA adapter as it is, not merged")
    parser.add_argument("--push", metavar="OWNER/NAME", default=None, help="upload to this repository of the hub")
    parser.add_argument("--public", action="store_true", help="with --push: for everyone to see (default: private)")

    def write() -> int:
        options = parser.parse_args(arguments)
        keep_card = options.push is not None and check_repository(options.push, public=options.public)
        make = export_adapter if options.adapter_only else partial(export, dtype=options.dtype)
        print(make(options.run, options.out, options.checkpoint, name=options.push))
        if options.push is not None:
            url = push(options.out, options.push, public=options.public, keep_card=keep_card)
            print(f"pushed to {url}{', whose README.md is kept' if keep_card else ''}")
        return 0

    return report_errors(write)


def export(
    run: str, out: Path, checkpoint: str | None = None, dtype: str | None = None, name: str | None = None
) -> str:
    """Write the merged checkpoint, with its tokenizer, the prompt that it was trained with and a card, into `out`;
    returns a line that says what was written. name: of the repository that it is for, which nothing of this machine
    shall reach; None: it stays here.

    Raises RunFolderError, CheckpointError, PolicyError or ConfigError where something is missing, OSError where the
    disk is full; `out` is then untouched."""
    _check_free(out)
    source = find_source(run, checkpoint)
    written = write_plain(source, out, dtype, _prompt(source, name))
    _describe(source, out, name)
    return written


def export_adapter(run: str, out: Path, checkpoint: str | None = None, name: str | None = None) -> str:
    """Write the adapter with its tokenizer, prompt and card into `out`. Raises and returns as `export`."""
    _check_free(out)
    source = find_source(run, checkpoint)
    if source.adapter is None:
        raise ConfigError(f"{run} has trained all parameters: there is no adapter", where="--adapter-only",
                          remedy="leave it out")
    base = source.base.path
    if name is not None and not is_hub_id(base):
        warnings.warn(f"the base is {public_name(base)}, a folder of this machine: others cannot load the adapter. "
                      "Remedy: leave out --adapter-only", stacklevel=2)
    written = write_adapter(
        source.adapter, source.base, out, _prompt(source, name), None if name is None else public_name(base))
    _describe(source, out, name)
    return written


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name a new one")


def _prompt(source: Source, name: str | None) -> RunPrompt | None:
    from rl.questions.run_prompt import prompt_of_weights

    prompt = prompt_of_weights(source.adapter or Path(source.base.path))
    return prompt if prompt is None or name is None else replace(prompt, folder=Path(prompt.folder.name))


def _describe(source: Source, out: Path, name: str | None) -> None:
    """The card; of the weights' run, if they lie in one's folder."""
    weights = (source.adapter or Path(source.base.path)).resolve()
    run = _run_of(weights)
    in_checkpoint = run is not None and weights.parent.parent == run.checkpoints.resolve()
    write_card(out, name or out.resolve().name, source.stored_like.path, run,
               weights.parent.name if in_checkpoint else "")


def _run_of(weights: Path) -> RunFolder | None:
    """In whose folder the weights lie."""
    return next((RunFolder(folder) for folder in weights.parents[:3] if RunFolder(folder).holds_run), None)


def _model_of(run: RunFolder) -> ModelSection:
    """With the path at which a model of its own, among its inputs, lies now."""
    config = load(run.config_file, [])
    return moved(config, config.run_dir, run.path).model


def find_source(run: str, checkpoint: str | None = None) -> Source:
    """What a PEFT adapter's folder, or a run's folder or name, stands for. Raises RunFolderError, CheckpointError or
    ConfigError."""
    given = Path(run)
    if (given / "adapter_config.json").is_file():
        base = json.loads((given / "adapter_config.json").read_text()).get("base_model_name_or_path")
        home = _run_of(given.resolve())
        if home is not None and is_of(RunConfig, home) and load(home.config_file, []).model.path == base:
            base = _model_of(home).path
        if not base:
            raise ConfigError(
                "base_model_name_or_path is missing", where=f"{given}/adapter_config.json",
                expected="the base's folder or hub id")
        return Source(ModelSection(path=base), given, ModelSection(path=base))
    folder = RunFolder(find_run(run))

    from rl.checkpoint import CheckpointError, list_checkpoints, verify

    there = [path.name for path in reversed(list_checkpoints(folder.checkpoints))]
    names = ["best", *there] if checkpoint is None else [checkpoint]
    chosen = next((folder.checkpoints / name for name in names if (folder.checkpoints / name).is_dir()), None)
    if chosen is None:
        asked = f"has no {checkpoint!r}" if checkpoint is not None else "holds no checkpoint"
        raise CheckpointError(f"{folder.checkpoints} {asked}; there: {', '.join(there) or 'none'}")
    verify(chosen)
    model = _model_of(folder)
    if (chosen / "adapter").is_dir():
        return Source(model, chosen / "adapter", model)
    return Source(model.model_copy(update={"path": str(chosen / "model"), "revision": None}), None, model)


if __name__ == "__main__":
    sys.exit(main())
