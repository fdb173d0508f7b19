"""`python -m rl.export RUN OUT`: merge a run's adapter into its base and write a plain checkpoint.

RUN is a run's folder or name (its best checkpoint is taken, or the one that --checkpoint names) or a folder that PEFT saved. The merge is
computed in float32 from the pristine base and stored in the base's own dtype.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rl.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run's folder or name, or a PEFT adapter's folder")
    parser.add_argument("out", type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument("--checkpoint", default=None, help="name of a checkpoint of the run (default: best, else the newest)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default=None, help="stored dtype (default: the base checkpoint's)")
    options = parser.parse_args(arguments)
    from rl.errors import user_errors

    try:
        print(export(options.run, options.out, options.checkpoint, options.dtype))
    except user_errors() as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def export(run: str, out: Path, checkpoint: str | None = None, dtype: str | None = None) -> str:
    """Write the merged checkpoint with its tokenizer into `out`; returns a line that says what was written.

    Raises RunFolderError, CheckpointError or ConfigError where something is missing; `out` is then untouched."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rl.config import LoraSection, ModelSection
    from rl.config_loading import ConfigError, resolve_path
    from rl.policy import load_policy, merged_weights

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError([f"{out} exists and is not empty; name a new folder"])
    base, folder = _source(run, checkpoint)
    plain = AutoModelForCausalLM.from_pretrained(
        str(resolve_path(base if folder.name == "adapter" or base != str(folder) else str(folder))),
        dtype=dtype or "auto")
    tokenizer = AutoTokenizer.from_pretrained(str(resolve_path(base)))
    if (folder / "adapter_config.json").is_file():
        policy = load_policy(
            ModelSection(path=base, adapter=str(folder), dtype="float32"), LoraSection(), tokenizer, seed=0,
            device=torch.device("cpu"), keep_reference=False)
        parameters = dict(plain.named_parameters())
        with torch.no_grad():
            for name, weight in merged_weights(policy):
                parameters[name].copy_(weight)
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return f"wrote {out}: {base} with {folder} merged, {next(plain.parameters()).dtype}"


def _source(run: str, checkpoint: str | None) -> tuple[str, Path]:
    """(base checkpoint, folder of the adapter or of the fully trained model)."""
    import json

    from rl.checkpoint import CheckpointError, list_checkpoints, verify
    from rl.config_loading import load
    from rl.run_folder import RunFolder, find_run

    given = Path(run)
    if (given / "adapter_config.json").is_file():
        return json.loads((given / "adapter_config.json").read_text())["base_model_name_or_path"], given
    folder = RunFolder(find_run(run))
    names = ["best", *(path.name for path in reversed(list_checkpoints(folder.checkpoints)))] if checkpoint is None else [checkpoint]
    chosen = next((folder.checkpoints / name for name in names if (folder.checkpoints / name).is_dir()), None)
    if chosen is None:
        there = ", ".join(path.name for path in list_checkpoints(folder.checkpoints)) or "none"
        raise CheckpointError(f"{folder.checkpoints} has no checkpoint {checkpoint or ''}; there: {there}")
    verify(chosen)
    if (chosen / "adapter").is_dir():
        return load(folder.config_file, []).model.path, chosen / "adapter"
    return str(chosen / "model"), chosen / "model"


if __name__ == "__main__":
    sys.exit(main())
