"""`python -m rl.export RUN OUT`: merge a run's adapter into its base and write a plain checkpoint.

RUN is a run's folder or name (its best checkpoint is taken, or the one that --checkpoint names) or a folder that PEFT
saved. The merge is computed in float32 from the pristine base and stored in the base's own dtype. A run that trained
all parameters is copied out the same way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rl.config import ModelSection
from rl.configuration.loading import load
from rl.errors import ConfigError, report_errors
from rl.policy.merging import Source, write_plain
from rl.runs.folder import RunFolder, find_run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rl.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder or name, or a PEFT adapter's folder")
    parser.add_argument("out", type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument(
        "--checkpoint", default=None, help="name of a checkpoint of the run (default: best, else the newest)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default=None, help="stored dtype (default: the base checkpoint's)")

    def write() -> int:
        options = parser.parse_args(arguments)
        print(export(options.run, options.out, options.checkpoint, options.dtype))
        return 0

    return report_errors(write)


def export(run: str, out: Path, checkpoint: str | None = None, dtype: str | None = None) -> str:
    """Write the merged checkpoint, with its tokenizer and the prompt that it was trained with, into `out`; returns a
    line that says what was written.

    Raises RunFolderError, CheckpointError, PolicyError or ConfigError where something is missing, OSError where the
    disk is full; `out` is then untouched."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name a new one")
    from rl.questions.run_prompt import prompt_of_weights

    source = find_source(run, checkpoint)
    return write_plain(source, out, dtype, prompt_of_weights(source.adapter or Path(source.base.path)))


def find_source(run: str, checkpoint: str | None = None) -> Source:
    """What a PEFT adapter's folder, or a run's folder or name, stands for. Raises RunFolderError, CheckpointError or
    ConfigError."""
    given = Path(run)
    if (given / "adapter_config.json").is_file():
        base = json.loads((given / "adapter_config.json").read_text()).get("base_model_name_or_path")
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
    model = load(folder.config_file, []).model
    if (chosen / "adapter").is_dir():
        return Source(model, chosen / "adapter", model)
    return Source(model.model_copy(update={"path": str(chosen / "model"), "revision": None}), None, model)


if __name__ == "__main__":
    sys.exit(main())
